"""Decides whether the small model's answer is kept: what runs with every request.

A calibration file (``calibration_file``), tied to one pair of models and its settings (``binding``), turns
what the small pass measured into a probability (``calibrators``), and tells which requests that holds for
(``calibrated``). ``sgl_engine.calibration`` makes such files offline; nothing of it is imported here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
