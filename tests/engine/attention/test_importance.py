import torch

from sgl_engine.attention.importance import AttentionSums, ImportanceMap, importance_map
from sgl_engine.prompt.encoded import VisualSpan

BOX = (0.0, 0.0, 1.0, 1.0)
SPANS = (VisualSpan(0, 2, 8, (2, 3), BOX), VisualSpan(1, 10, 12, (1, 2), BOX))
SUMS = AttentionSums(
    prefill=torch.arange(16.0).reshape(2, 8),
    decode=100 * torch.ones(2, 8),
    prefill_queries=3,
    decode_queries=4,
)


def test_the_map_is_the_plain_sum() -> None:
    got = importance_map(SUMS, SPANS)
    assert got.mass.tolist() == [index + index + 8 + 200 for index in range(8)]
    assert got.num_queries == 7


def test_grids_are_row_major_per_span() -> None:
    first, second = importance_map(SUMS, SPANS, layers=[0], rows="prefill").grids()
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.tolist() == [[6, 7]]


def test_what_stands_out_of_another_map_is_the_difference_of_shares() -> None:
    spans = (VisualSpan(0, 2, 6, (2, 2), (0.0, 0.0, 1.0, 1.0)),)
    elsewhere = (VisualSpan(0, 9, 13, (2, 2), (0.0, 0.0, 1.0, 1.0)),)  # in a prompt with more before it
    mine = ImportanceMap(torch.tensor([4.0, 2.0, 1.0, 1.0]), spans, 3)
    other = ImportanceMap(torch.tensor([3.0, 0.0, 0.0, 1.0]), elsewhere, 1)
    beyond = mine.beyond(other)
    assert beyond.mass.tolist() == [-0.25, 0.25, 0.125, -0.125]
    assert (beyond.spans, beyond.num_queries) == (spans, 3)
    nothing = ImportanceMap(torch.zeros(4), elsewhere, 1)
    assert mine.beyond(nothing).mass.tolist() == [0.5, 0.25, 0.125, 0.125]
    finer = ImportanceMap(torch.ones(16), (VisualSpan(0, 0, 16, (4, 4), (0.0, 0.0, 1.0, 1.0)),), 1)
    assert mine.beyond(finer).mass.tolist() == [0.25, 0.0, -0.125, -0.125]


def test_subsets_for_studies() -> None:
    assert importance_map(SUMS, SPANS, layers=[1], rows="prefill").mass.tolist() == list(range(8, 16))
    assert importance_map(SUMS, SPANS, rows="prefill").num_queries == 3
    decode = importance_map(SUMS, SPANS, rows="decode")
    assert decode.mass.tolist() == [200.0] * 8
    assert decode.num_queries == 4
