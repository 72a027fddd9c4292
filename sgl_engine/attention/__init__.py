"""What is looked at: attention is recorded while a model runs, and becomes a map of importance."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
