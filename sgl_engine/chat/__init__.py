"""Messages <-> text: templates, tool calls, grammars, and text that comes piece by piece. Knows no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
