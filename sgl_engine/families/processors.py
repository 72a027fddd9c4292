"""Processor classes, without the parts that images do not need."""

from __future__ import annotations

from typing import Any


def image_only(cls: Any) -> Any:
    """A processor class that can be built without its video processor.

    Video processors need torchvision; transformers refuses to build a processor that owns one with None in
    its place. The class returned skips that one check, and nothing else.
    """

    class ImageOnly(cls):  # type: ignore[misc]  # a base class known at run time only
        __doc__ = cls.__doc__

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    ImageOnly.__name__ = cls.__name__  # what save_pretrained writes
    return ImageOnly
