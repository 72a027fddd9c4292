"""Is a model better than another one? Both answer the same held-out questions, one to a page.

    python -m training.compare sgl_engine/demo/weights/large runs/weights/large --questions 500 --start 300000

Answers are read with the right ones given, which is as good as writing them greedily: an answer is right when
every token of it is the likeliest. A fraction of what ``sgl bench`` takes, as nothing is decoded or pruned.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from sgl_engine.demo.pages.generator import heldout_pages
from training.attention import use_packed_attention
from training.models import answer_logits, visual_tokens
from training.packing import Packer


@torch.no_grad()
def hits(folders: Sequence[Path], questions: int, start: int) -> tuple[np.ndarray, list[str], list[int]]:
    """Which answers of which model are right, bool (questions, models); kinds; numbers of tiles.

    Args:
        folders: Of transformers weights, with one vocabulary.
        questions: How many.
        start: Seed of the first page.
    """
    models = [InternVLForConditionalGeneration.from_pretrained(each, dtype=torch.float32) for each in folders]
    for model in models:
        use_packed_attention(model.eval())
    packer = Packer(PreTrainedTokenizerFast.from_pretrained(folders[0]))
    right, kinds, tiles = [], [], []
    for page, question in track(
        heldout_pages(questions, start=start), description="questions", total=questions
    ):
        batch = packer.alone(page, question)
        row = []
        for model in models:
            logits, labels = answer_logits(model, batch, visual_tokens(model, batch))
            row.append(bool((logits.argmax(-1) == labels).all()))
        right.append(row)
        kinds.append(question.kind)
        tiles.append(page.rows * page.columns)
    return np.array(right), kinds, tiles


def gain(right: np.ndarray) -> tuple[float, float]:
    """Points of the second model above the first, and half of the 95 % interval."""
    difference = right[:, 1].astype(float) - right[:, 0]
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return 100 * float(difference.mean()), 196 * float(error)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--start", type=int, default=300_000, help="first seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    right, kinds, tiles = hits((options.before, options.after), options.questions, options.start)
    points, error = gain(right)
    table = Table("questions", "n", "before %", "after %")
    groups = {"all": np.ones(len(right), bool)}
    for name, values in (("", kinds), (" tiles", tiles)):
        groups |= {f"{value}{name}": np.array(values) == value for value in sorted(set(values))}
    for name, chosen in groups.items():
        before, after = 100 * right[chosen].mean(axis=0)
        table.add_row(name, str(chosen.sum()), f"{before:.1f}", f"{after:.1f}")
    Console(width=110).print(table, f"after - before: {points:+.1f} +- {error:.1f} points")


if __name__ == "__main__":
    main()
