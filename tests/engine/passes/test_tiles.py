"""Tiles that are left out: what is right says the model's own forward, their tokens masked in all layers."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from samples import noise
from tolerances import CONTROL, gap, of_logits, of_logprobs
from torch import Tensor
from whole_model import attention_of, masked_logits

from sgl_engine import VLM, EngineConfig, Message, PruningConfig, Request, SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_batch, run_large_pass, run_scoring_pass
from sgl_engine.passes.pictures import embed_pictures, run_towers
from sgl_engine.passes.prefill import find_tiles
from sgl_engine.prompt.encoded import EncodedPrompt, PromptBatch, PromptTiles
from sgl_engine.pruning import PruningPlan, keep_everything, plan_pruning
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.request import ImagePart
from sgl_engine.testing import TINY_FAMILIES, tiny_vlm

ANSWER = (20, 35, 11, 60, 42)
WITH_TILES = ("internvl", "idefics3", "llava_next", "llava_onevision")
IN_ONE_PIECE = ("gemma3", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl")
ONE = Request.ask("What is it?", noise(130, 96))
TWO = Request(
    (Message("user", ("First", ImagePart(noise(90, 44, 1)), "and", ImagePart(noise(99, 98, 2)), "So?")),)
)
REQUESTS = {"one picture": ONE, "two pictures": TWO}
REUSE = ReuseConfig(min_prefix_tokens=4)


@cache
def model(family: str) -> VLM:
    vlm = tiny_vlm(family, size="large", max_tiles=4)
    # A generated image token is text here, but the models' own forward over a whole sequence wants features.
    vlm.model.lm_head.weight.data[vlm.config.image_token_id] = 0
    return vlm


@cache
def encoded(family: str, request: str = "one picture") -> EncodedPrompt:
    return model(family).encode(REQUESTS[request])


def test_every_family_is_here() -> None:
    """SmolVLM is Idefics3 under another name (`test_smolvlm_is_idefics3_to_the_bit`)."""
    assert sorted((*WITH_TILES, *IN_ONE_PIECE, "smolvlm")) == sorted(TINY_FAMILIES)


def planned(
    vlm: VLM, prompt: EncodedPrompt, *, layer: int = 2, keep_ratio: float = 0.3, seed: int = 3, top: int = 1
) -> PruningPlan:
    """By random importance; as many tokens of each picture choose its tiles as `top` says."""
    tiles = find_tiles(vlm, prompt)
    assert tiles is not None
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(seed))
    importance = ImportanceMap(mass, prompt.spans, 1)
    plan = plan_pruning(prompt, importance, layer=layer, keep_ratio=keep_ratio, tiles=tiles, top_tokens=top)
    assert plan.skips_tiles
    return plan


def skipped(prompt: EncodedPrompt, plan: PruningPlan) -> list[int]:
    left, _ = plan.enter(prompt)
    assert left.part is not None
    return sorted(set(range(len(prompt))) - set(left.part.columns.tolist()))


def oracle(vlm: VLM, prompt: EncodedPrompt, plan: PruningPlan, answer: tuple[int, ...] = ANSWER) -> Tensor:
    """Logits of the last prompt row and of every answer token."""
    keep, skip = plan.keep.tolist(), skipped(prompt, plan)
    return masked_logits(vlm, prompt, answer, layer=plan.layer, keep=keep, skip=skip)[len(prompt) - 1 :]


def logits(vlm: VLM, left: EncodedPrompt, below: PruningPlan, steps: tuple[int, ...] = (3, 2)) -> Tensor:
    """Prefill of what enters, then the answer in steps of so many tokens."""
    cache_, done = vlm.new_cache(), 0
    embeddings = embed_pictures(vlm, left).embeddings
    with prune_visual_tokens(vlm, below):
        found = [vlm.forward(embeddings, prompt=left, first_position=0, cache=cache_)]
        for count in steps:
            step = vlm.embed_tokens(torch.tensor(ANSWER[done : done + count]))
            first = len(left) + done
            found.append(vlm.forward(step, prompt=left, first_position=first, cache=cache_, logit_rows=count))
            done += count
    return torch.cat(found)


@pytest.mark.parametrize("family", WITH_TILES)
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("layer", "keep_ratio"), [(0, 0.1), (2, 0.15), (2, 1.0)])
def test_what_is_left_is_computed_as_if_the_rest_were_masked(
    family: str, request_: str, implementation: str, layer: int, keep_ratio: float
) -> None:
    vlm, prompt = model(family), encoded(family, request_)
    if family == "llava_onevision" and request_ == "two pictures":
        assert find_tiles(vlm, prompt) is None  # several pictures come in one piece each
        return
    plan = planned(vlm, prompt, layer=layer, keep_ratio=keep_ratio)
    left, below = plan.enter(prompt)
    assert below.prunes == (keep_ratio < 1.0)
    with attention_of(vlm, implementation):
        got = logits(vlm, left, below)
    expected = oracle(vlm, prompt, plan)
    assert gap(got, expected) < of_logits(vlm)
    # Controls: the skipped tiles' tokens seen in the layers below K, and positions closed up.
    if layer:
        keep = plan.keep.tolist()
        seen = masked_logits(vlm, prompt, ANSWER, layer=layer, keep=keep)[len(prompt) - 1 :]
        assert gap(got, seen) > CONTROL * of_logits(vlm)
    closed_up = logits(vlm, replace(left, positions=None), below)
    assert gap(closed_up, expected) > CONTROL * of_logits(vlm)


def test_tokens_that_are_interpolated_across_a_border_need_both_tiles() -> None:
    """OneVision shrinks what has too many tokens: near a border, a token is made of both tiles."""
    vlm = tiny_vlm("llava_onevision", size="large", max_tiles=4)
    for each in (vlm.config, vlm.processor):
        each.vision_aspect_ratio = "anyres_max_1"
    prompt = vlm.encode(ONE)
    tiles = find_tiles(vlm, prompt)
    assert tiles is not None
    several = tiles.tokens.sum(dim=0) > 1
    assert several.any()
    assert not several.all()
    assert not tiles.made_of((1, 2))[several & tiles.tokens[3]].any()
    plan = planned(vlm, prompt)
    left, below = plan.enter(prompt)
    assert gap(logits(vlm, left, below), oracle(vlm, prompt, plan)) < of_logits(vlm)
    # The control: rows of the blank tile are wrong.
    whole = embed_pictures(vlm, prompt).embeddings
    assert left.part is not None
    got = embed_pictures(vlm, left).embeddings
    assert gap(got, whole[:, left.part.columns]) < 1e-5
    everything = replace(left.part, columns=torch.arange(len(prompt)))
    blank = embed_pictures(vlm, replace(prompt, part=everything)).embeddings
    assert gap(blank, whole) > 1e-3


@pytest.mark.parametrize("family", IN_ONE_PIECE)
def test_pictures_in_one_piece_stay_whole(family: str) -> None:
    assert find_tiles(model(family), encoded(family)) is None


def test_tiles_stay_where_they_cannot_be_left_out_exactly() -> None:
    vlm, prompt = model("internvl"), encoded("internvl")
    assert find_tiles(vlm, prompt) is not None
    # A prompt that ends with a visual token goes on from there.
    end = max(prompt.visual_positions) + 1
    cut = replace(prompt, input_ids=prompt.input_ids[:, :end])
    assert find_tiles(vlm, cut) is None
    # Flash attention takes a gap between positions for another prompt's beginning.
    config = vlm.text_model.config
    config._attn_implementation = "flash_attention_2"
    try:
        assert find_tiles(vlm, prompt) is None
    finally:
        config._attn_implementation = "sdpa"


def test_tiles_are_chosen_by_their_best_tokens() -> None:
    """Never by sums; of each picture at least one; as many tokens are kept as without."""
    vlm, prompt = model("internvl"), encoded("internvl", "two pictures")
    tiles = find_tiles(vlm, prompt)
    assert tiles is not None
    assert tiles.pictures == (0, 0, 0, 1, 1, 1, 1, 1)
    mass = torch.full((8, 16), 0.5)  # tiles whose sum is large
    mass[1, 3], mass[4, 0], mass[6, 9] = 0.9, 0.8, 0.7
    mass[3] = 0.01
    importance = ImportanceMap(mass.flatten(), prompt.spans, 1)

    def chosen(top: int) -> tuple[int, ...] | None:
        plan = plan_pruning(prompt, importance, layer=1, keep_ratio=0.2, tiles=tiles, top_tokens=top)
        assert plan.kept_visual_tokens == int(0.2 * 128)
        assert plan.entering_visual_tokens == 16 * len(plan.chosen_tiles or range(8))
        return plan.chosen_tiles

    assert chosen(1) == (1, 4)
    assert chosen(2) == (0, 1, 4, 6)
    assert chosen(128) is None  # all tiles: nothing is left out
    few = plan_pruning(prompt, importance, layer=1, keep_ratio=0.9, tiles=tiles, top_tokens=1)
    assert few.kept_visual_tokens == few.entering_visual_tokens == 32
    assert not few.prunes


def test_a_batch_leaves_out_other_tiles_of_each() -> None:
    """Different tiles, whole prompts beside them, drafts: each row as alone, each alone as the oracle."""
    vlm = model("internvl")
    prompts = [encoded("internvl"), encoded("internvl", "two pictures"), encoded("internvl")]
    plans = [planned(vlm, prompts[0], seed=1), planned(vlm, prompts[1], seed=2, top=2)]
    importance = ImportanceMap(torch.rand(prompts[2].num_visual_tokens), prompts[2].spans, 1)
    plans.append(plan_pruning(prompts[2], importance, layer=2, keep_ratio=0.3))
    alone = [
        run_large_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), plan)
        for prompt, plan in zip(prompts, plans, strict=True)
    ]
    for prompt, plan, result in zip(prompts[:2], plans, alone, strict=False):
        answer = tuple(result.generation.token_ids.tolist())
        rows = oracle(vlm, prompt, plan, answer)[:-1].log_softmax(dim=-1)
        expected = rows[range(len(answer)), list(answer)]
        assert gap(result.generation.logprobs, expected) < of_logprobs(vlm)
    for drafts in ((), tuple(alone[0].generation.token_ids.tolist()[:3])):
        tasks = [AnswerTask(prompt, 5, stop_at_eos=False, draft=drafts) for prompt in prompts]
        together = run_large_batch(vlm, tasks, plans)
        for one, row, plan in zip(alone, together, plans, strict=True):
            assert not isinstance(row, Exception)
            assert row.plan is plan
            assert torch.equal(row.generation.token_ids, one.generation.token_ids)
            assert gap(row.generation.logprobs, one.generation.logprobs) < of_logprobs(vlm)


@pytest.mark.parametrize("family", WITH_TILES)
def test_a_tile_that_is_needed_later_is_added_to_what_is_known(family: str) -> None:
    vlm = tiny_vlm(family, size="large", max_tiles=4)
    prompt = vlm.encode(ONE)
    tiles = find_tiles(vlm, prompt)
    assert tiles is not None
    whole = vlm.embed(prompt)

    def run(*chosen: int) -> int:
        """Embeds what is left with these tiles; returns on how many the tower ran."""
        plan = replace(keep_everything(prompt), tiles=tiles, chosen_tiles=chosen)
        left, _ = plan.enter(prompt)
        assert left.part is not None
        got = embed_pictures(vlm, left, REUSE)
        assert gap(got.embeddings, whole[:, left.part.columns]) < 1e-5
        assert got.known_pictures == int(not got.tower_patches)
        return len(got.tower_patches)

    assert [run(1), run(1), run(1, 2), run(2), run(0, 1, 2, 3)] == [1, 0, 1, 0, 2]
    # All of the picture: the tower runs on what is left of it, and then never again.
    everything = [embed_pictures(vlm, prompt, REUSE) for _ in range(2)]
    assert [len(each.tower_patches) for each in everything] == [len(tiles) - 4, 0]
    assert gap(everything[1].embeddings, whole) < 1e-5
    assert run(0, 3) == 0
    # Where all of it is known in one piece, no tile is run.
    vlm.store.clear()
    assert len(embed_pictures(vlm, prompt, REUSE).tower_patches) == len(tiles)
    assert run(2) == 0
    # The control: without reuse, every tile is.
    left, _ = replace(keep_everything(prompt), tiles=tiles, chosen_tiles=(0, 2)).enter(prompt)
    assert len(embed_pictures(vlm, left, NO_REUSE).tower_patches) == 2


@pytest.mark.parametrize("family", WITH_TILES)
def test_tiles_of_several_prompts_go_through_the_tower_together(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass; where that fails, each by itself: the features are the same."""
    vlm = tiny_vlm(family, size="large", max_tiles=4)
    prompts = [vlm.encode(Request.ask("What is it?", noise(130, 96, seed))) for seed in range(3)]
    plans = [planned(vlm, prompt, seed=5 + seed) for seed, prompt in enumerate(prompts)]
    entering = [plan.enter(prompt) for prompt, plan in zip(prompts, plans, strict=True)]
    alone = [embed_pictures(vlm, left).embeddings for left, _ in entering]
    given, most, original = list[int](), 9, type(vlm.family).tile_features

    def features(of: Any, core: Any, slices: Any) -> Tensor:
        given.append(slices["pixel_values"].shape[of.tile_axis])
        if given[-1] > most:
            raise MemoryError
        return original(of, core, slices)

    monkeypatch.setattr(type(vlm.family), "tile_features", features)
    for limit, passes in ((9, [3]), (2, [3, 1, 1, 1])):
        most = limit
        given.clear()
        vlm.store.clear()
        computed = run_towers(vlm, [left for left, _ in entering], ReuseConfig())
        for (left, _), expected in zip(entering, alone, strict=True):
            got = embed_pictures(vlm, left, ReuseConfig(), computed=computed)
            assert gap(got.embeddings, expected) < 1e-5
            assert len(got.tower_patches) == 1
        assert given == passes


def test_prefixes_with_other_tiles_are_told_apart() -> None:
    """A prefix is taken as far as the same tiles stand at the same positions, and no further."""
    vlm, prompt = tiny_vlm("internvl", size="large", max_tiles=4), encoded("internvl")
    tiles = find_tiles(vlm, prompt)
    known = {}
    for chosen in ((0, 2), (0, 2), (0, 3), (1, 2), (0,)):
        mass = torch.zeros(5, 16)
        mass[list(chosen), 3] = 1.0
        importance = ImportanceMap(mass.flatten(), prompt.spans, 1)
        plan = plan_pruning(prompt, importance, layer=3, keep_ratio=0.1, tiles=tiles, top_tokens=2)
        assert plan.chosen_tiles == chosen
        task = AnswerTask(prompt, 5, stop_at_eos=False)
        got = run_large_pass(vlm, task, plan, reuse=REUSE)
        fresh = run_large_pass(vlm, task, plan)
        known[chosen] = got.reused.tokens
        assert torch.equal(got.generation.token_ids, fresh.generation.token_ids)
        assert gap(got.generation.logprobs, fresh.generation.logprobs) < of_logprobs(vlm)
    start = prompt.spans[0].start
    # Up to the last visual token, whose row is always run; and where the tiles part ways.
    assert known == {(0, 2): start + 31, (0, 3): start + 16, (1, 2): start, (0,): start + 15}


def test_scores_are_those_of_the_masked_model() -> None:
    vlm, prompt = model("internvl"), encoded("internvl")
    plan = planned(vlm, prompt)
    [text] = [vlm.text(ANSWER)]
    ids = vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    result = run_scoring_pass(vlm, prompt, [text, "no"], plan=plan)
    rows = oracle(vlm, prompt, plan, tuple(ids))[:-1].log_softmax(dim=-1)
    expected = rows[range(len(ids)), ids]
    assert gap(torch.tensor(result.token_logprobs[0][:-1]), expected) < of_logprobs(vlm)
    unpruned = run_scoring_pass(vlm, prompt, [text, "no"], plan=keep_everything(prompt))
    assert gap(result.token_logprobs[0], unpruned.token_logprobs[0]) > CONTROL * of_logprobs(vlm)


def test_tiles_of_spans() -> None:
    prompt = encoded("internvl", "two pictures")
    tiles = PromptTiles.of(prompt.spans)
    assert tiles.by_picture(2) == [[0, 1, 2], [3, 4, 5, 6, 7]]
    assert tiles.by_picture(1) == [list(range(8))]
    assert tiles.tokens.sum(dim=1).tolist() == [16] * 8
    assert tiles.made_of((1,)).nonzero()[:, 0].tolist() == list(range(16, 32))


def test_positions_of_prompts_side_by_side() -> None:
    vlm, prompt = model("internvl"), encoded("internvl")
    left, _ = planned(vlm, prompt).enter(prompt)
    assert left.part is not None
    batch = PromptBatch.of([prompt, left])
    positions = batch.positions(0, len(prompt) + 2)
    assert positions[0].tolist() == list(range(len(prompt) + 2))
    own = [*left.part.columns.tolist(), len(prompt), len(prompt) + 1]
    assert positions[1].tolist() == [0] * (len(prompt) - len(left)) + own


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    small, large = (tiny_vlm(size=size, max_tiles=4) for size in ("small", "large"))
    config = EngineConfig(pruning=PruningConfig(tiles=1), reuse=NO_REUSE).escalating("always")
    return SGLEngine(small, large, config)


def test_the_engine_reports_what_it_left_out(engine: SGLEngine) -> None:
    question = Request.ask("What is it?", noise(130, 96), max_new_tokens=6)
    response = engine.run(question)
    report, plan = response.report, response.plan
    assert plan is not None
    assert (report.tiles, report.kept_tiles, report.encoded_tiles) == (5, 1, 1)
    assert plan.chosen_tiles is not None
    assert len(plan.chosen_tiles) == 1
    # Tower operations of four of five tiles are saved, and counted.
    whole = engine.with_config(EngineConfig(reuse=NO_REUSE).escalating("always")).run(question).report
    assert (whole.tiles, whole.kept_tiles, whole.encoded_tiles, whole.skipped_tower_tflops) == (5, 5, 5, 0.0)
    saved = report.skipped_tower_tflops
    assert saved is not None
    assert report.large_tflops < whole.large_tflops - saved
    assert report.average_retention is not None
    assert whole.average_retention is not None
    assert report.average_retention < whole.average_retention
    assert report.large_alone_tflops == pytest.approx(whole.large_alone_tflops, rel=0.1)
    # In a batch, as a stream, and with given answers.
    [batched, _] = engine.run_batch([question, Request.ask("And now?", noise(64, 64), max_new_tokens=6)])
    assert not isinstance(batched, Exception)
    assert batched.text == response.text
    assert list(engine.stream(question))[-1].text == response.text  # type: ignore[union-attr]
    scores = engine.score_answers(question, ["yes", "no"])
    assert (scores.report.tiles, scores.report.encoded_tiles) == (5, 1)


def test_known_tiles_are_not_encoded_again(engine: SGLEngine) -> None:
    knowing = engine.with_config(engine.config.model_copy(update={"reuse": REUSE}))
    question = Request.ask("What is it?", noise(130, 97), max_new_tokens=2)
    reports = [knowing.run(question).report for _ in range(2)]
    assert [report.encoded_tiles for report in reports] == [1, 0]
    assert [report.large_known_pictures for report in reports] == [0, 1]
    assert reports[1].large_tflops < reports[0].large_tflops
