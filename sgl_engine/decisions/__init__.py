"""Typed questions about pictures and text, answered with probabilities: yes or no, which, how much, where.

``decide`` asks them all at once. No text is generated but where a model points (``BoxQuestion``): the answers
that a question allows are scored, first by the small model, and each question that it is not sure of by the
large one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
