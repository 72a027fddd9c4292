"""Checks, before its first use, that a model without a family of its own is captured and pruned exactly.

On a small picture, what the engine does is compared with the model's own forward over whole sequences, whose
attention hides positions from the layers that are to be pruned. The engine embeds; reads an answer with the
prompt, as a draft is read, and goes back behind it; decodes on a ragged cache, in steps of one token and of
several; prunes at three depths; and adds attention up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sgl_engine.attention.capture import capture_attention
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.loop import Rewinding
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan, plan_pruning
from sgl_engine.request import Request

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

_SIDE_PIXELS = 64

_STEPS = (1, 3)  # answer tokens per forward

# Mean difference, divided by the standard deviation; a wrong row or position makes a tenth or more.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}

_COARSE_TOLERANCE = 0.03  # in half precision

_TOKEN_KINDS = ("attention_mask", "mm_token_type_ids", "token_type_ids")


def check_exactness(vlm: VLM) -> None:
    """Runs the model on a small picture, a dozen times, unless it is checked already, or needs no check.

    Raises:
        UnsupportedModelError: The engine and the model's own forward differ, or the model fails.
    """
    if vlm.is_checked:
        return
    try:
        with vlm.exclusive():
            fault = _first_fault(vlm)
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        AssertionError,
    ) as error:  # an unknown architecture may fail anywhere, in code that expects something else of it
        raise _unsupported(vlm, f"it fails with {type(error).__name__}: {error}") from error
    if fault is not None:
        raise _unsupported(vlm, fault)
    vlm.is_checked = True


def _first_fault(vlm: VLM) -> str | None:
    """Compares step by step; returns what is wrong first, as the end of a sentence, or None."""
    prompt = vlm.encode(Request.ask("What is it?", _picture()))
    if prompt.num_visual_tokens < 4:
        return f"a picture becomes {prompt.num_visual_tokens} image tokens"
    # Any tokens will do as an answer: its logits are compared, not its meaning.
    answer = prompt.input_ids[0, -sum(_STEPS) :]
    dtype = vlm.text_model.dtype
    plain = _own_logits(vlm, prompt, answer)
    # First of all, the reference itself: does it attend as the model does?
    with reference_attention(vlm):
        if not _equal(_own_logits(vlm, prompt, answer), plain, dtype):
            return "a plain reference of its attention gives other logits"
    if not _equal(_engine_logits(vlm, prompt, answer, None), plain, dtype):
        return "embedding and decoding apart gives other logits than its own forward"
    for layer in sorted({0, 1, vlm.num_layers // 2}):
        plan = _half(prompt, layer)
        hidden = sorted(set(range(len(prompt))) - set(plan.keep.tolist()))
        with reference_attention(vlm, layer=layer, hidden=hidden):
            expected = _own_logits(vlm, prompt, answer)
        if not _equal(_engine_logits(vlm, prompt, answer, plan), expected, dtype):
            return f"pruned at layer {layer}, it gives other logits than with the dropped tokens masked"
    return (
        None
        if _sums_agree(vlm, prompt)
        else "the attention that is captured is not the attention that it pays"
    )


def _own_logits(vlm: VLM, prompt: EncodedPrompt, answer: Tensor) -> Tensor:
    """Runs the model's own forward over prompt and answer; returns logits (T + 1, vocab), float32.

    The rows are those of the prompt's last token and of the T answer tokens.
    """
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat((prompt.input_ids, answer[None]), dim=1)
    for name in _TOKEN_KINDS:
        if name in inputs:
            value = int(name == "attention_mask")  # the answer is text, of kind 0, and is seen
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(answer)), value=value)
    with torch.inference_mode():
        logits: Tensor = vlm.model(**inputs, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


def _engine_logits(vlm: VLM, prompt: EncodedPrompt, answer: Tensor, plan: PruningPlan | None) -> Tensor:
    """Runs the engine's forwards; returns two versions of the logits, (2, T + 1, vocab).

    In the first, the answer is read at once with the prompt; in the second, in steps of several sizes, after
    the cache has gone back to the prompt's end.
    """
    plan, cache = plan or _half(prompt, 0, keep_ratio=1.0), vlm.new_cache()
    rewinding = Rewinding(cache, enabled=True)

    def forward(embeddings: Tensor, first: int, rows: int) -> Tensor:
        with prune_visual_tokens(vlm, plan):
            return vlm.forward(embeddings, prompt=prompt, first_position=first, cache=cache, logit_rows=rows)

    at_once = forward(vlm.append_tokens(vlm.embed(prompt), answer), 0, len(answer) + 1)
    first, stepwise = rewinding.back_to(len(prompt), len(prompt) + len(answer)), [at_once[:1]]
    for piece in answer.split(list(_STEPS)):
        stepwise.append(forward(vlm.embed_tokens(piece), first, len(piece)))
        first += len(piece)
    return torch.stack((at_once, torch.cat(stepwise)))


def _sums_agree(vlm: VLM, prompt: EncodedPrompt) -> bool:
    """Compares the recorder's sums with whole maps of probabilities, added up."""
    visual = list(prompt.visual_positions)
    embeddings = vlm.embed(prompt)
    with capture_attention(vlm, prompt) as recorder:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    with reference_attention(vlm, first_row=visual[-1]) as received:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    captured = recorder.sums().prefill
    if sorted(received) != list(range(vlm.num_layers)):
        return False  # some layers attend in another way, which neither the recorder nor the hooks know
    expected = torch.stack([received[layer][visual].float().cpu() for layer in range(vlm.num_layers)])
    return _equal(captured, expected, vlm.text_model.dtype)


def _half(prompt: EncodedPrompt, layer: int, keep_ratio: float = 0.5) -> PruningPlan:
    """Plans to keep a random half of the visual tokens, always the same one."""
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(0))
    importance = ImportanceMap(mass, prompt.spans, 1)
    return plan_pruning(prompt, importance, layer=layer, keep_ratio=keep_ratio)


def _equal(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether the mean difference is a small part of how much the expected values vary."""
    tolerance = _TOLERANCE.get(dtype, _COARSE_TOLERANCE) * max(float(expected.std()), 1e-6)
    return float((got - expected).abs().mean()) <= tolerance


def _picture() -> Image.Image:
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE_PIXELS, _SIDE_PIXELS, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _unsupported(vlm: VLM, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{vlm.name} has the architecture {vlm.config.model_type!r}, which has no family of its own, "
        f"and {reason}.",
        remedy='Use a supported family (docs/families.md), or write one (CONTRIBUTING.md, "An architecture '
        'family").',
    )


@contextmanager
def reference_attention(
    vlm: VLM, *, layer: int = 0, hidden: Sequence[int] = (), first_row: int = 0
) -> Iterator[dict[int, Tensor]]:
    """Attends the slow, obvious way, to compare the fast ones with: whole probabilities, no cache.

    Within the context the text model runs softmax attention of plain matrix products, in which the layers
    from ``layer`` on do not see the positions ``hidden``. Rows of these are computed too, and never read.

    Args:
        vlm: The model; it must be run on whole sequences.
        layer: First layer that does not see ``hidden``.
        hidden: Positions that stay invisible.
        first_row: First row whose attention is added up.

    Yields:
        Layer -> attention that each position received, summed over heads and rows, (N,); filled as it runs.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    received: dict[int, Tensor] = {}
    columns = list(hidden)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]  # query heads that share a key head
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query.float() @ key.float().transpose(2, 3) * scaling + mask
        if columns and module.layer_idx >= layer:
            own = scores.diagonal(dim1=-2, dim2=-1).clone()
            scores[..., columns] = torch.finfo(scores.dtype).min
            # A hidden row still sees itself: softmax over nothing would be NaN.
            scores.diagonal(dim1=-2, dim2=-1).copy_(own)
        probabilities = scores.softmax(dim=-1)
        received[module.layer_idx] = probabilities[0, :, first_row:].sum(dim=(0, 1))
        return (probabilities.to(value.dtype) @ value).transpose(1, 2).contiguous(), probabilities

    config = vlm.text_model.config
    original = config._attn_implementation  # noqa: SLF001  # transformers has no public setter for one config
    AttentionMaskInterface.register("sgl_reference", eager_mask)
    AttentionInterface.register("sgl_reference", attend)
    config._attn_implementation = "sgl_reference"  # noqa: SLF001
    try:
        yield received
    finally:
        config._attn_implementation = original  # noqa: SLF001
        # Registered names stay; without this one, the name would hold on to what was received.
        AttentionInterface.register("sgl_reference", _left_behind)


def _left_behind(*_: Any, **__: Any) -> Any:
    """Stands in for the reference once its context has ended."""
    raise RuntimeError("reference_attention has ended")
