"""Comparisons of single passes: recording, consistency, pruned prefill, decoding (``benchmarks.latency``)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from benchmarks.bench_pair import Timed
from benchmarks.timing import Comparison, Side, speed_up_bound
from sgl_engine import VLM
from sgl_engine.attention.capture import capture_attention
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import PRESETS
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning import plan_pruning
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.report import cost

if TYPE_CHECKING:
    from torch import Tensor

DECODE_STEPS = 4  # timed together


def capture(timed: Timed) -> list[Comparison]:
    """What recording attention costs."""
    vlm, (prompt, embeddings) = timed.small, _embedded(timed, timed.small)

    def recorded(_: int) -> Callable[[], object]:
        def work() -> None:
            with capture_attention(vlm, prompt) as recorder:
                vlm.forward(embeddings, prompt=prompt, first_position=0, cache=vlm.new_cache())
            recorder.sums()

        return work

    seconds = timed.take_turns(recorded, _prefill(vlm, prompt, embeddings))
    return [Comparison("small prefill with capture / plain SDPA prefill", 1.10, "<=", *seconds)]


def eager(timed: Timed) -> list[Comparison]:
    """The obvious way to the same attention sums."""
    vlm, (prompt, embeddings) = timed.small, _embedded(timed, timed.small)
    config, rows = vlm.text_model.config, len(prompt) - max(prompt.visual_positions)
    visual = torch.tensor(prompt.visual_positions, device=vlm.device)

    def whole(_: int) -> Callable[[], object]:
        def work() -> object:
            original = config._attn_implementation  # noqa: SLF001  # no public setter for one config
            config._attn_implementation = "eager"  # noqa: SLF001
            try:
                with torch.inference_mode():
                    positions = prompt.positions
                    output = vlm.text_model(
                        inputs_embeds=embeddings,
                        position_ids=positions,
                        cache=vlm.new_cache(),
                        use_cache=True,
                        output_attentions=True,
                    )
                    logits = vlm.model.get_output_embeddings()(output.last_hidden_state[:, -1:])
                    sums = [part[0, :, -rows:, visual].float().sum(dim=(0, 1)) for part in output.attentions]
                    return logits, torch.stack(sums)
            finally:
                config._attn_implementation = original  # noqa: SLF001

        return work

    def ours(_: int) -> Callable[[], object]:
        def work() -> object:
            with capture_attention(vlm, prompt) as recorder:
                logits = vlm.forward(embeddings, prompt=prompt, first_position=0, cache=vlm.new_cache())
            return logits, recorder.sums()

        return work

    seconds = timed.take_turns(whole, ours)
    return [Comparison("eager output_attentions prefill / ours", 3.0, ">=", *seconds)]


def consistency(timed: Timed) -> list[Comparison]:
    """From the small pass's own clock, so both sides are of one run."""
    first, second = [], []
    for _ in range(1 + timed.repeats):
        prompt = timed.small.encode(timed.request())
        stages = run_small_pass(timed.small, AnswerTask(prompt, timed.answer_tokens)).stage_ms
        first.append(stages["consistency"] / 1e3)
        second.append(sum(ms for stage, ms in stages.items() if stage != "consistency") / 1e3)
    return [
        Comparison(
            "consistency pass / small pass",
            0.10,
            "<=",
            tuple(first[1:]),
            tuple(second[1:]),
            note="small pass: tower, prefill and decoding, without the consistency pass",
        )
    ]


def pruned_prefill(timed: Timed) -> list[Comparison]:
    """Unpruned over pruned, over what operations allow."""
    vlm, (prompt, embeddings) = timed.large, _embedded(timed, timed.large)
    plan = random_plan(vlm, prompt)
    decoder = vlm.shape.decoder
    full, reduced = (
        cost.forward_flops(decoder, cost.tokens_per_layer(len(prompt), each, decoder.layers), logit_rows=1)
        for each in (None, plan)
    )
    bound = speed_up_bound([full], [reduced])
    unpruned = _prefill(vlm, prompt, embeddings)
    pruned = _prefill(vlm, prompt, embeddings, lambda: prune_visual_tokens(vlm, plan))
    seconds = timed.take_turns(unpruned, pruned)
    return [
        Comparison(
            "pruned large prefill speed-up / what the FLOPs allow",
            0.90,
            ">=",
            *seconds,
            bound=bound,
            note=f"35 %: layer {plan.layer} of {decoder.layers}, {plan.kept_visual_tokens} visual tokens "
            f"kept; the FLOPs allow {bound:.2f}",
        )
    ]


def decode_step(timed: Timed) -> list[Comparison]:
    """One token after a pruned prefill and after an unpruned one."""
    vlm, (prompt, embeddings) = timed.large, _embedded(timed, timed.large)
    token = vlm.embed_tokens(torch.tensor([[7]]))
    plan = random_plan(vlm, prompt)

    def step(patch: Callable[[], AbstractContextManager[None]]) -> Side:
        cache, position = vlm.new_cache(), len(prompt)
        with patch():
            vlm.forward(embeddings, prompt=prompt, first_position=0, cache=cache)

        def side(_: int) -> Callable[[], object]:
            def work() -> None:
                nonlocal position
                for _ in range(DECODE_STEPS):
                    with patch():  # entered anew for every token, as in generation
                        vlm.forward(token, prompt=prompt, first_position=position, cache=cache)
                    position += 1

            return work

        return side

    seconds = timed.take_turns(step(lambda: prune_visual_tokens(vlm, plan)), step(nullcontext))
    per_step = [tuple(each / DECODE_STEPS for each in side) for side in seconds]
    return [Comparison("large decode step, pruned / unpruned", 1.00, "<=", per_step[0], per_step[1])]


def random_plan(vlm: VLM, prompt: EncodedPrompt) -> PruningPlan:
    """The default operating point; which tokens are kept makes no difference to time."""
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(prompt.num_visual_tokens, generator=generator)
    preset = PRESETS["35%"]
    return plan_pruning(
        prompt,
        ImportanceMap(mass, prompt.spans, num_queries=1),
        layer=max(preset.layer(vlm.num_layers), vlm.family.first_prunable_layer),
        keep_ratio=preset.keep_ratio,
    )


def _embedded(timed: Timed, vlm: VLM) -> tuple[EncodedPrompt, Tensor]:
    prompt = vlm.encode(timed.request())
    return prompt, vlm.embed(prompt)


def _prefill(
    vlm: VLM,
    prompt: EncodedPrompt,
    embeddings: Tensor,
    patch: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Side:
    def side(_: int) -> Callable[[], object]:
        def work() -> None:
            with patch():
                vlm.forward(embeddings, prompt=prompt, first_position=0, cache=vlm.new_cache())

        return work

    return side
