"""Each picture runs each vision tower once: within a request, and across requests while there is room."""

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracles import count_processed, exploding, traces
from samples import noise
from scheduling import until
from test_cost import counted
from tolerances import gap, of_hidden, of_logprobs, relative_gap

from sgl_engine import EngineConfig, Message, Request, Response, SGLEngine
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.model.store import ReuseStore
from sgl_engine.model.vlm import VLM
from sgl_engine.passes import run_small_pass
from sgl_engine.passes.pictures import embed_pictures
from sgl_engine.passes.small import SmallPassResult
from sgl_engine.report.cost import small_pass_flops
from sgl_engine.request import ImagePart
from sgl_engine.testing import tiny_vlm

PICTURE = noise(60, 50)
REUSE = ReuseConfig(min_prefix_tokens=1)
TOWERS = ("vision_tower", "visual", "vision_model")


def ask(question: str, *pictures: Any, tokens: int = 4) -> Request:
    return Request.ask(question, *(pictures or (PICTURE,)), max_new_tokens=tokens)


@contextmanager
def tower_runs(vlm: VLM) -> Iterator[list[int]]:
    """One entry for each time the vision tower runs."""
    runs: list[int] = []
    tower = next(getattr(vlm.model.model, name) for name in TOWERS if hasattr(vlm.model.model, name))
    handle = tower.register_forward_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        handle.remove()


def make_engine(route: str = "always", reuse: ReuseConfig = REUSE, **options: Any) -> SGLEngine:
    pair = (tiny_vlm(size=size, side_tokens=6, **options) for size in ("small", "large"))  # type: ignore[arg-type]
    return SGLEngine(*pair, EngineConfig(reuse=reuse).escalating(route))  # type: ignore[arg-type]


WAYS: dict[str, Callable[[SGLEngine, Request], object]] = {
    "run": lambda engine, request: engine.run(request),
    "stream": lambda engine, request: list(engine.stream(request)),
    "run_batch": lambda engine, request: engine.run_batch([request]),
    "score_answers": lambda engine, request: engine.score_answers(request, ["yes", "no"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reuse", [NO_REUSE, REUSE])
def test_each_tower_runs_once_per_request(way: str, reuse: ReuseConfig) -> None:
    engine = make_engine(reuse=reuse)
    with tower_runs(engine.small) as small, tower_runs(engine.large) as large:
        WAYS[way](engine, ask("What is it?"))
        assert (len(small), len(large)) == (1, 1)
        WAYS[way](engine, ask("And what is this?"))
        again = 2 if reuse is NO_REUSE else 1
        assert (len(small), len(large)) == (again, again)


def test_a_stream_that_was_dropped_and_asked_again_costs_no_tower() -> None:
    engine = make_engine()
    with tower_runs(engine.small) as small, tower_runs(engine.large) as large:
        stream = engine.stream(ask("What is it?"))
        next(stream)
        next(stream)
        stream.close()
        engine.run(ask("What is it?"))
        assert (len(small), len(large)) == (1, 1)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_picture_given_twice_is_seen_once(family: str) -> None:
    vlm = tiny_vlm(family, max_tiles=4)
    pictures = (PICTURE, noise(40, 70, 1), PICTURE)
    content = tuple(part for picture in pictures for part in (ImagePart(picture), "and"))
    prompt = vlm.encode(Request((Message("user", content),)))
    expected = vlm.embed(prompt)
    with tower_runs(vlm) as runs:
        first = embed_pictures(vlm, prompt, REUSE)
        again = embed_pictures(vlm, prompt, REUSE)
        one = embed_pictures(vlm, vlm.encode(ask("Only this?", pictures[1])), REUSE)
    assert gap(first.embeddings, expected) < of_hidden(vlm, expected)
    assert torch.equal(again.embeddings, first.embeddings)
    assert again.tower_patches == ()
    assert again.known_pictures == 3
    if (
        prompt.picture_axes is None or "image_sizes" in prompt.inputs
    ):  # seen together, or padded to the largest
        return
    assert first.known_pictures == 1
    assert sum(first.tower_patches) < sum(vlm.tower_patches(prompt))
    assert one.known_pictures == 1
    assert len(runs) == 1


def test_answers_are_those_without_reuse() -> None:
    engine = make_engine()
    plain = engine.with_config(engine.config.model_copy(update={"reuse": NO_REUSE}))
    for question in ("What is it?", "How many are there?", "What is it?"):
        got, expected = engine.run(ask(question)), plain.run(ask(question))
        assert got.text == expected.text
        assert got.report.score == pytest.approx(expected.report.score, rel=of_logprobs(engine.small, 9))
        assert got.importance is not None
        assert expected.importance is not None
        assert relative_gap(got.importance.mass, expected.importance.mass) < of_logprobs(engine.small)
        scores = engine.score_answers(ask(question), ["yes", "no"])
        alone = plain.score_answers(ask(question), ["yes", "no"])
        assert gap(scores.logprobs, alone.logprobs) < of_logprobs(engine.large, 4)
    assert engine.cache_info()["small"].feature_hits == 5
    assert engine.cache_info()["large"].prefix_hits == 5


def test_the_report_says_what_was_known_and_what_was_spent() -> None:
    engine = make_engine()
    first, second = engine.run(ask("What is it?")).report, engine.run(ask("What is it?")).report
    known = ("small_known_tokens", "small_known_pictures", "large_known_tokens", "large_known_pictures")
    end = first.small_input_tokens - len("What is it?") - 20
    assert [getattr(first, name) for name in known] == [0, 0, 0, 0]
    tokens, pictures, large_tokens, large_pictures = (getattr(second, name) for name in known)
    assert (pictures, large_pictures) == (1, 1)
    assert 36 < tokens == large_tokens
    assert tokens > end
    assert second.small_tflops < first.small_tflops / 2
    assert second.large_tflops < first.large_tflops
    assert second.large_alone_tflops == first.large_alone_tflops
    assert second.saved_fraction > first.saved_fraction


def test_operations_within_2_percent() -> None:
    vlm = tiny_vlm(side_tokens=12)
    prompts = [vlm.encode(ask(question)) for question in ("What?", "And how many are there?")]
    for prompt in prompts:  # the first fills, the second finds
        results: list[SmallPassResult] = []

        def run() -> None:
            results.append(run_small_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False), reuse=REUSE))  # noqa: B023

        expected = counted(run)
        patches = results[0].reused.tower_patches
        got = small_pass_flops(vlm.shape, patches=patches, prompt=prompt, result=results[0])
        assert got == pytest.approx(expected, rel=0.02 if results[0].reused.tokens else 0.1)


def test_zero_bytes_keep_nothing() -> None:
    engine = make_engine(reuse=ReuseConfig(max_bytes=0))
    engine.run(ask("What is it?"))
    info = engine.cache_info()["small"]
    assert (info.entries, info.bytes, info.feature_hits + info.feature_misses) == (0, 0, 0)


def test_what_is_not_wanted_is_not_kept() -> None:
    only_features = make_engine(reuse=ReuseConfig(prefixes=False, min_prefix_tokens=1))
    only_features.run(ask("What is it?"))
    assert only_features.small.store.items("prefix") == []
    assert only_features.cache_info()["small"].entries == 2
    assert len(only_features.small.store.items("pixels")) == 1
    only_prefixes = make_engine(reuse=ReuseConfig(pixels=False, features=False, min_prefix_tokens=1))
    only_prefixes.run(ask("What is it?"))
    assert only_prefixes.small.store.items("pixels") == []
    assert only_prefixes.small.store.items("features") == []
    assert only_prefixes.run(ask("What is this?")).report.small_known_tokens > 36


def test_short_beginnings_are_left_alone() -> None:
    engine = make_engine(reuse=ReuseConfig())
    engine.run(ask("What is it?"))
    assert engine.small.store.items("prefix") == []


def test_the_least_recently_used_goes_first() -> None:
    store = ReuseStore()
    tensors = [torch.zeros(10, dtype=torch.uint8) for _ in range(4)]
    for number in range(3):
        store.put("features", number, number, [tensors[number]], max_bytes=30)
    assert store.get("features", 0) == 0
    store.put("features", 3, 3, [tensors[3]], max_bytes=30)
    assert [key for key, _ in store.items("features")] == [3, 0, 2]
    assert store.info().bytes == 30
    assert store.info().evictions == 1
    store.put("prefix", "large", None, [torch.zeros(31, dtype=torch.uint8)], max_bytes=30)
    assert store.info().entries == 3  # too large by itself, so nothing made room for it
    store.put("features", 3, 4, [tensors[3][:5]], max_bytes=20)
    assert store.get("features", 3) == 4
    assert store.info().bytes == 20  # a view keeps the whole


def test_bytes_are_those_of_the_tensors() -> None:
    engine = make_engine()
    engine.run(ask("What is it?"))
    for vlm in (engine.small, engine.large):
        [(_, features)] = vlm.store.items("features")
        [(_, prefix)] = vlm.store.items("prefix")
        made = [pixels["pixel_values"] for _, pixels in vlm.store.items("pixels")]
        assert len(made) == (vlm is engine.small)  # which has kept them for both
        tensors = (*made, features, *prefix.tensors())
        expected = sum(each.numel() * each.element_size() for each in tensors)
        assert vlm.store.info().bytes == expected
        assert len({each.untyped_storage().data_ptr() for each in prefix.tensors()}) > 2


def test_many_threads_and_little_room() -> None:
    engine = make_engine()
    pictures = [noise(60, 50, seed) for seed in range(3)]
    requests = [ask(f"What is it, {number}?", pictures[number % 3]) for number in range(12)]
    plain = engine.with_config(engine.config.model_copy(update={"reuse": NO_REUSE}))
    alone = [plain.run(request).text for request in requests]
    engine.run(requests[0])
    room = int(1.5 * engine.cache_info()["small"].bytes)
    small = engine.with_config(
        engine.config.model_copy(update={"reuse": REUSE.model_copy(update={"max_bytes": room})})
    )
    with ThreadPoolExecutor(6) as pool:
        together = [response.text for response in pool.map(small.run, requests)]
    assert together == alone
    info = engine.cache_info()["small"]
    assert info.evictions > 0
    assert info.bytes <= room


def test_a_pass_that_fails_leaves_no_entry() -> None:
    engine = make_engine()
    engine.with_config(engine.config.model_copy(update={"reuse": NO_REUSE})).run(ask("What is it?"))
    before = traces(engine.small), traces(engine.large)
    for vlm in (engine.small, engine.large):
        layers = vlm.family.decoder_layers(vlm.model)
        with exploding(layers[0].mlp), pytest.raises(RuntimeError):
            engine.run(ask("What is it?"))
        assert vlm.store.items("prefix") == []
        assert len(vlm.store.items("features")) == 1  # these were whole
    assert (traces(engine.small), traces(engine.large)) == before
    assert isinstance(engine.run(ask("What is it?")), Response)
    assert (traces(engine.small), traces(engine.large)) == before


def test_entries_do_not_keep_a_model_alive() -> None:
    engine = make_engine()
    engine.run(ask("What is it?"))
    store, model = engine.small.store, weakref.ref(engine.small.model)
    assert store.info().entries == 3
    del engine

    def is_gone() -> bool:
        gc.collect()
        return model() is None

    until(is_gone, "the model is still there")  # its worker's thread ends by itself


def test_entries_are_as_they_were_after_use() -> None:
    """Also recurrent states, which a model updates in place."""
    for family in ("internvl", "qwen3_5"):
        vlm = tiny_vlm(family, size="large")
        prompt = vlm.encode(ask("What is it?"))
        run_small_pass(vlm, AnswerTask(prompt, 3), reuse=REUSE)
        [(_, prefix)] = vlm.store.items("prefix")
        before = [each.clone() for each in prefix.tensors()]
        assert len(before) >= 2 * vlm.num_layers
        run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), reuse=REUSE)
        assert all(torch.equal(now, then) for now, then in zip(prefix.tensors(), before, strict=True))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_known_picture_is_not_processed_again(family: str) -> None:
    vlm = tiny_vlm(family, max_tiles=4)
    own = vlm.processor.image_processor
    requests = [ask(question, PICTURE, noise(40, 70, 1)) for question in ("What?", "And how many are there?")]
    plain = [vlm.encode(request) for request in requests]
    for request, expected in zip(requests, plain, strict=True):
        prompt = vlm.encode(request, reuse=REUSE)
        assert prompt.inputs.keys() == expected.inputs.keys()
        assert all(torch.equal(prompt.inputs[name], expected.inputs[name]) for name in expected.inputs)
        assert prompt.spans == expected.spans
        assert prompt.picture_digests == expected.picture_digests
    assert vlm.processor.image_processor is own
    assert (vlm.store.info().pixel_hits, vlm.store.info().pixel_misses) == (1, 1)
    other = vlm.encode(ask("What?", noise(40, 70, 1), PICTURE), reuse=REUSE)
    assert other.picture_digests != plain[0].picture_digests
    own.do_normalize = not own.do_normalize
    changed = vlm.encode(requests[0], reuse=REUSE)
    assert changed.picture_digests != plain[0].picture_digests
    assert vlm.store.info().pixel_hits == 1


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_picture_is_processed_once_for_both_models(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tiny_vlm(family, max_tiles=4), tiny_vlm(family, size="large", max_tiles=4)
    engine = SGLEngine(small, large, EngineConfig(reuse=REUSE).escalating("always"))
    seen, request = count_processed(large, monkeypatch), ask("What?", PICTURE)
    assert engine.run(request).report.large_known_pictures == 0
    assert len(seen) == 1
    plain, shared = large.encode(request), large.encode(request, reuse=REUSE)
    assert all(torch.equal(shared.inputs[name], plain.inputs[name]) for name in plain.inputs)
    assert large.store.info().pixel_misses == 0
    large.processor.image_processor.do_normalize = not large.processor.image_processor.do_normalize
    engine.run(ask("What?", noise(40, 70, 1)))
    assert large.store.info().pixel_misses == 1


def test_image_processors_that_are_only_called_alike_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    own = engine.large.processor.image_processor
    seen = count_processed(engine.large, monkeypatch)
    other = type(own.__class__.__name__, (own.__class__,), {"__module__": "elsewhere"})
    monkeypatch.setattr(own, "__class__", other)
    assert own.to_json_string() == engine.small.processor.image_processor.to_json_string()
    engine.run(ask("What?", PICTURE))
    assert len(seen) == 2
