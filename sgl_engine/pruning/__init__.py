"""What the large model does not see: ``plan`` decides it, and ``patch`` carries it out in a running decoder.

A prompt and an importance map go in, and a plan comes out. ``layer_inputs`` holds what the layers below the
first pruned one have made of a prompt, for the next prompt that begins in the same way.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
