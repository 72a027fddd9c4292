"""What one model does for one request, from an encoded prompt to a result.

The small model answers and guides (``small``), the large one answers (``large``), and either scores given
answers (``scoring``). All begin with the same steps (``prefill``): pictures are embedded, and what is
known of a prompt is looked up (``prefixes``). ``work`` wraps passes for the worker.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
