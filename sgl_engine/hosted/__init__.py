"""A large model on another machine: what it is asked, what of the pictures it is sent, and what it answers.

A ``HostedCall`` goes in, deltas and a ``HostedAnswer`` come out: ``model`` defines them. ``openai_model``
asks any server with OpenAI's interface, ``regions`` and ``evidence`` choose what of a picture is sent, and
``picture_tokens`` counts it as the providers do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
