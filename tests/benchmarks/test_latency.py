"""The arithmetic of benchmarks.latency, and that every comparison still runs; at sizes that say nothing."""

import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import latency_requests
from benchmarks.bench_pair import QUESTIONS, Timed, Weights, plain_generate
from benchmarks.latency import ROWS, ratios_table
from benchmarks.latency_figure import draw
from benchmarks.latency_passes import pruned_prefill, random_plan
from benchmarks.latency_profile import profile_escalation
from benchmarks.shapes import PAIRS, picture, processor
from benchmarks.timing import Comparison, speed_up_bound, take_turns
from sgl_engine.chat.text_stream import HALF
from sgl_engine.demo import demo_engine

TOKENS, ANSWER = 64, 3


@pytest.fixture(scope="module")
def timed() -> Timed:
    return Timed(Weights("tiny", torch.float32, "cpu"), TOKENS, ANSWER, repeats=1)


def test_ratio_is_of_medians_and_spread_is_of_rounds() -> None:
    outcome = Comparison("a / b", 0.5, "<=", (1.0, 2.0, 9.0, 2.0, 2.0), (4.0, 4.0, 4.0, 4.0, 40.0))
    assert outcome.ratio == 0.5
    assert outcome.spread == (0.25, 0.5)  # quartiles of 0.05, 0.25, 0.5, 0.5, 2.25
    assert outcome.passed is True


def test_spread_of_few_rounds_is_their_range() -> None:
    outcome = Comparison("a / b", 2.0, ">=", (1.0, 3.0), (1.0, 1.0))
    assert outcome.spread == (1.0, 3.0)


@pytest.mark.parametrize(
    ("ratio", "target", "sense", "passed"),
    [(1.1, 1.1, "<=", True), (1.2, 1.1, "<=", False), (3.0, 3.0, ">=", True), (2.9, 3.0, ">=", False)],
)
def test_which_side_of_the_target_is_good(ratio: float, target: float, sense: str, passed: bool) -> None:
    assert Comparison("a / b", target, sense, (ratio,), (1.0,)).passed is passed  # type: ignore[arg-type]  # one of two
    assert Comparison("a / b", None, "<=", (ratio,), (1.0,)).passed is None


def test_bound_divides_ratio_and_spread() -> None:
    outcome = Comparison("a / b", 0.9, ">=", (6.0, 9.0), (2.0, 2.0), bound=3.0)
    assert outcome.ratio == 1.25
    assert outcome.spread == (1.0, 1.5)


def test_sides_take_turns_and_preparation_is_not_timed() -> None:
    time, order = 0.0, []

    def side(name: str, seconds: float) -> object:
        def prepare(turn: int) -> object:
            nonlocal time
            time += 100.0

            def work() -> None:
                nonlocal time
                order.append(f"{name}{turn}")
                time += seconds * (turn + 1)

            return work

        return prepare

    first, second = take_turns(side("a", 1.0), side("b", 10.0), repeats=2, now=lambda: time)  # type: ignore[arg-type]
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert (first, second) == ((2.0, 3.0), (20.0, 30.0))  # round 0 is the warm-up
    order.clear()
    take_turns(side("a", 1.0), side("b", 1.0), repeats=2, now=lambda: time, swap=False, warm_up=0)  # type: ignore[arg-type]
    assert order == ["a0", "b0", "a1", "b1"]


def test_what_the_flops_allow(timed: Timed) -> None:
    assert speed_up_bound([100, 20], [40, 8]) == 2.5
    vlm = timed.large
    prompt = vlm.encode(timed.request())
    plan = random_plan(vlm, prompt)
    decoder = PAIRS["tiny"].large.decoder

    def layer(tokens: int) -> int:
        width, keys = decoder.hidden, decoder.hidden // decoder.heads * decoder.kv_heads
        matrices = 2 * width * width + 2 * width * keys + 3 * width * decoder.intermediate
        return 2 * tokens * matrices + 4 * tokens * tokens * width

    total, kept = len(prompt), len(plan.keep)
    assert (plan.layer, total - kept) == (1, TOKENS - TOKENS // 5)
    head = 2 * decoder.hidden * decoder.vocab
    expected = (decoder.layers * layer(total) + head) / (
        layer(total) + (decoder.layers - 1) * layer(kept) + head
    )
    [outcome] = pruned_prefill(timed)
    assert outcome.bound == pytest.approx(expected)


@pytest.mark.parametrize("name", list(ROWS))
def test_every_comparison_runs(name: str, timed: Timed) -> None:
    for outcome in ROWS[name](timed):
        assert outcome.ratio > 0.0
        assert len(outcome.first_s) == len(outcome.second_s) >= 1
    assert timed.small.text_model.config._attn_implementation == "sdpa"


def test_the_draft_is_accepted_whole(timed: Timed) -> None:
    [outcome] = ROWS["accepted-draft"](timed)
    assert outcome.note.endswith("accepted: 100% at least")


def test_a_step_without_products_runs() -> None:
    [outcome] = latency_requests.python_step(1, time.perf_counter, tokens=4)
    assert outcome.ratio > 0.0


def test_no_picture_of_a_batch_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo_engine()
    monkeypatch.setattr(latency_requests, "demo_engine", lambda: engine)
    [outcome] = latency_requests.batch(1, time.perf_counter, count=2)
    assert outcome.ratio > 0.0
    info = engine.cache_info()["small"]
    assert info.feature_misses == 2 * 2 * 2  # rounds, sides, requests
    assert (info.pixel_hits, info.feature_hits, info.prefix_hits) == (0, 0, 0)


def test_pictures_are_new_and_become_as_many_tokens_as_asked_for(timed: Timed) -> None:
    first, second = timed.picture(), timed.picture()
    assert first.tobytes() != second.tobytes()
    shape = PAIRS["tiny"].large
    assert picture(shape, TOKENS, 5).tobytes() == picture(shape, TOKENS, 5).tobytes()
    for vlm in (timed.small, timed.large):
        assert vlm.encode(timed.request()).num_visual_tokens == TOKENS
    with pytest.raises(SystemExit, match="33 visual tokens"):
        processor(shape, 33)


def test_plain_generate_is_what_the_engine_says_on_an_early_exit() -> None:
    timed = Timed(Weights("tiny", torch.float32, "cpu"), TOKENS, ANSWER, repeats=1)  # always the same picture
    engine, image = timed.engine(escalate=False), timed.picture()
    plain = plain_generate(timed.small, QUESTIONS[0], image, ANSWER)
    # Half a character at the end of an answer that is cut off is not written.
    assert engine.run(timed.request(0, image)).text == plain().rstrip(HALF)
    assert engine.run(timed.request(1, image)).text != ""
    assert plain_generate(timed.small, QUESTIONS[0], Image.new("RGB", image.size), ANSWER)() != plain()


def test_a_draft_is_what_the_small_model_is_taken_to_have_said(timed: Timed) -> None:
    engine = timed.engine(escalate=False)
    request = timed.request()
    own = engine.run(request).text
    engine.draft = torch.tensor([300, 301, 302])
    said = timed.small.text([300, 301, 302])
    assert engine.run(request).text == said != own


def test_stages_add_up(timed: Timed) -> None:
    profile = profile_escalation(timed)
    for stage in ("prefill_small", "consistency_small", "vision_large", "prefill_large", "decode_large"):
        assert profile.ms[stage] > 0.0, stage
    assert profile.total_ms == pytest.approx(sum(profile.ms.values()))
    assert "forward_batch" not in vars(timed.small)


def test_table_and_figure(tmp_path: Path, timed: Timed) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    outcome = Comparison("a / b", 0.5, "<=", (1.0, 2.0), (4.0, 5.0), note="said so")
    rows = [{"visual_tokens": 1024, **outcome.to_json()}]
    assert ratios_table(rows).row_count == 1
    draw(rows, [], tmp_path / "ratios.png")
    draw([], [profile_escalation(timed)], tmp_path / "stages.png")
    for name in ("ratios.png", "stages.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 500
