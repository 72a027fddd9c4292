"""Every ranker, by construction: on a tiny pair, and on vectors and maps whose right order is known."""

import importlib
import itertools
import math
import pkgutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tolerances import CONTROL, gap, of_logprobs, relative_gap
from torch import Tensor

from sgl_engine import Request, SGLEngine
from sgl_engine import rankers as package
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.attention.rows import AttentionRows
from sgl_engine.decoding.answer import AnswerTask, Generation
from sgl_engine.errors import InvalidRequestError
from sgl_engine.passes import run_large_pass
from sgl_engine.passes.small import run_small_pass
from sgl_engine.prompt.encoded import VisualSpan
from sgl_engine.pruning import plan_pruning
from sgl_engine.pruning.plan import keep_everything
from sgl_engine.rankers import BASELINES, DEFAULT_RANKER, MAPS, PARTIAL, RANKERS, RankingCase, guided, tiled
from sgl_engine.rankers.baselines import even_spread
from sgl_engine.rankers.diversity import farthest_first, least_similar_in_turn, suppressing
from sgl_engine.testing import tiny_vlm

PICTURE = Image.linear_gradient("L").convert("RGB").resize((60, 40))
REQUEST = Request.ask("What is it?", PICTURE, max_new_tokens=5)


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small", side_tokens=4), tiny_vlm(size="large", side_tokens=6))


@pytest.fixture(scope="module")
def case(engine: SGLEngine) -> RankingCase:
    return RankingCase.of(engine, REQUEST, seed=3)


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_ranks_all_tokens_and_repeats(engine: SGLEngine, case: RankingCase, name: str) -> None:
    found = RANKERS[name](case)
    prompt = case.large_prompt if found.spans == case.large_prompt.spans else case.small_prompt
    assert found.spans == prompt.spans
    assert found.mass.shape == (prompt.num_visual_tokens,)
    assert found.mass.dtype == torch.float32
    assert bool(found.mass.isfinite().all())
    assert len(found.mass.unique()) > len(found.mass) / 2  # an order, not a constant
    again = RANKERS[name](RankingCase.of(engine, REQUEST, seed=3))
    assert torch.equal(found.mass, again.mass)
    plan = plan_pruning(case.large_prompt, found, layer=2, keep_ratio=0.2)
    assert plan.kept_visual_tokens == 7


@pytest.mark.parametrize("family", ["idefics3", "llava_next", "qwen3_vl", "qwen3_5"])
def test_rankers_work_on_tiles_separators_wide_embeddings_and_recurrent_layers(family: str) -> None:
    engine = SGLEngine(
        tiny_vlm(family, size="small", side_tokens=4),
        tiny_vlm(family, size="large", side_tokens=4, max_tiles=4, seed=1),
    )
    case = RankingCase.of(engine, REQUEST)
    assert case.visual_embeddings.shape[1] == case.hidden_states(2).shape[1]
    masses = {name: ranker(case).resample(case.large_prompt.spans).mass for name, ranker in RANKERS.items()}
    for name, mass in masses.items():
        assert mass.shape == (case.large_prompt.num_visual_tokens,), name
        assert bool(mass.isfinite().all()), name
        assert len(mass.unique()) > 2, name  # no layer without attention was taken for a map
    own = case.sums.prefill.sum(0) + case.sums.decode.sum(0)
    assert relative_gap(own, guided.plain(case).mass) < of_logprobs(engine.small)


def test_the_registry_is_the_three_tables() -> None:
    assert set(RANKERS) == set(BASELINES) | set(PARTIAL) | set(MAPS)
    assert DEFAULT_RANKER in BASELINES
    assert RANKERS[DEFAULT_RANKER] is guided.plain


def test_every_file_s_rankers_are_in_the_registry() -> None:
    files = [
        importlib.import_module(f"{package.__name__}.{each.name}")
        for each in pkgutil.iter_modules(package.__path__)
    ]
    for group, joined in (("BASELINES", BASELINES), ("PARTIAL", PARTIAL), ("MAPS", MAPS)):
        named = [name for file in files for name in getattr(file, group, {})]
        assert sorted(named) == sorted(joined), group  # each once


def test_the_case_holds_what_both_models_do_alone(engine: SGLEngine, case: RankingCase) -> None:
    small = run_small_pass(engine.small, AnswerTask(case.small_prompt, 5))
    assert small.importance is not None
    assert torch.equal(guided.plain(case).mass, small.importance.mass)
    assert case.small.generation.text == small.generation.text
    prompt = case.large_prompt
    large = run_large_pass(engine.large, AnswerTask(prompt, 5), keep_everything(prompt))
    assert torch.equal(case.large.generation.token_ids, large.generation.token_ids)
    assert case.large is case.large  # ran once
    embedded = engine.large.embed(prompt)[0, list(prompt.visual_positions)]
    assert torch.equal(case.visual_embeddings, embedded)
    assert torch.equal(case.hidden_states(0)[list(prompt.visual_positions)], embedded)
    assert case.sums.prefill_queries + case.sums.decode_queries == small.importance.num_queries


def test_consistency_at_the_engines_ratio_is_the_small_passes(engine: SGLEngine, case: RankingCase) -> None:
    ratio = engine.config.exit.consistency_keep_ratio
    logprobs = torch.tensor(case.consistency_logprobs(ratio))
    parts = case.small.parts
    within = of_logprobs(engine.small)
    assert float(logprobs.mean().exp()) == pytest.approx(parts["consistency_geometric_mean"], rel=within)
    other = torch.tensor(case.consistency_logprobs(1.0))
    assert gap(other, logprobs) > CONTROL * within
    # With all visual tokens, it is the answer's own probability.
    assert gap(other, case.small.generation.logprobs) < within


def test_without_a_picture_there_is_nothing_to_rank(engine: SGLEngine) -> None:
    with pytest.raises(InvalidRequestError, match="no picture"):
        RankingCase.of(engine, Request.ask("What is it?", max_new_tokens=2))


# --- diversity ---------------------------------------------------------------------------------------------


def slow_farthest_first(distance: Tensor) -> list[int]:
    """As the definition reads."""
    points = range(len(distance))
    nearest = [min(float(distance[i, j]) for j in points if j != i) for i in points]
    order = [max(points, key=lambda point: (nearest[point], -point))]
    while len(order) < len(distance):
        left = [point for point in points if point not in order]
        order.append(max(left, key=lambda point: (min(float(distance[point, j]) for j in order), -point)))
    return order


def distances(points: Tensor) -> Tensor:
    return torch.cdist(points, points)


def test_farthest_first_equals_its_definition() -> None:
    for seed in range(20):
        points = torch.rand(12, 3, generator=torch.Generator().manual_seed(seed))
        assert farthest_first(distances(points)) == slow_farthest_first(distances(points))


def test_farthest_first_is_close_to_the_best_set() -> None:
    """A prefix is at least half as diverse as the most diverse set of its size (Gonzalez, 1985)."""
    for seed in range(10):
        points = torch.rand(9, 2, generator=torch.Generator().manual_seed(seed))
        distance = distances(points)

        def diversity(chosen: Any, distance: Tensor = distance) -> float:
            return min(float(distance[i, j]) for i, j in itertools.combinations(chosen, 2))

        order = farthest_first(distance)
        for size in (2, 3, 4):
            best = max(diversity(chosen) for chosen in itertools.combinations(range(9), size))
            assert diversity(order[:size]) >= best / 2 - 1e-6
            worst = min(diversity(chosen) for chosen in itertools.combinations(range(9), size))
            assert worst < best / 2  # the control: not every set is


def test_divprune_keeps_one_of_each_cluster(case: RankingCase) -> None:
    """Six directions, six tokens near each of them: the first six to be kept point six ways."""
    prompt = case.large_prompt
    directions = torch.eye(6).repeat_interleave(6, dim=0)
    features = directions + 0.01 * torch.rand(36, 6, generator=torch.Generator().manual_seed(0))
    made = replace(case)
    vars(made)["visual_embeddings"] = features
    order = RANKERS["divprune"](made).mass.argsort(descending=True).tolist()
    assert {token // 6 for token in order[:6]} == set(range(6))
    assert {token // 6 for token in range(6)} == {0}  # the control: the first six tokens are one cluster
    assert prompt.num_visual_tokens == 36


def test_pivots_choose_in_turn_what_is_least_like_them() -> None:
    similar = torch.tensor([[1.0, 0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.4, 1.0, 0.7]])
    # 0 and 3 are pivots; then the first one's least similar (2), the second one's (1), and so on.
    assert least_similar_in_turn(similar, taken=[0, 3]) == [0, 3, 2, 4, 1]
    assert least_similar_in_turn(similar, taken=[]) == [2, 0, 4, 1, 3]


def test_dart_starts_with_the_strongest_keys(case: RankingCase) -> None:
    order = RANKERS["dart"](case).mass.argsort(descending=True).tolist()
    norms = case.large_rows.key_norms[1, list(case.large_prompt.visual_positions)]
    assert set(order[:4]) == set(norms.topk(4).indices.tolist())
    assert sorted(order) == list(range(36))


def test_suppression_skips_what_resembles_the_chosen() -> None:
    mass = torch.tensor([5.0, 4.9, 3.0, 1.0])
    similar = torch.eye(4)
    assert suppressing(mass, similar) == [0, 1, 2, 3]  # nothing alike: the order of the map
    similar[0, 1] = similar[1, 0] = 0.9
    assert suppressing(mass, similar) == [0, 2, 3, 1]
    similar[0, 2] = -1.0  # opposites do not become more important
    assert suppressing(mass, similar) == [0, 2, 3, 1]


# --- baselines ---------------------------------------------------------------------------------------------


def largest_gap(chosen: Tensor, rows: int, cols: int) -> float:
    """How far a cell may be from the nearest chosen one, edges touching."""
    row, col = torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)
    down = (row[:, None] - row[chosen]).abs()
    right = (col[:, None] - col[chosen]).abs()
    down, right = torch.minimum(down, rows - down), torch.minimum(right, cols - right)
    return float((down**2 + right**2).float().sqrt().amin(dim=1).max())


def test_what_others_attend_to_comes_first_grid_by_grid() -> None:
    """Against sums that are written out token by token; over both grids at once they would be others."""
    features = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) * 2
    spans = (VisualSpan(0, 2, 8, (2, 3), None), VisualSpan(0, 9, 15, (2, 3), None))
    case = SimpleNamespace(
        visual_embeddings=features,
        large_prompt=SimpleNamespace(spans=spans),
        large_map=lambda mass: ImportanceMap(mass, spans, 1),
    )
    mass = RANKERS["visionzip-like"](case).mass  # type: ignore[arg-type]  # all that it looks at

    def received(tokens: Tensor) -> list[float]:
        centred = (tokens - tokens.mean(dim=0)).double()
        totals = [0.0] * len(tokens)
        for asking in centred:
            weights = [math.exp(float(asking @ asked) / math.sqrt(8)) for asked in centred]
            totals = [t + w / sum(weights) / len(tokens) for t, w in zip(totals, weights, strict=True)]
        return totals

    assert mass.tolist() == pytest.approx(received(features[:6]) + received(features[6:]), rel=1e-4)
    assert mass.tolist() != pytest.approx(received(features), rel=0.1)


@pytest.mark.parametrize(("rows", "cols"), [(12, 12), (8, 20), (5, 7), (1, 9), (1, 1)])
def test_the_uniform_grid_is_even_in_both_directions(rows: int, cols: int) -> None:
    order = even_spread(rows, cols).argsort()
    assert sorted(order.tolist()) == list(range(rows * cols))
    for count in {1, 4, rows * cols // 4, rows * cols // 2}:
        if not 1 <= count <= rows * cols:
            continue
        ideal = max((rows * cols / count) ** 0.5, max(rows, cols) / count / 2)
        assert largest_gap(order[:count], rows, cols) <= max(1.0, 1.1 * ideal)


def test_quarters_of_the_grid_get_equal_shares_and_reading_order_does_not() -> None:
    order = even_spread(12, 12).argsort()
    for count in (16, 28, 36, 57):
        quarter = (order[:count] // 12 // 6) * 2 + order[:count] % 12 // 6
        shares = torch.bincount(quarter, minlength=4)
        assert int(shares.max() - shares.min()) <= 2
    stride = torch.arange(0, 144, 12)  # the control: every 12th token is one column
    assert largest_gap(stride, 12, 12) > 1.5 * (144 / 12) ** 0.5


def test_tiles_are_filled_side_by_side(case: RankingCase) -> None:
    spans = (VisualSpan(0, 0, 36, (6, 6), None), VisualSpan(0, 36, 136, (10, 10), None))
    prompt = SimpleNamespace(spans=spans, num_visual_tokens=136)
    mass = RANKERS["uniform"](replace(case, large_prompt=prompt)).mass
    kept = mass.argsort(descending=True)[:34]
    assert int((kept < 36).sum()) == 9  # a quarter of each


def test_lots_depend_on_the_seed_alone(case: RankingCase) -> None:
    draws = [RANKERS["random"](replace(case, seed=seed)).mass for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- maps of the small model's attention -------------------------------------------------------------------

LAYERS, VISUAL = 4, 16


def made(plain: Tensor, by_value: Tensor | None = None, prompt_rows: int = 2, sure: float = 0.25) -> Any:
    """A case whose small model looked where ``plain`` (L, R, V) says."""
    spans = (VisualSpan(0, 4, 4 + VISUAL, (4, 4), (0.0, 0.0, 1.0, 1.0)),)
    importance = ImportanceMap(plain.sum(dim=(0, 1)), spans, plain.shape[1])
    generation = Generation("", torch.arange(3), torch.tensor([0.5, 0.1, 1.0]).log(), torch.zeros(3), "stop")
    parts = {"answer_probability": sure}
    small = SimpleNamespace(importance=importance, generation=generation, parts=parts)
    prompt = SimpleNamespace(spans=spans, visual_positions=spans[0].positions)
    rows = AttentionRows(plain, plain if by_value is None else by_value, plain[:, 0], prompt_rows)
    return RankingCase(None, None, 0, small, prompt, prompt, rows, 3)  # type: ignore[arg-type]


@pytest.fixture
def looks() -> Tensor:
    """Row 0 is the last visual token's, row 1 the question's, rows 2 and 3 the answer's."""
    return torch.rand(LAYERS, 4, VISUAL, generator=torch.Generator().manual_seed(7)) + 0.1


def test_maps_are_the_sums_they_say(looks: Tensor) -> None:
    case = made(looks)
    answer = looks[:, 2:].sum(dim=(0, 1))
    prompt = looks[:, :2].sum(dim=(0, 1))
    tokens = looks[:, 2].sum(dim=0) * 0.5 + looks[:, 3].sum(dim=0) * 0.1
    means = looks[:, :2].mean(dim=1).sum(dim=0), looks[:, 2:].mean(dim=1).sum(dim=0)
    expected = {
        "small-guided": prompt + answer,
        "prompt-rows": prompt,
        "question-rows": looks[:, 1].sum(dim=0),
        "answer-rows": answer,
        "sure-answer": prompt + 0.25 * answer,
        "sure-tokens": prompt + tokens,
        "even-rows": means[0] + means[1],
        "sure-even-rows": means[0] + 0.25 * means[1],
        "small-one-layer": looks[2].sum(dim=0),
        "small-last-layer": looks[3].sum(dim=0),
        "middle-layers": looks[1:3].sum(dim=(0, 1)),
        "late-layers": looks[2:].sum(dim=(0, 1)),
        "even-layers": sum(layer.sum(dim=0) / layer.sum() for layer in looks),
    }
    for name, mass in expected.items():
        assert torch.allclose(RANKERS[name](case).mass, mass, rtol=1e-5), name
    found = [RANKERS[name](case).mass for name in expected]
    pairs = itertools.combinations(found, 2)
    assert not any(torch.allclose(one, other, rtol=1e-3) for one, other in pairs)  # the control


def test_tokens_that_are_looked_at_and_not_read_count_less_by_value() -> None:
    plain = torch.ones(LAYERS, 4, VISUAL)
    plain[..., 5] = 3.0
    by_value = plain.clone()
    by_value[..., 5] *= 0.1
    case = made(plain, by_value)
    assert RANKERS["small-guided"](case).mass.argmax() == 5
    assert RANKERS["value-norms"](case).mass.argmin() == 5


def test_a_trend_along_the_prompt_is_removed() -> None:
    positions = tuple(range(10, 10 + VISUAL))
    trend = torch.exp(0.3 * torch.arange(VISUAL).float())
    content = torch.ones(VISUAL)
    content[4] = 2.0
    mass = trend * content
    assert mass.argmax() == VISUAL - 1
    flat = guided.detrended(mass, positions)
    assert flat.argmax() == 4
    assert float(flat[5:].max() / flat[5:].min()) < 1.5
    assert torch.allclose(guided.detrended(content, (7,)), content)  # one token has no trend


def test_a_sink_in_one_layer_does_not_outweigh_the_others() -> None:
    plain = torch.ones(LAYERS, 4, VISUAL)
    plain[0, :, 3] = 1000.0
    plain[1:, :, 9:11] = 2.0
    assert RANKERS["small-guided"](made(plain)).mass.argmax() == 3
    assert RANKERS["capped"](made(plain)).mass.argmax() == 9


def test_what_draws_attention_by_itself_is_left_out_of_the_relative_map() -> None:
    plain = torch.ones(LAYERS, 4, VISUAL)
    plain[:, :, 3] = 50.0  # every row looks there, that of the picture's last token too
    plain[:, 1:, 9] = 3.0
    assert RANKERS["small-guided"](made(plain)).mass.argmax() == 3
    assert RANKERS["relative"](made(plain)).mass.argmax() == 9


def test_answers_of_one_token_leave_the_prompts_rows(looks: Tensor) -> None:
    case = made(looks[:, :2])
    for name in ("answer-rows", "sure-answer", "sure-tokens", "even-rows", "sure-even-rows"):
        ranked = RANKERS[name](case).mass.argsort()
        assert torch.equal(ranked, RANKERS["prompt-rows"](case).mass.argsort()), name


class TestTileFirst:
    """Two rows of three tiles of 4 x 4; the map is made by hand."""

    @staticmethod
    def case(mass: Tensor, question: Tensor) -> Any:
        spans = tuple(
            VisualSpan(0, 16 * tile, 16 * tile + 16, (4, 4), (tile % 3 / 3, tile // 3 / 2, 1, 1))
            for tile in range(6)
        )
        # One layer: the last visual token's row, one of the question, and what the answer adds.
        rows = torch.stack((torch.zeros(96), question.flatten(), (mass - question).flatten()))[None]
        small_map = lambda found: ImportanceMap(found.float(), spans, 1)  # noqa: E731
        return SimpleNamespace(
            small=SimpleNamespace(importance=small_map(mass.flatten())),
            small_prompt=SimpleNamespace(spans=spans, tiles=None),
            rows=AttentionRows(plain=rows, by_value=rows, key_norms=rows[0], prompt_rows=2),
            small_map=small_map,
        )

    @pytest.fixture
    def mass(self) -> Tensor:
        """Tile 5 has most in sum; tokens of 1 and 4 are looked at most."""
        mass = torch.arange(96).reshape(6, 16) / 1e4
        mass[5] += 0.5
        mass[1, :4], mass[4, :1] = 0.9, 0.8
        return mass

    @staticmethod
    def tiles(found: ImportanceMap, kept: int) -> list[int]:
        """How many of the first tokens lie in each tile."""
        order = torch.sort(found.mass, descending=True, stable=True).indices[:kept]
        return torch.bincount(order // 16, minlength=6).tolist()

    def test_gated(self, mass: Tensor) -> None:
        found = tiled.tile_gated(self.case(mass, torch.zeros_like(mass)))
        assert self.tiles(found, 5) == [0, 4, 0, 0, 1, 0]
        assert self.tiles(found, 32) == [0, 16, 0, 0, 16, 0]
        assert self.tiles(guided.plain(self.case(mass, mass)), 32) != [0, 16, 0, 0, 16, 0]  # the control
        assert self.tiles(found, 48) == [0, 16, 0, 0, 16, 16]

    def test_question(self, mass: Tensor) -> None:
        question = torch.zeros_like(mass)
        question[2, 7], question[0] = 0.1, 0.001
        case = self.case(mass + question, question)
        assert self.tiles(tiled.question_tile(case), 33) == [16, 0, 16, 0, 0, 1]
        found = tiled.question_gated(case)
        assert self.tiles(found, 32) == [16, 0, 16, 0, 0, 0]

    def test_gated_by_values(self, mass: Tensor) -> None:
        """What is looked at and not read, in tiles 1 and 4, opens no tile; what is read does."""
        case = self.case(mass, torch.zeros_like(mass))
        read = mass.clone()
        read[1, :4] = read[4, 0] = 0.0
        read[0, 3], read[3, :4] = 0.95, 0.9
        nothing = torch.zeros(96)
        case.rows = replace(case.rows, by_value=torch.stack((nothing, nothing, read.flatten()))[None])
        found = tiled.value_gated(case)
        assert self.tiles(found, 32) == [16, 0, 0, 16, 0, 0]
        assert int(found.mass.argmax()) == 3
        assert self.tiles(tiled.tile_gated(case), 32) == [0, 16, 0, 0, 16, 0]  # the control

    def test_quota(self, mass: Tensor) -> None:
        """The top 20 tokens: 4 in tile 1, 1 in tile 4, 15 in tile 5."""
        found = tiled.tile_quota(self.case(mass, mass))
        assert self.tiles(found, 20) == [0, 4, 0, 0, 1, 15]
        assert self.tiles(found, 10)[1] == 2
        first = torch.sort(found.mass[16:32], descending=True, stable=True).indices
        wanted = torch.sort(mass[1], descending=True, stable=True).indices
        assert first.tolist() == wanted.tolist()

    def test_even(self, mass: Tensor) -> None:
        found = tiled.even_tiles(self.case(mass, mass))
        assert self.tiles(found, 5) == [0, 4, 0, 0, 1, 0]
        assert torch.allclose(found.mass.reshape(6, 16).mean(dim=1), torch.ones(6))


def test_in_one_piece_they_rank_as_the_plain_sum_does(case: RankingCase) -> None:
    for name, ranker in tiled.MAPS.items():
        like = guided.value_norms if ranker is tiled.value_gated else guided.plain
        order = like(case).mass.sort(descending=True, stable=True).indices
        assert torch.equal(ranker(case).mass.sort(descending=True, stable=True).indices, order), name
