"""A ranker that keeps what draws the picture's own attention, with no regard to the question."""

from __future__ import annotations

import math

import torch

from sgl_engine.attention import ImportanceMap
from sgl_engine.rankers.case import Ranker, RankingCase


def visionzip_like(case: RankingCase) -> ImportanceMap:
    """Ranks by the attention that a token gets from all tokens of its grid (after VisionZip, CVPR 2025).

    The paper (arXiv 2412.04467) reads a late layer of the vision tower, which towers keep in ways of their
    own. Here the features that the decoder is given stand for that layer's queries and keys. The paper also
    merges some of the other tokens into new ones; here tokens are kept or dropped, as by every ranker.
    """
    features = case.visual_embeddings
    found, start = [], 0
    for span in case.large_prompt.spans:
        tokens = features[start : start + len(span)]
        start += len(span)
        tokens = tokens - tokens.mean(dim=0)  # what all share says nothing about any
        scores = tokens @ tokens.T / math.sqrt(tokens.shape[1])
        found.append(scores.softmax(dim=1).mean(dim=0))
    return case.large_map(torch.cat(found))


BASELINES: dict[str, Ranker] = {"visionzip-like": visionzip_like}
