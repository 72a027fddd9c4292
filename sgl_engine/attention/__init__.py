"""Where a model looks: a running model's attention goes in, a map of importance comes out.

``capture`` hooks the model, ``recorder`` adds the rows up (``rows`` keeps them apart, for studies),
``importance`` makes the map, and ``resampling`` carries it onto another model's visual tokens.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
