"""Small-guided VLM inference: a small model answers first, and tells the large one where to look.

The public names stand in ``__init__.pyi``. They load on first use, so that importing this package loads
neither torch nor transformers. What single steps take and return is public in their folders, such as
``sgl_engine.passes`` and ``sgl_engine.pruning``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

__version__ = "0.1.0"
