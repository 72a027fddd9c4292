"""How well documents answer a query: scores of given answers, settled for a whole list. Pure.

``question`` is what a model is asked about each document, and ``settling`` the order in which a list is
scored: by the small model, and where that leaves the list open, by the large one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
