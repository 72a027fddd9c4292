"""An HTTP server that OpenAI's clients know, over one engine. Needs the extra ``server``.

``fields`` is what clients send, ``messages`` and ``chat`` translate it, ``app`` has the routes, ``access``
guards them, ``errors`` gives each error of this package one status, ``metrics`` is for Prometheus, and
``run`` is the process; ``ranking`` is for lists of documents, ``deciding`` for typed questions. Handlers
translate; the engine decides.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
