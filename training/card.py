"""Write the model card of the shipped pair from what the runs and the benchmark recorded.

python -m benchmarks.pages WEIGHTS/small WEIGHTS/large --questions 2000 --json runs/pages.json
python -m training.card runs/small runs/large runs/pages.json > sgl_engine/demo/weights/README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.heldout import by_kind, percent
from sgl_engine.evaluation.intervals import auroc
from training.curves import load

HEAD = """# The bundled pair

Two InternVL-architecture models (Qwen3 decoder) in transformers format, trained by `training/` on pages
that `sgl_engine/demo/pages/` draws: receipts, notes, tables, forms, scenes of coloured shapes with numbers,
bar and line charts; 1 to 6 tiles of 192 x 192 pixels, 144 visual tokens a tile, no thumbnail. Tiles come to
the models as one run of tokens, and each number of tiles has one shape: 1 x 1, 2 x 1, 3 x 1, 2 x 2 and 2 x 3
(rows x columns); others were never trained on. They answer in lower case, in a few words, about such pages
only. They exist so that the package can be tried, tested and measured without a download; nothing they say
about other pictures means anything.

**The large model was trained to answer with visual tokens missing** ({thinned}): all that
a question's evidence covers was there, and little else. Models of a real size bring that robustness by their
scale. What pruning costs on this pair shows what the software does; it is no promise for another pair.

Both descend from the same weights, so they are closer relatives than most pairs are, and guidance between
them is easier than between strangers. How they came about: `training/README.md`. Weights are stored in
float16.

No content (the words and numbers that a part of a page holds) of the held-out set was ever drawn for
training: which split a content belongs to is a fixed function of it (`split_of`). The glyph atlas was
rendered from the DejaVu fonts.
"""


def describe(run: Path) -> dict[str, str]:
    """What one run was: for the card's table."""
    last = load(run)[-1]
    config = AutoConfig.from_pretrained(run)
    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    weights = {id(value.untyped_storage()): value.numel() for value in saved["model"].values()}
    return {
        "parameters": f"{sum(weights.values()):,}",
        "vision tower": _layers(config.vision_config),
        "decoder": _layers(config.text_config),
        "processor minutes on pages": f"{last['minutes']:.0f}",
        "pages": f"{last['pages']:,}",
        "answers": f"{saved['progress']['answers']:,}",
        "steps": f"{last['step']:,}",
    }


def _layers(config: Any) -> str:
    return f"{config.num_hidden_layers} layers of width {config.hidden_size}"


def results(rows: Sequence[dict[str, Any]], name: Callable[[dict[str, Any]], str], head: str) -> list[str]:
    """A table of exact match and AUROC by group."""
    lines = [f"| {head} | n | small | large | guided 64 % | 35 % | 9 % | AUROC |", "|---" * 8 + "|"]
    for group, members in {**by_kind(rows, name), "**all**": list(rows)}.items():
        shares = [percent(row[size] for row in members) for size in ("small", "large")]
        shares += [percent(row["guided"][point] for row in members) for point in ("64%", "35%", "9%")]
        area = auroc([row["score"] for row in members], [row["small"] for row in members])
        lines.append(f"| {group} | {len(members)} | {' | '.join(shares)} | {area:.3f} |")
    return lines


def main() -> None:
    """Print the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("results", type=Path, help="rows written by benchmarks.pages")
    parser.add_argument("--thinned", default="60 % of the batches of the last third", help="of training")
    options = parser.parse_args()
    facts = {name: describe(run) for name, run in (("small", options.small), ("large", options.large))}
    rows = json.loads(options.results.read_text())
    lines = [HEAD.format(thinned=options.thinned), "| | small | large |", "|---|---|---|"]
    lines += [f"| {fact} | {facts['small'][fact]} | {facts['large'][fact]} |" for fact in facts["small"]]
    lines += ["", "Counts start where training on pages did. Curves: `docs/training.png`.", ""]
    lines += [
        f"Exact match in % (95 % interval) on {len(rows)} held-out questions, one to a page, without",
        "transcriptions (`python -m benchmarks.pages`). Guided: the large model, pruned by the small one's",
        "map to that average retention. AUROC: does the small model's score tell right answers from wrong?",
        "",
    ]
    lines += results(rows, lambda row: str(row["kind"]), "kind")
    lines += ["", *results(rows, lambda row: f"{row['tiles']} tiles", "page")]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
