"""The small model's attention, summed in other ways than the plain one (SGL, section 3.2). No training.

Each is a guess at what spoils the plain sum: tokens that are looked at and not read (``value_norms``), the
place in the prompt (``without_recency``), a few tokens that draw everything (``capped``), layers that look at
no particular place, rows that ask nothing, or an answer that is wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgl_engine.attention import ImportanceMap
from sgl_engine.decoding import AnswerTask
from sgl_engine.passes import NeutralMap, run_neutral_batch
from sgl_engine.prompt import neutral_request
from sgl_engine.rankers.case import Ranker, RankingCase

DEFAULT_RANKER = "small-guided"
"""What the engine itself does."""

CAP_QUANTILE = 0.95
"""Of a layer's map: what receives more counts as this much."""


def plain(case: RankingCase) -> ImportanceMap:
    """Sums over layers, heads and rows: what the engine itself uses."""
    assert case.small.importance is not None, "a case has pictures"
    return case.small.importance


def value_norms(case: RankingCase) -> ImportanceMap:
    """Multiplies attention by the norm of the value vector that it weighs (CAPA, arXiv 2602.00247)."""
    return case.small_map(case.rows.by_value.sum(dim=(0, 1)))


def without_recency(case: RankingCase) -> ImportanceMap:
    """Divides the plain sum by its exponential trend along the prompt (arXiv 2508.17807)."""
    return case.small_map(detrended(plain(case).mass, case.small_prompt.visual_positions))


def detrended(mass: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Divides mass (V,) by exp(b * position), b by least squares on its logarithm."""
    place = torch.tensor(positions, dtype=torch.float64)
    place = (place - place.mean()) / place.std().clamp_min(1e-12) if len(place) > 1 else place * 0
    logs = mass.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    slope = (place * (logs - logs.mean())).sum() / (place**2).sum().clamp_min(1e-12)
    return (logs - slope * place).exp().float()


def capped(case: RankingCase) -> ImportanceMap:
    """Caps tokens at the layer's 95th percentile: sinks cannot outweigh the other layers."""
    layers = case.rows.maps
    # "lower": among few tokens, halfway to the largest one would be no cap.
    most = layers.quantile(CAP_QUANTILE, dim=1, keepdim=True, interpolation="lower")
    return case.small_map(torch.minimum(layers, most).sum(dim=0))


def even_layers(case: RankingCase) -> ImportanceMap:
    """Scales each layer's map to the same sum, then sums."""
    maps = case.rows.maps
    return case.small_map((maps / maps.sum(dim=1, keepdim=True)).sum(dim=0))


def one_layer(case: RankingCase) -> ImportanceMap:
    """Takes one layer, that in the middle, with all its rows."""
    maps = case.rows.maps
    return case.small_map(maps[len(maps) // 2])


def last_layer(case: RankingCase) -> ImportanceMap:
    """Takes one layer, the last, with all its rows."""
    return case.small_map(case.rows.maps[-1])


def middle_layers(case: RankingCase) -> ImportanceMap:
    """Sums the middle third of the layers, at least one."""
    maps = case.rows.maps
    first, last = len(maps) // 3, max(len(maps) // 3 + 1, math.ceil(2 * len(maps) / 3))
    return case.small_map(maps[first:last].sum(dim=0))


def late_layers(case: RankingCase) -> ImportanceMap:
    """Sums the last half of the layers, after the modalities have met."""
    maps = case.rows.maps
    return case.small_map(maps[len(maps) // 2 :].sum(dim=0))


def question_rows(case: RankingCase) -> ImportanceMap:
    """Sums prompt rows after the picture only: what the question asks for, whatever was answered.

    The row of the last visual token, which the plain sum includes, asks nothing.
    """
    rows = case.rows
    first = 1 if rows.prompt_rows > 1 else 0
    return case.small_map(rows.plain[:, first : rows.prompt_rows].sum(dim=(0, 1)))


def prompt_rows(case: RankingCase) -> ImportanceMap:
    """Takes A^P alone: the prompt's rows, as in the plain sum, without the answer's."""
    return case.small_map(case.rows.plain[:, : case.rows.prompt_rows].sum(dim=(0, 1)))


def answer_rows(case: RankingCase) -> ImportanceMap:
    """Takes A^D alone, or A^P where the answer has one token, which is never fed back."""
    rows = case.rows
    answer = rows.plain[:, rows.prompt_rows :]
    return case.small_map(answer.sum(dim=(0, 1))) if answer.shape[1] else prompt_rows(case)


def even_rows(case: RankingCase) -> ImportanceMap:
    """Adds the mean of the prompt's rows and that of the answer's: long answers do not drown the question."""
    return _prompt_and_answer(case, 1.0)


def sure_answer(case: RankingCase) -> ImportanceMap:
    """Adds A^P and c A^D, c the probability of the answer: a doubtful answer says less of where to look."""
    rows = case.rows
    weights = torch.ones(rows.plain.shape[1])
    weights[rows.prompt_rows :] = case.small.parts["answer_probability"]
    return case.small_map(torch.einsum("lrv,r->v", rows.plain, weights))


def sure_tokens(case: RankingCase) -> ImportanceMap:
    """Adds A^P and A^D, each answer row weighted by the probability of the token that asks."""
    rows = case.rows
    asking = rows.plain.shape[1] - rows.prompt_rows
    weights = torch.ones(rows.plain.shape[1])
    weights[rows.prompt_rows :] = case.small.generation.logprobs[:asking].exp()
    return case.small_map(torch.einsum("lrv,r->v", rows.plain, weights))


def sure_even_rows(case: RankingCase) -> ImportanceMap:
    """Adds as ``even_rows`` does, the answer's part weighted by the probability of the answer."""
    return _prompt_and_answer(case, case.small.parts["answer_probability"])


def relative(case: RankingCase) -> ImportanceMap:
    """Divides question and answer rows by the last visual token's own row: what they see that it does not.

    The picture's last token has read no question, so its row shows what draws attention by itself (sinks,
    recency); after "relative attention" (arXiv 2502.17422), without the second pass.
    """
    layers = case.rows.plain
    if layers.shape[1] == 1:
        return plain(case)
    asked, unasked = layers[:, 1:].mean(dim=1), layers[:, 0]
    # A floor of a tenth of the mean, so that hardly seen tokens do not win by division.
    floor = 0.1 * unasked.mean(dim=1, keepdim=True)
    return case.small_map((asked / (unasked + floor).clamp_min(1e-12)).sum(dim=0))


def beyond_neutral(case: RankingCase) -> ImportanceMap:
    """Takes off what a neutral question looks at: what the engine does with ``PruningConfig.neutral``."""
    vlm, config = case.engine.small, case.engine.config
    prompt = vlm.encode(neutral_request(case.request), config.limits, pictures=config.small_pictures)
    task = AnswerTask(prompt, 1)
    [neutral] = run_neutral_batch(vlm, [task])
    assert isinstance(neutral, NeutralMap), "nobody has cancelled it"
    return plain(case).beyond(neutral.importance)


def _prompt_and_answer(case: RankingCase, weight: float) -> ImportanceMap:
    rows = case.rows
    mass = rows.plain[:, : rows.prompt_rows].mean(dim=1).sum(dim=0)
    if rows.plain.shape[1] > rows.prompt_rows:
        mass = mass + weight * rows.plain[:, rows.prompt_rows :].mean(dim=1).sum(dim=0)
    return case.small_map(mass)


BASELINES: dict[str, Ranker] = {DEFAULT_RANKER: plain}
PARTIAL: dict[str, Ranker] = {
    "small-one-layer": one_layer,
    "small-last-layer": last_layer,
    "prompt-rows": prompt_rows,
}
MAPS: dict[str, Ranker] = {
    DEFAULT_RANKER: plain,
    "beyond-neutral": beyond_neutral,
    "value-norms": value_norms,
    "without-recency": without_recency,
    "capped": capped,
    "relative": relative,
    "even-layers": even_layers,
    "middle-layers": middle_layers,
    "late-layers": late_layers,
    "question-rows": question_rows,
    "answer-rows": answer_rows,
    "even-rows": even_rows,
    "sure-answer": sure_answer,
    "sure-tokens": sure_tokens,
    "sure-even-rows": sure_even_rows,
}
