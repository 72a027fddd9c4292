"""A pair on many machines, by plain Ray Serve. Needs the extra ``cluster``.

``gateway`` takes requests in: the app of ``sgl_engine.server`` on an engine without weights (``engine``). It
sends each half of the road (``cascade``) to the deployment of its model (``deployments``), by calls that are
begun again where a replica ends (``link``). ``parcels`` is what goes from one to the other, ``models`` loads
models with or without weights, and ``scaling`` says how many replicas there are.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
