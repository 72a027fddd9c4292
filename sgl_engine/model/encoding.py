"""Requests, or what a processor made of one -> EncodedPrompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from sgl_engine.config import LimitsConfig, PictureConfig, ReuseConfig
from sgl_engine.errors import InvalidRequestError, PromptTooLongError
from sgl_engine.model.pixels import known_pixels
from sgl_engine.model.processor import check_visual_tokens, loaded_sizes, process, resized, shrink_factor
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.prompt.images import resolve_images
from sgl_engine.prompt.texts import check_lengths
from sgl_engine.request import Request, check_wanted

if TYPE_CHECKING:
    from torch import Tensor

VLM: TypeAlias = Any
"""A ``model.vlm.VLM``, which imports this module."""


def encode(
    vlm: VLM, request: Request, limits: LimitsConfig, reuse: ReuseConfig, pictures: PictureConfig
) -> EncodedPrompt:
    """Loads the request's images, and turns messages into tokens and pixels; see ``VLM.encode``."""
    # Measured first: what cannot fit is not read, loaded or tokenized.
    check_lengths(request, limits, vlm.processor.tokenizer, vlm.context_tokens, vlm.name)
    processor = resized(vlm.family, vlm.config, vlm.processor, pictures)
    shrink = partial(shrink_factor, vlm.family, vlm.config, processor)
    loaded = resolve_images(request, limits, shrink)
    image_token = vlm.family.image_text(vlm.processor, vlm.config)
    check_wanted(request, "before the processor read it")
    waiting = partial(check_wanted, request, "while the processor read another request")
    # Tokenizers keep padding and truncation as state, so one thread at a time uses the processor.
    with vlm.processing(waiting), known_pixels(processor, vlm.store, reuse):
        inputs = process(processor, loaded, image_token=image_token)
    prompt = wrap_inputs(vlm, processor, inputs, loaded_sizes(loaded))
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
    moved = {key: value.to(vlm.device) for key, value in inputs.items()}
    return EncodedPrompt(
        inputs=moved,
        input_ids=moved["input_ids"],
        spans=spans,
        positions=vlm.family.positions(vlm.model, moved),
        picture_axes=vlm.family.picture_axes(inputs, spans),
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
