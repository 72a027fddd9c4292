"""Pictures for people: where the small model looked, and what the large one saw."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
