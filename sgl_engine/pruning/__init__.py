"""What is left out: a plan, and the hooks that carry it out in a running decoder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
