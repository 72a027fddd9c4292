"""Requests, or what a processor made of one -> EncodedPrompt."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image
from pydantic import ValidationError

from sgl_engine.chat.template import chat_template, close_thoughts, render
from sgl_engine.config import LimitsConfig, PictureConfig, ReuseConfig
from sgl_engine.errors import (
    ImageLimitError,
    InvalidRequestError,
    ProcessorError,
    PromptTooLongError,
    UnsupportedImageError,
)
from sgl_engine.model.caller_tokens import CallerTokenizer
from sgl_engine.model.store import Seen, with_image_processor
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.prompt.images import resolve_images
from sgl_engine.prompt.texts import check_lengths
from sgl_engine.request import Request, check_wanted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from sgl_engine.chat.sealed import Transcript
    from sgl_engine.families import Family

VLM: TypeAlias = Any
"""A ``model.vlm.VLM``, which imports this module."""


def encode(
    vlm: VLM,
    request: Request,
    limits: LimitsConfig,
    reuse: ReuseConfig,
    pictures: PictureConfig,
    transcript: Transcript | None = None,
    seen: dict[Hashable, Any] | None = None,
) -> EncodedPrompt:
    """Loads the request's images, and turns messages into tokens and pixels; see ``VLM.encode``.

    Args:
        vlm: The model.
        request: What is asked.
        limits: What it may bring.
        reuse: What may be kept for, or known from, another request.
        pictures: How large the model sees them.
        transcript: Where it is noted how the request was read.
        seen: Pictures that were processed in the same call, where no other may be known.
    """
    # Measured first: what cannot fit is not read, loaded or tokenized.
    check_lengths(request, limits, vlm.processor.tokenizer, vlm.context_tokens, vlm.name)
    pictures = pictures_for(request, pictures)
    processor = resized(vlm.family, vlm.config, vlm.processor, pictures)
    shrink = partial(shrink_factor, vlm.family, vlm.config, processor)
    loaded = resolve_images(request, limits, shrink)
    check_wanted(request, "before the processor read it")
    pages = [[part.source for part in each.images] for each in (request, loaded)]
    known = None if seen is None or len(pages[0]) != len(pages[1]) else Seen(seen, *pages)
    inputs = process(
        with_image_processor(
            processor,
            vlm.store,
            reuse,
            partial(check_wanted, request, _WHILE_READ),
            request.cache_salt,
            known,
        ),
        loaded,
        image_token=vlm.family.image_text(vlm.processor, vlm.config),
        turn=lambda: vlm.processing(partial(check_wanted, request, "while other requests were tokenized")),
        transcript=transcript,
    )
    prompt = replace(wrap_inputs(vlm, processor, inputs, loaded_sizes(loaded)), cache_salt=request.cache_salt)
    check_visual_tokens(prompt, pictures)
    return prompt


def wrap_inputs(
    vlm: VLM, processor: Any, inputs: Mapping[str, Tensor], image_sizes: Sequence[tuple[int, int]] | None
) -> EncodedPrompt:
    """Finds the visual tokens of raw inputs, and moves them to the model; see ``VLM.prompt``.

    Args:
        vlm: The model.
        processor: What made the inputs.
        inputs: At least "input_ids", int64 (1, S).
        image_sizes: (width, height) in pixels per image; None where they are unknown.
    """
    check_inputs(inputs, vlm.context_tokens, vlm.name)
    spans = vlm.family.spans(vlm.config, processor, inputs, image_sizes)
    # Some processors make labels as well, for training.
    moved = {key: value.to(vlm.device) for key, value in inputs.items() if key != "labels"}
    return EncodedPrompt(
        inputs=moved,
        input_ids=moved["input_ids"],
        spans=spans,
        positions=vlm.family.positions(vlm.model, moved),
        picture_axes=vlm.family.picture_axes(inputs, spans),
        cut=partial(vlm.family.cut, vlm.model, inputs, spans),
    )


def check_inputs(inputs: Mapping[str, Tensor], context_tokens: int, name: str) -> None:
    """Refuses raw inputs that are not one prompt, or leave no room for an answer.

    Raises:
        InvalidRequestError: A batch, or a padded prompt.
        PromptTooLongError: The context is full.
    """
    ids = inputs["input_ids"]
    padded = "attention_mask" in inputs and not bool(inputs["attention_mask"].all())
    if ids.shape[0] != 1 or padded:
        raise InvalidRequestError(
            f"The inputs hold {ids.shape[0]} prompts{' with padding' if padded else ''}; "
            "one unpadded prompt is needed.",
            remedy="Encode and run one request at a time.",
        )
    if ids.shape[1] >= context_tokens:
        raise PromptTooLongError(
            f"The prompt has {ids.shape[1]} tokens; the context of {name} is {context_tokens}, "
            "answer included.",
            remedy="Shorten the text, or send fewer or smaller images.",
        )


_WHILE_READ = "while the processor read its images"
_KEPT = 2  # Pillow's own measure for scaling in two steps (reducing_gap of its thumbnails)
_FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError)
"""What processors raise over inputs that they do not take."""


def process(
    processor: Any,
    request: Request,
    *,
    image_token: str,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    transcript: Transcript | None = None,
) -> dict[str, Tensor]:
    """Chat template, then tokens and pixels: the model's keyword arguments, batch of one.

    The tokens are those of the processor's own ``apply_chat_template``, except that nothing which the caller
    wrote becomes a control token or an image. Only tokenizing takes turns with other requests: the template
    runs, and pictures are scaled and cut, side by side with theirs.

    Args:
        processor: The model's processor, or a copy of it.
        request: Its images loaded (``sgl_engine.prompt.images.resolve_images``).
        image_token: What the template writes for an image, and the processor replaces.
        turn: Entered while the tokenizer reads, as tokenizers keep padding and truncation as state.
        transcript: Where it is noted how the request was read; then its last part is a text.

    Raises:
        InvalidRequestError: The text cannot be kept apart from control tokens, or ``chat_template_kwargs``
            set what the conversation sets.
        UnsupportedImageError: The image processor takes no picture of such a shape.
        ProcessorError: The processor has no chat template, its template leaves something out, or it fails.
    """
    watch = None if transcript is None else transcript.seal
    prompt = render(processor, request, image_token=image_token, watch=watch)
    text = (
        close_thoughts(prompt.text, chat_template(processor))
        if request.max_reasoning_tokens == 0
        else prompt.text
    )
    reader = copy.copy(processor)
    reader.tokenizer = CallerTokenizer(
        processor.tokenizer, prompt.disguise, frozenset(prompt.control.values()), turn
    )
    images = [part.source for part in request.images]
    # A template that writes the first token, and a tokenizer that adds it, would give two.
    settings = {"add_special_tokens": False} if prompt.writes_bos else {}
    try:
        inputs = reader(text=[text], images=[images] if images else None, return_tensors="pt", **settings)
    except _FAILURES as error:
        _blame_picture(processor, images)
        raise ProcessorError(
            f"The processor {type(processor).__name__} cannot encode {len(images)} images and "
            f"{len(request.messages)} messages ({type(error).__name__}: {prompt.disguise.show(str(error))}).",
            remedy="Check that its chat template has one image token for each image.",
        ) from error
    if transcript is not None:
        transcript.rendered, transcript.given = prompt, reader.tokenizer.given
    return dict(inputs)


def pictures_for(request: Request, configured: PictureConfig) -> PictureConfig:
    """How large a request's pictures are shown to a model: its own wishes come first.

    Raises:
        InvalidRequestError: A wish that the configuration would not take either.
    """
    wishes = {
        name: wish for name in PictureConfig.model_fields if (wish := getattr(request, name)) is not None
    }
    if not wishes:
        return configured
    try:
        return PictureConfig(**{**configured.model_dump(), **wishes})
    except ValidationError as error:
        listed = ", ".join(f"{name}={wish!r:.60}" for name, wish in wishes.items())
        raise InvalidRequestError(
            f"The request's pictures cannot be shown with {listed} ({error.errors()[0]['msg']}).",
            remedy="Use whole numbers from 1 on, min_pixels at most max_pixels; None is the engine's.",
        ) from error


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
                remedy="Raise max_visual_tokens (Request, PictureConfig), or use another model.",
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
