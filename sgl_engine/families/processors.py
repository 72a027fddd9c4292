"""Processor classes, without the parts that images do not need."""

from __future__ import annotations

import copy
from typing import Any


def image_only_class(name: str) -> Any:
    """A processor class that can be built for images without torchvision.

    Video processors need torchvision; transformers refuses to build a processor that owns one with None in
    its place, and two classes refuse for other reasons although what they do with images needs no more than
    Pillow.

    Args:
        name: The class that a saved processor names.

    Returns:
        A class that can be built with ``video_processor=None``; None where the stock class does without
        torchvision, or where transformers has no such class.
    """
    import transformers

    if name == "PixtralProcessor":
        return _pixtral()
    if name == "SmolVLMProcessor":
        return _smolvlm()
    cls: Any = getattr(transformers, name, None)
    if cls is None or _VIDEOS not in cls.get_attributes():
        return None
    return image_only(cls)


def image_only(cls: Any) -> Any:
    """``cls``, skipping the one check that a missing video processor would fail, and nothing else."""

    class ImageOnly(cls):  # type: ignore[misc]  # a base class known at run time only
        __doc__ = cls.__doc__

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == _VIDEOS and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

        def save_pretrained(self, save_directory: Any, *args: Any, **settings: Any) -> Any:
            """As the stock class, which asks a video processor for its file even where there is none."""
            saved = self
            if getattr(self, _VIDEOS, None) is None:
                saved = copy.copy(self)
                saved.__class__ = without_videos(cls)
            return cls.save_pretrained(saved, save_directory, *args, **settings)

    ImageOnly.__name__ = cls.__name__  # what save_pretrained writes
    return ImageOnly


def without_videos(cls: Any) -> Any:
    """``cls`` as a list of parts: those that are saved and loaded where videos are left out."""

    class Parts(cls):  # type: ignore[misc]  # a base class known at run time only
        __doc__ = cls.__doc__

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != _VIDEOS]

    Parts.__name__ = cls.__name__  # what save_pretrained writes
    return Parts


_VIDEOS = "video_processor"


def load_image_only(cls: Any, settings: dict[str, Any], name: str, hub: dict[str, Any]) -> Any:
    """Builds a class from ``image_only_class``; its parts are those that transformers would load.

    Args:
        cls: The class.
        settings: What processor_config.json says, and the chat template.
        name: Path or hub id.
        hub: Revision, trust and the like, as transformers takes them.
    """
    parts = without_videos(cls)
    found = parts._get_arguments_from_pretrained(name, settings, **hub)  # noqa: SLF001  # there is no public way
    given = dict(zip(parts.get_attributes(), found, strict=True))
    return cls.from_args_and_dict([given.get(part) for part in cls.get_attributes()], settings)


def obey_thumbnail_switch(processor: Any) -> Any:
    """Let ``use_thumbnail=False`` in a tiling image processor's file mean what it says; return the processor.

    transformers stores the switch with the image processor, but does not hand it to the method that cuts
    tiles, which then adds a thumbnail whatever the file says.
    """
    cutter = getattr(processor, "image_processor", None)
    if getattr(cutter, "use_thumbnail", None) is False and hasattr(cutter, "crop_image_to_patches"):
        cutter.__class__ = _without_thumbnail(type(cutter))
    return processor


def _without_thumbnail(cls: Any) -> Any:
    class Tiles(cls):  # type: ignore[misc]  # a base class known at run time only
        __doc__ = cls.__doc__

        def crop_image_to_patches(self, *args: Any, **settings: Any) -> Any:
            return super().crop_image_to_patches(*args, **{**settings, "use_thumbnail": False})

    Tiles.__name__ = cls.__name__  # what save_pretrained writes
    return Tiles


def _smolvlm() -> Any:
    """SmolVLM's class wants num2words, for videos. Idefics3's writes the same tokens for images."""
    from transformers import Idefics3Processor

    class SmolVLMProcessor(Idefics3Processor):
        """Idefics3's, under the name that checkpoints are saved with."""

    return SmolVLMProcessor


def _pixtral() -> Any:
    """Pixtral's module imports torchvision; its class only writes row and end tokens between image tokens."""
    from transformers import ProcessorMixin

    class PixtralProcessor(ProcessorMixin):
        """What the class of this name does with images."""

        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            patch_size: int = 16,
            spatial_merge_size: int = 1,
            chat_template: str | None = None,
            image_token: str = "[IMG]",  # noqa: S107
            image_break_token: str = "[IMG_BREAK]",  # noqa: S107
            image_end_token: str = "[IMG_END]",  # noqa: S107
            **settings: Any,
        ) -> None:
            del settings
            super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
            self.patch_size = patch_size
            self.spatial_merge_size = spatial_merge_size
            self.image_token = image_token
            self.image_break_token = image_break_token
            self.image_end_token = image_end_token
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

        def _process_images(self, images: Any, **settings: Any) -> Any:
            settings["patch_size"] = self.patch_size * self.spatial_merge_size
            return super()._process_images(images, **settings)

        def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
            """One image token per merged patch, a break after each row, the end instead of the last one."""
            step = self.patch_size * self.spatial_merge_size
            height, width = image_inputs["image_sizes"][image_idx]
            row = self.image_token * int(width // step)
            return self.image_break_token.join([row] * int(height // step)) + self.image_end_token

    return PixtralProcessor
