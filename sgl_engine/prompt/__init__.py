"""What a model reads: pictures are loaded, prompts are encoded, and laid side by side."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
