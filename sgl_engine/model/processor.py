"""A model's processor: loaded with or without torchvision; a request -> what the model takes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from sgl_engine.chat.template import render
from sgl_engine.config import PictureConfig
from sgl_engine.errors import (
    ImageLimitError,
    InvalidRequestError,
    ProcessorError,
    UnsupportedImageError,
)
from sgl_engine.families.processors import image_only_class, obey_thumbnail_switch
from sgl_engine.model.caller_tokens import CallerTokenizer
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import Request

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from sgl_engine.families import Family

_KEPT = 2  # Pillow's own measure for scaling in two steps (reducing_gap of its thumbnails)
_FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError)
"""What processors raise over inputs that they do not take."""


def load_processor(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The processor saved with a model.

    Without torchvision, a processor that also owns a video processor cannot be built as transformers does it;
    it is then built for images alone, with the Pillow image processor.

    Args:
        name: Path or hub id.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ProcessorError: It is missing or cannot be loaded.
    """
    import transformers
    from transformers.processing_utils import ProcessorMixin
    from transformers.utils.import_utils import is_torchvision_available

    auto: Any = transformers.AutoProcessor
    hub: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        if is_torchvision_available():
            return obey_thumbnail_switch(auto.from_pretrained(name, **hub))
        settings, _ = ProcessorMixin.get_processor_dict(name, **hub)
        cls = image_only_class(settings.get("processor_class") or "")
        if cls is None:
            return obey_thumbnail_switch(auto.from_pretrained(name, **hub))
        return obey_thumbnail_switch(_load_image_only(cls, settings, name, hub))
    except MemoryError:
        raise
    except Exception as error:  # its files may hold anything; tokenizers raises plain Exception
        raise ProcessorError(
            f"The processor of {name} cannot be loaded ({type(error).__name__}: {error}).",
            remedy="Save it next to the weights with processor.save_pretrained(folder).",
        ) from error


def check_parts(processor: Any, name: str) -> None:
    """Raises ProcessorError where a tokenizer was loaded in place of a processor, as unknown classes give."""
    missing = [part for part in ("tokenizer", "image_processor") if getattr(processor, part, None) is None]
    if missing:
        raise ProcessorError(
            f"The processor of {name} is a {type(processor).__name__} and has no {' and no '.join(missing)}.",
            remedy="Save the model's own processor next to the weights with save_pretrained(folder).",
        )


def _load_image_only(cls: Any, settings: dict[str, Any], name: str, hub: dict[str, Any]) -> Any:
    """Builds a class from ``image_only_class``."""
    import transformers

    images: Any = transformers.AutoImageProcessor
    parts = {
        "image_processor": images.from_pretrained(name, **hub),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(name, **hub),
        "video_processor": None,
    }
    return cls.from_args_and_dict([parts[part] for part in cls.get_attributes()], settings)


def process(processor: Any, request: Request, *, image_token: str) -> dict[str, Tensor]:
    """Chat template, then tokens and pixels: the model's keyword arguments, batch of one.

    The tokens are those of the processor's own ``apply_chat_template``, except that nothing which the caller
    wrote becomes a control token or an image.

    Args:
        processor: The model's processor.
        request: Its images loaded (``sgl_engine.prompt.images.resolve_images``).
        image_token: What the template writes for an image, and the processor replaces.

    Raises:
        InvalidRequestError: The text cannot be kept apart from control tokens, or ``chat_template_kwargs``
            set what the conversation sets.
        UnsupportedImageError: The image processor takes no picture of such a shape.
        ProcessorError: The processor has no chat template, its template leaves something out, or it fails.
    """
    prompt = render(processor, request, image_token=image_token)
    reader = copy.copy(processor)
    reader.tokenizer = CallerTokenizer(
        processor.tokenizer, prompt.disguise, frozenset(prompt.control.values())
    )
    images = [part.source for part in request.images]
    # A template that writes the first token, and a tokenizer that adds it, would give two.
    settings = {"add_special_tokens": False} if prompt.writes_bos else {}
    try:
        inputs = reader(
            text=[prompt.text], images=[images] if images else None, return_tensors="pt", **settings
        )
    except _FAILURES as error:
        _blame_picture(processor, images)
        raise ProcessorError(
            f"The processor {type(processor).__name__} cannot encode {len(images)} images and "
            f"{len(request.messages)} messages ({type(error).__name__}: {prompt.disguise.show(str(error))}).",
            remedy="Check that its chat template has one image token for each image.",
        ) from error
    return dict(inputs)


def resized(family: Family, config: PreTrainedConfig, processor: Any, wanted: PictureConfig) -> Any:
    """A processor that shows pictures as large as is wanted: a copy that shares the tokenizer.

    Args:
        family: The model's.
        config: Its configuration.
        processor: Its processor, which is left as it is.
        wanted: How large; where it wants nothing, ``processor`` itself is returned.
    """
    if wanted == PictureConfig() or getattr(processor, "image_processor", None) is None:
        return processor
    mine, own = copy.copy(processor), processor.image_processor
    mine.image_processor = images = copy.copy(own)
    family.resize(config, images, wanted)
    if isinstance(images.size, dict) and not isinstance(own.size, dict):
        images.size = type(own.size)(**images.size)
    # Settings that were saved with the processor count more than those of its image processor.
    saved = getattr(processor, "images_kwargs", None) or {}
    changed = {name for name in saved if getattr(images, name, None) != getattr(own, name, None)}
    if changed:
        mine.images_kwargs = {name: value for name, value in saved.items() if name not in changed}
    return mine


def check_visual_tokens(prompt: EncodedPrompt, wanted: PictureConfig) -> None:
    """Raises ImageLimitError where a picture has more visual tokens than are wanted of one."""
    counts = Counter[int]()
    for span in prompt.spans:
        counts[span.image] += len(span)
    for image, tokens in counts.items():
        if wanted.max_visual_tokens is not None and tokens > wanted.max_visual_tokens:
            raise ImageLimitError(
                f"Image {image + 1} of {len(counts)} has {tokens} visual tokens, and its model shows it "
                f"in no fewer; the limit is {wanted.max_visual_tokens}.",
                remedy="Raise PictureConfig.max_visual_tokens, or use a model that scales pictures.",
            )


def shrink_factor(family: Family, config: PreTrainedConfig, processor: Any, width: int, height: int) -> int:
    """The whole factor by which a picture can be scaled down before its processor scales it down anyway.

    What is left is at least ``_KEPT`` times as wide and as high as what the processor will make of it, and
    the family's arithmetic gives the same tokens for both sizes. Pixels differ by little: a box filter runs
    first, then the processor's own over what is left.

    Args:
        family: The model's.
        config: Its configuration.
        processor: Its processor.
        width: Of the picture, in pixels.
        height: The same.

    Returns:
        1 where it cannot.
    """
    try:
        wanted = family.scaled(config, processor, width, height)
        if wanted is None:
            return 1
        most = min(width // (_KEPT * wanted.width), height // (_KEPT * wanted.height))
        for factor in range(most, 1, -1):
            if family.scaled(config, processor, -(-width // factor), -(-height // factor)) == wanted:
                return factor
    except (LookupError, TypeError, ArithmeticError, AttributeError):
        return 1  # an image processor with settings that the family does not know: it does as it does
    return 1


def _blame_picture(processor: Any, images: Sequence[Any]) -> None:
    """Raises UnsupportedImageError where one of the pictures fails alone, as those of extreme shapes do.

    Asked only after a failure: which shapes an image processor takes is written nowhere but in its code.
    """
    for number, image in enumerate(images, 1):
        try:
            processor.image_processor([image], return_tensors="pt")
        except _FAILURES as error:
            which = f"Image {number} of {len(images)}" if len(images) > 1 else "The image"
            raise UnsupportedImageError(
                f"{which}, {image.width} x {image.height} pixels, is one that the model's "
                f"{type(processor).__name__} does not take ({error}).",
                remedy="Cut or pad it to a less extreme shape.",
            ) from error


def loaded_sizes(request: Request) -> list[tuple[int, int]]:
    """(width, height) in pixels of each loaded image."""
    return [part.source.size for part in request.images if isinstance(part.source, Image.Image)]


def check_features(features: Tensor | None, image_tokens: int) -> None:
    """Refuses pictures that do not give one feature (row) for each image token.

    Raises:
        InvalidRequestError: They do not.
    """
    given = 0 if features is None else len(features)
    if given != image_tokens:
        raise InvalidRequestError(
            f"The prompt has {image_tokens} image tokens, but its images give {given}.",
            remedy="Pass all that the processor returned for one request, pixel_values too, and no more.",
        )
