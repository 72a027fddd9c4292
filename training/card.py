"""Write the model card of the shipped pair from what the runs and the benchmark recorded.

python -m benchmarks.pair --questions 2000 --json runs/pair.json
python -m training.card runs/small runs/large runs/pair.json > sgl_engine/demo/weights/README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.heldout import by_kind, percent
from sgl_engine.demo import WEIGHTS
from sgl_engine.evaluation.intervals import auroc
from training.curves import load

HEAD = """# The bundled pair

Two InternVL-architecture models (Qwen3 decoder) in transformers format, trained from scratch by `training/`
on pictures and questions that `sgl_engine/demo/generator.py` draws: receipts and notes, scenes of coloured
shapes with numbers, bar charts; 192 x 192 pixels, 144 visual tokens. They answer in lower case, in a few
words, about such pictures only. They exist so that the package can be tried, tested and measured without a
download; nothing they say about other pictures means anything.

The large model grew out of the small one: tower and decoder were doubled in depth with their function
unchanged, trained on, and the decoder was doubled once more on the way. So the two are closer relatives than
most pairs are, and guidance between them is easier than between strangers. The small tower itself started
from a run of 13 minutes on an earlier version of the generator, which the counts below leave out. Weights
are stored in float16.

No content (the words and numbers that a picture holds) of the held-out set was ever drawn for training:
which split a content belongs to is a fixed function of it (`split_of`). The glyph atlas was rendered from
the DejaVu fonts.
"""


def describe(run: Path, folder: Path) -> dict[str, Any]:
    """What one run was: for the card's table."""
    entries = load(run)
    last = entries[-1]
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    parameters = sum(_product(shape) for shape in shapes)
    first = entries[0]
    grown = first["stage"] == "joint"
    before = {name: first[name] if grown else 0 for name in ("minutes", "pictures", "step")}
    return {
        "parameters": f"{parameters:,}",
        "vision tower": _layers(config["vision_config"]),
        "decoder": _layers(config["text_config"]),
        "starts from": f"the small one, after {before['step']:,} steps" if grown else "random weights",
        "own training, minutes": f"{last['minutes'] - before['minutes']:.0f}",
        "own training, pictures": f"{last['pictures'] - before['pictures']:,}",
        "own training, steps": f"{last['step'] - before['step']:,}",
    }


def _layers(config: dict[str, Any]) -> str:
    return f"{config['num_hidden_layers']} layers of width {config['hidden_size']}"


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def main() -> None:
    """Print the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("results", type=Path, help="rows written by benchmarks.pair")
    options = parser.parse_args()
    facts = {
        name: describe(run, WEIGHTS / name)
        for name, run in (("small", options.small), ("large", options.large))
    }
    rows = json.loads(options.results.read_text())
    print(HEAD)
    print("| | small | large |\n|---|---|---|")
    for fact in facts["small"]:
        print(f"| {fact} | {facts['small'][fact]} | {facts['large'][fact]} |")
    print("\nTrained on two cores of an AMD EPYC (Zen 3), float32. Curves: `docs/training.png`.\n")
    print(f"Exact match in % (95 % interval) on {len(rows)} held-out questions: `python -m benchmarks.pair`.")
    print(
        "The last two columns are the large model at 35 % average retention, guided by the small one, and the"
    )
    print("AUROC of the small model's score (does it tell right answers from wrong ones?).\n")
    print("| kind | n | small | large | large, guided | AUROC |\n|---|---|---|---|---|---|")
    for kind, group in {**by_kind(rows, lambda row: row["kind"]), "**all**": rows}.items():
        shares = " | ".join(percent(row[name] for row in group) for name in ("small", "large", "guided"))
        area = auroc([row["score"] for row in group], [row["small"] for row in group])
        print(f"| {kind} | {len(group)} | {shares} | {area:.3f} |")


if __name__ == "__main__":
    main()
