"""A model's processor: loaded with or without torchvision; a request -> what the model takes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from PIL import Image

from sgl_engine.chat.template import render
from sgl_engine.errors import ProcessorError
from sgl_engine.families.processors import image_only_class
from sgl_engine.model.caller_tokens import CallerTokenizer
from sgl_engine.request import Request

if TYPE_CHECKING:
    from torch import Tensor


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
            return auto.from_pretrained(name, **hub)
        settings, _ = ProcessorMixin.get_processor_dict(name, **hub)
        cls = image_only_class(settings.get("processor_class") or "")
        if cls is None:
            return auto.from_pretrained(name, **hub)
        return _load_image_only(cls, settings, name, hub)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        raise ProcessorError(
            f"The processor of {name} cannot be loaded ({type(error).__name__}: {error}).",
            remedy="Save it next to the weights with processor.save_pretrained(folder).",
        ) from error


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
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ProcessorError(
            f"The processor {type(processor).__name__} cannot encode {len(images)} images and "
            f"{len(request.messages)} messages ({type(error).__name__}: {prompt.disguise.show(str(error))}).",
            remedy="Check that its chat template has one image token for each image.",
        ) from error
    return dict(inputs)


def loaded_sizes(request: Request) -> list[tuple[int, int]]:
    """(width, height) in pixels of each loaded image."""
    return [part.source.size for part in request.images if isinstance(part.source, Image.Image)]
