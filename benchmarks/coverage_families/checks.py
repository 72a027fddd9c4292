"""Runs one tiny model through the engine, and compares what comes out with the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.coverage_families.oracle import eager, masked_logits, own_logits, received_attention
from sgl_engine import VLM, EngineConfig, Message, Request, SGLEngine
from sgl_engine.attention import capture_attention
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import NO_REUSE
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.passes import run_large_pass
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning import keep_everything, plan_pruning, prune_visual_tokens
from sgl_engine.request import ImagePart

ANSWER = (65, 66, 67, 68)
LAYER = 1
"""K: from which layer on visual tokens are dropped."""
PLANS = (1, 2, 3)
"""Seeds of what is kept."""
NEAR = 2e-3
"""Greatest difference in float32, in standard deviations; a wrong row or position makes a tenth or more."""
NOISE = 2.0
"""In bfloat16: how often the model's own distance from itself in float32 the engine's may be.

Means over all rows; the model's own is the largest of several, the engine's the median of all plans. An
expert chosen by a hair is chosen otherwise in either, so single rows may be far off in both.
"""


WITHOUT_GENERATE = frozenset({"llama4"})
"""Whose ``generate`` fails in transformers 5.24.0: that of its language model answers instead."""


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without two equal regions."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


REQUESTS = {
    "one": Request.ask("What is it?", noise(96, 64)),
    "two": Request(
        (
            Message(
                "user",
                ("First", ImagePart(noise(64, 64)), "then this", ImagePart(noise(40, 72, 1)), "Equal?"),
            ),
        )
    ),
}


@dataclass
class Outcome:
    """What became of an architecture.

    Attributes:
        name: ``model_type``.
        verdict: "exact", "refused", "refused after loading", "wrong" or "fails".
        family: Who runs it; empty where nobody does.
        reason: In words, where it is not exact; else a remark, where there is one.
        figures: What was compared, and how far it was off.
    """

    name: str
    verdict: str
    family: str = ""
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def examine(name: str, model: Any, processor: Any) -> Outcome:
    """Runs every check, in float32 and then in bfloat16; ``model`` is left in bfloat16."""
    model = model.to(torch.bfloat16).float().eval()  # the same weights in both
    try:
        vlm = VLM(model, processor, name=name)
    except UnsupportedModelError as error:
        return Outcome(name, "refused", reason=str(error))
    family = vlm.family.name
    try:
        check_exactness(vlm)
    except UnsupportedModelError as error:
        return Outcome(name, "refused after loading", family, str(error))
    figures: dict[str, Any] = {}
    references: dict[str, Tensor] = {}
    for which, request in REQUESTS.items():
        for check, value in compare(vlm, vlm.encode(request), references, which):
            figures[f"{which} {check}"] = value
    figures["batch"], figures["reuse"] = _engine(vlm)
    wrong = wrong_ones(figures)
    if wrong:
        return Outcome(name, "wrong", family, str(wrong), figures)
    half = VLM(model.to(torch.bfloat16), processor, name=name)
    try:
        check_exactness(half)
    except UnsupportedModelError as error:
        return Outcome(name, "refused in bfloat16", family, str(error), figures)
    figures |= _compare_half(half, references)
    wrong = {key: value for key, value in figures.items() if key.endswith("bfloat16") and value > NOISE}
    return Outcome(name, "wrong in bfloat16" if wrong else "exact", family, str(wrong or ""), figures)


def wrong_ones(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What does not hold, or is too far off, in float32."""
    return {
        key: value for key, value in figures.items() if value is False or (value is not True and value > NEAR)
    }


def compare(vlm: VLM, prompt: EncodedPrompt, references: dict[str, Tensor], which: str) -> Any:
    """Yields names of checks and how far each is off, or whether it holds.

    Args:
        vlm: The model, in float32.
        prompt: What is asked.
        references: Filled with what the model itself says.
        which: A name for the prompt there.
    """
    plain = references[f"{which} plain"] = own_logits(vlm, prompt, ANSWER)
    yield "plain", _far(_engine_logits(vlm, prompt, None), plain)
    far = []
    for seed in PLANS:
        plan = _plan(prompt, seed)
        expected = masked_logits(vlm, prompt, ANSWER, layer=LAYER, keep=plan.keep.tolist())
        references[f"{which} {seed}"] = expected
        far.append(_far(_engine_logits(vlm, prompt, plan), expected))
    yield f"K = {LAYER}", max(far)
    with capture_attention(vlm, prompt) as recorder:
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)
    captured, expected_rows = recorder.sums().prefill, received_attention(vlm, prompt)
    paid = [layer for layer in range(vlm.num_layers) if bool(captured[layer].any())]
    yield "layers with attention", sorted(expected_rows) == paid
    expected = torch.stack([expected_rows[layer] for layer in sorted(expected_rows)])
    yield "capture", float((captured[sorted(expected_rows)] - expected).abs().max() / expected.mean())
    task = AnswerTask(prompt, 4, stop_at_eos=False)
    result = run_large_pass(vlm, task, keep_everything(prompt))
    yield "generate", result.generation.token_ids.tolist() == _generated(vlm, prompt)


def _compare_half(vlm: VLM, references: dict[str, Tensor]) -> dict[str, float]:
    """How often the model's own distance from float32 the engine's is."""
    own, ours = [], {}
    for which, request in REQUESTS.items():
        prompt = vlm.encode(request)
        exact = references[f"{which} plain"]
        own.append(_mean(own_logits(vlm, prompt, ANSWER), exact))
        with eager(vlm):
            own.append(_mean(own_logits(vlm, prompt, ANSWER), exact))
        ours[f"{which} plain in bfloat16"] = _mean(_engine_logits(vlm, prompt, None), exact)
        pruned = []
        for seed in PLANS:
            plan, exact = _plan(prompt, seed), references[f"{which} {seed}"]
            own.append(_mean(masked_logits(vlm, prompt, ANSWER, layer=LAYER, keep=plan.keep.tolist()), exact))
            pruned.append(_mean(_engine_logits(vlm, prompt, plan), exact))
        ours[f"{which} K = {LAYER} in bfloat16"] = median(pruned)
    return {name: value / max(own) for name, value in ours.items()}


@torch.inference_mode()
def _engine_logits(vlm: VLM, prompt: EncodedPrompt, plan: Any) -> Tensor:
    """The prompt, then answer tokens one, two and one at a time: (T + 1, vocab)."""
    cache, plan = vlm.new_cache(), plan or keep_everything(prompt)
    answer, first = torch.tensor(ANSWER), len(prompt)
    with prune_visual_tokens(vlm, plan):
        rows = [vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=cache)]
    for piece in answer.split([1, 2, 1]):
        with prune_visual_tokens(vlm, plan):
            given = vlm.embed_tokens(piece)
            rows.append(
                vlm.forward(given, prompt=prompt, first_position=first, cache=cache, logit_rows=len(piece))
            )
        first += len(piece)
    return torch.cat(rows)


def _plan(prompt: EncodedPrompt, seed: int) -> Any:
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(seed))
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=LAYER, keep_ratio=0.4)


def _far(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / max(float(expected.std()), 1e-6))


def _mean(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().mean())


def _generated(vlm: VLM, prompt: EncodedPrompt) -> list[int]:
    settings = vlm.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, None
    model, inputs, first = vlm.model, dict(prompt.inputs), len(prompt)
    if vlm.family.name in WITHOUT_GENERATE:
        model, inputs, first = model.language_model, {"inputs_embeds": vlm.embed(prompt)}, 0
        model.generation_config.eos_token_id = None
    try:
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    finally:
        settings.eos_token_id = before
    return [int(token) for token in ids[0, first:]]


def _engine(vlm: VLM) -> tuple[bool, bool]:
    """Whether a batch, and a second question about the same picture, say what single requests do."""
    picture = noise(64, 64)
    asked = [Request.ask(text, picture, max_new_tokens=3) for text in ("What is it?", "How many?")]
    with SGLEngine(vlm, vlm, EngineConfig(reuse=NO_REUSE).escalating("always")) as engine:
        single = [engine.run(request).text for request in asked]
        batch = [response.text for response in engine.run_batch(asked)]
    vlm.store.clear()
    with SGLEngine(vlm, vlm, EngineConfig().escalating("always")) as engine:
        again = [engine.run(request).text for request in asked]
    return batch == single, again == single
