"""Exact match on held-out pages, teacher-forced: the same as that of greedy decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from transformers import InternVLForConditionalGeneration

from sgl_engine.demo.pages.layout import SHAPES
from training.models import answer_logits, visual_tokens
from training.packing import LONG, SHORT, WHOLE, Batch, Packer

SEED = 1_000_000


def heldout_batches(packer: Packer) -> list[tuple[int, Batch]]:
    """Batches of held-out pages of every number of tiles, with that number; transcriptions come last."""
    drawn = [(tiles, layout) for tiles in SHAPES for layout in (SHORT, LONG)]
    drawn += [(2, WHOLE), (4, WHOLE)]
    return [
        (tiles, packer.batch(SEED + index, split="heldout", layout=layout, tiles=tiles))
        for index, (tiles, layout) in enumerate(drawn)
    ]


@torch.no_grad()
def exact_matches(
    model: InternVLForConditionalGeneration, batches: Iterable[tuple[int, Batch]], *, bfloat16: bool
) -> dict[str, float]:
    """Share of answers that are right to the last token: by kind, by number of tiles, and of all.

    Transcriptions have a kind of their own and are left out of everything else.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for tiles, batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits, labels = answer_logits(model, batch, visual_tokens(model, batch))
        right = torch.zeros_like(batch.labels, dtype=torch.bool)
        right[batch.labels >= 0] = logits.argmax(-1) == labels
        for kind, (row, first, stop) in zip(batch.kinds, batch.answers, strict=True):
            hit = bool(right[row, first:stop].all())
            hits[kind].append(hit)
            if kind != "transcribe":
                hits[f"{tiles} tiles"].append(hit)
                hits["all"].append(hit)
    kinds = [np.mean(found) for name, found in hits.items() if "tiles" not in name]
    scores = {name: round(float(np.mean(found)), 3) for name, found in sorted(hits.items())}
    return scores | {"mean of kinds": round(float(np.mean(kinds)), 3), "n": len(hits["all"])}
