"""Says what a pair of models would do and need, from their small files alone: no weights are read.

``check_pair`` reads configuration, processor and template (``files``), builds each model without weights
(``outline``), encodes a page as the engine would, counts as its reports do (``estimate``), and looks at the
machine (``placement``).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
