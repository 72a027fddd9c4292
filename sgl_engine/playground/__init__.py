"""A page on which moving a slider shows what the method does. Needs the extra ``playground``.

``state`` is what the page can be set to, ``pictures`` what is asked about, ``steps`` asks the engine,
``rasters`` and ``figures`` turn what comes back into what is drawn, and ``app`` has the routes, beside those
of ``sgl_engine.server``. The page itself is ``page/``: it loads nothing from elsewhere, and nothing of what
is asked stays in the server.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
