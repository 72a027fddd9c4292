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

from sgl_engine.attention.capture import capture_attention, scoring_of
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.attention.recorder import capped, probabilities
from sgl_engine.decoding.loop import Rewinding
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.families.own import as_the_tower
from sgl_engine.passes.exactness.precise import float32_copy, is_precise
from sgl_engine.prompt.encoded import TOKEN_INPUTS, EncodedPrompt
from sgl_engine.pruning.patch import last_prunable_layer, prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan, plan_pruning
from sgl_engine.request import Request

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

_SIDE_PIXELS = 64

_STEPS = (1, 3)  # answer tokens per forward

_TOLERANCE = 1e-4
"""Mean difference in float32, divided by the standard deviation; a wrong row makes a hundredth or more."""

_NOISE = 3.0
"""How far, in half precision, the engine may be from the model, where the model is 1 from its reference."""

_LEAST_NOISE = 0.03

_ROUGHLY = 0.5
"""The same difference of a whole model in half precision, whose layers were compared in float32 before."""


def check_exactness(vlm: VLM) -> None:
    """Runs the model on a small picture, a dozen times, unless it is checked already, or needs no check.

    Raises:
        UnsupportedModelError: The engine and the model's own forward differ, or the model fails.
    """
    if vlm.is_checked:
        return
    try:
        with vlm.exclusive():
            precise = float32_copy(vlm)
            fault = _first_fault(precise or vlm)
            if fault is None and precise is not None and not _runs_as_it_is(vlm):
                fault = f"in {vlm.text_model.dtype} it gives other logits than its own forward"
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
    prompt, answer = _question(vlm)
    if prompt.num_visual_tokens < 4:
        return f"a picture becomes {prompt.num_visual_tokens} image tokens"
    plain = _own_logits(vlm, prompt, answer)
    # First of all, the reference itself: does it attend as the model does?
    with reference_attention(vlm):
        reference = _own_logits(vlm, prompt, answer)
    noise = _difference(reference, plain)
    tolerance = _TOLERANCE if is_precise(vlm) else max(_LEAST_NOISE, _NOISE * noise)
    if noise > max(tolerance, _TOLERANCE if is_precise(vlm) else _ROUGHLY):
        return "a plain reference of its attention gives other logits"
    for asked, own in ((prompt, plain), (text := _text_alone(vlm, prompt), _own_logits(vlm, text, answer))):
        if _difference(_engine_logits(vlm, asked, answer, None), own) > tolerance:
            return "embedding and decoding apart gives other logits than its own forward"
    first, last = vlm.family.first_prunable_layer, last_prunable_layer(vlm)
    for layer in sorted({first, min(last, max(first, 1)), min(last, max(first, vlm.num_layers // 2))}):
        plan = _half(prompt, layer)
        hidden = sorted(set(range(len(prompt))) - set(plan.keep.tolist()))
        with reference_attention(vlm, layer=layer, hidden=hidden):
            expected = _own_logits(vlm, prompt, answer)
        if _difference(_engine_logits(vlm, prompt, answer, plan), expected) > tolerance:
            return f"pruned at layer {layer}, it gives other logits than with the dropped tokens masked"
    return (
        None
        if _sums_agree(vlm, prompt, tolerance)
        else "the attention that is captured is not the attention that it pays"
    )


def _question(vlm: VLM) -> tuple[EncodedPrompt, Tensor]:
    """A prompt about a small picture, and an answer: any tokens will do, their logits are compared."""
    prompt = vlm.encode(Request.ask("What is it?", _picture()))
    return prompt, prompt.input_ids[0, -sum(_STEPS) :]


def _text_alone(vlm: VLM, prompt: EncodedPrompt) -> EncodedPrompt:
    """What comes after the picture, as a prompt of its own."""
    after = max(prompt.visual_positions) + 1
    columns = slice(after, None) if after < len(prompt) else slice(1)
    given = {"input_ids", "attention_mask", "token_type_ids"} & set(prompt.inputs)
    return vlm.prompt({name: prompt.inputs[name][:, columns] for name in given})


def _runs_as_it_is(vlm: VLM) -> bool:
    """Whether the whole model, in its own precision, does roughly what its own forward does."""
    prompt, answer = _question(vlm)
    plain = _own_logits(vlm, prompt, answer)
    return _difference(_engine_logits(vlm, prompt, answer, None), plain) <= _ROUGHLY


def _own_logits(vlm: VLM, prompt: EncodedPrompt, answer: Tensor) -> Tensor:
    """Runs the model's own forward over prompt and answer; returns logits (T + 1, vocab), float32.

    The rows are those of the prompt's last token and of the T answer tokens.
    """
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat((prompt.input_ids, answer[None]), dim=1)
    for name in TOKEN_INPUTS - {"input_ids"}:
        if name in inputs:
            value = 1 if name == "attention_mask" else vlm.family.kind_of_answers  # the answer is seen
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(answer)), value=value)
    with torch.inference_mode():
        logits = vlm.family.whole_logits(vlm.model, as_the_tower(vlm.model, inputs))
    return logits[0, len(prompt) - 1 :].float()


def _engine_logits(vlm: VLM, prompt: EncodedPrompt, answer: Tensor, plan: PruningPlan | None) -> Tensor:
    """Runs the engine's forwards; returns two versions of the logits, (2, T + 1, vocab).

    In the first, the answer is read at once, with the prompt where the cache can be cut; in the second, in
    steps of several sizes, after the cache has gone back to the prompt's end.
    """
    plan, cache = plan or _half(prompt, 0, keep_ratio=1.0), vlm.new_cache()
    rewinding = Rewinding(cache, enabled=True)

    def forward(embeddings: Tensor, first: int, rows: int) -> Tensor:
        with prune_visual_tokens(vlm, plan):
            return vlm.forward(embeddings, prompt=prompt, first_position=first, cache=cache, logit_rows=rows)

    if rewinding.crops:
        at_once = forward(vlm.append_tokens(vlm.embed(prompt), answer), 0, len(answer) + 1)
    else:  # a recurrence goes back to where a forward began, so the answer has one of its own
        at_once = forward(vlm.embed(prompt), 0, 1)
        rewinding.mark(len(prompt), guesses=True)
        at_once = torch.cat((at_once, forward(vlm.embed_tokens(answer), len(prompt), len(answer))))
    first, stepwise = rewinding.back_to(len(prompt), len(prompt) + len(answer)), [at_once[:1]]
    for piece in answer.split(list(_STEPS)):
        stepwise.append(forward(vlm.embed_tokens(piece), first, len(piece)))
        first += len(piece)
    return torch.stack((at_once, torch.cat(stepwise)))


def _sums_agree(vlm: VLM, prompt: EncodedPrompt, tolerance: float) -> bool:
    """Compares the recorder's sums with whole maps of probabilities, added up."""
    visual = list(prompt.visual_positions)
    embeddings = vlm.embed(prompt)
    with capture_attention(vlm, prompt) as recorder:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    with reference_attention(vlm, first_row=visual[-1]) as received:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    captured, recurrent = recorder.sums().prefill, _recurrent(vlm)
    attending = [layer for layer in range(vlm.num_layers) if layer not in recurrent]
    if sorted(received) != attending:
        return False  # some layers attend in another way, which neither the recorder nor the hooks know
    expected = torch.stack([received[layer][visual].float().cpu() for layer in attending])
    return _difference(captured[attending], expected) <= tolerance


def _recurrent(vlm: VLM) -> dict[int, Any]:
    """Layers that have a recurrence instead of attention: the module that mixes tokens in each."""
    linear = [layer for layer, is_linear in enumerate(vlm.new_cache().is_linear) if is_linear]
    layers = vlm.family.decoder_layers(vlm.model)
    return {layer: vlm.family.recurrence(layers[layer]) for layer in linear if layer < len(layers)}


def _half(prompt: EncodedPrompt, layer: int, keep_ratio: float = 0.5) -> PruningPlan:
    """Plans to keep a random half of the visual tokens, always the same one."""
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(0))
    importance = ImportanceMap(mass, prompt.spans, 1)
    return plan_pruning(prompt, importance, layer=layer, keep_ratio=keep_ratio)


def _difference(got: Tensor, expected: Tensor) -> float:
    """The mean difference, as a part of how much the expected values vary."""
    return float((got - expected).abs().mean() / expected.std().clamp(min=1e-6))


def _picture() -> Image.Image:
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE_PIXELS, _SIDE_PIXELS, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _unsupported(vlm: VLM, reason: str) -> UnsupportedModelError:
    decoder = vlm.text_model.config.model_type
    return UnsupportedModelError(
        f"{vlm.name} has the architecture {vlm.config.model_type!r} with the decoder {decoder!r}, which no "
        f"family is known to run, and {reason}.",
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
    config = vlm.text_model.config
    original = config._attn_implementation  # noqa: SLF001  # transformers has no public setter for one config

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]  # query heads that share a key head
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scoring = scoring_of(original, settings)
        scores = capped(query.float() @ key.float().transpose(2, 3) * scaling, scoring.softcap) + mask
        if columns and module.layer_idx >= layer:
            own = scores.diagonal(dim1=-2, dim2=-1).clone()
            scores[..., columns] = torch.finfo(scores.dtype).min
            # A hidden row still sees itself: softmax over nothing would be NaN.
            scores.diagonal(dim1=-2, dim2=-1).copy_(own)
        paid = probabilities(scores, scoring.sinks)
        received[module.layer_idx] = paid[0, :, first_row:].sum(dim=(0, 1))
        return (paid.to(value.dtype) @ value).transpose(1, 2).contiguous(), paid

    AttentionMaskInterface.register("sgl_reference", eager_mask)
    AttentionInterface.register("sgl_reference", attend)
    mixers = [mixer for index, mixer in _recurrent(vlm).items() if index >= layer] if columns else []
    config._attn_implementation = "sgl_reference"  # noqa: SLF001
    try:
        for mixer in mixers:  # no mask hides a row from a recurrence: it runs on the others
            mixer.forward = _without_rows(mixer.forward, columns)
        yield received
    finally:
        for mixer in mixers:
            mixer.__dict__.pop("forward", None)
        config._attn_implementation = original  # noqa: SLF001
        # Registered names stay; without this one, the name would hold on to what was received.
        AttentionInterface.register("sgl_reference", _left_behind)


def _without_rows(forward: Any, hidden: Sequence[int]) -> Any:
    """A recurrence over all rows but some, which become zero and are never read."""

    def run(hidden_states: Tensor, *args: Any, **settings: Any) -> Any:
        left = torch.tensor(sorted(set(range(hidden_states.shape[1])) - set(hidden)))
        left = left.to(hidden_states.device)
        settings = {**settings, "attention_mask": None} if "attention_mask" in settings else settings
        output = torch.zeros_like(hidden_states)
        return output.index_copy(1, left, forward(hidden_states[:, left], *args, **settings))

    return run


def _left_behind(*_: Any, **__: Any) -> Any:
    """Stands in for the reference once its context has ended."""
    raise RuntimeError("reference_attention has ended")
