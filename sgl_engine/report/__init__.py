"""Counts what a request has cost, and reports it.

Results of passes go in. ``cost`` counts their operations from shapes, ``make`` collects these and the
milliseconds, and a ``RunReport`` comes out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
