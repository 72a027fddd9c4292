"""One model's turn: the small model answers and guides, the large one answers, either scores answers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
