"""One loaded vision-language model: from a folder or the hub, to embeddings and a step of the decoder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
