"""Write the model card of the shipped pair from what the runs and the benchmark recorded.

sgl bench --questions 2000 --processes 2 --out runs/bench
python -m training.card runs/bench > sgl_engine/demo/weights/README.md

Runs leave what they came to in ``training/shipped.json`` when they are exported (``training.export``).
"""

from __future__ import annotations

import argparse
import json
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig

from sgl_engine.demo import WEIGHTS
from training.export import SHIPPED
from training.tables import percent

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


def describe(name: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    """What a shipped model is, and what its runs came to together: for the card's table."""
    config = AutoConfig.from_pretrained(WEIGHTS / name)
    with safe_open(WEIGHTS / name / "model.safetensors", framework="pt") as file:
        parameters = sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118  # no dict
    return {
        "parameters": f"{parameters:,}",
        "vision tower": _layers(config.vision_config),
        "decoder": _layers(config.text_config),
        "processor minutes on pages": f"{sum(run['minutes'] for run in runs):.0f}",
        **{count: f"{sum(run[count] for run in runs):,}" for count in ("pages", "answers", "steps")},
    }


def _layers(config: Any) -> str:
    return f"{config.num_hidden_layers} layers of width {config.hidden_size}"


def results(groups: dict[str, Any], head: str) -> list[str]:
    """A table of accuracies and AUROC by group, from a benchmark's ``results.json``."""
    points = list(next(iter(groups.values()))["guided"])
    names = " | ".join(f"guided {point}" for point in points)
    lines = [f"| {head} | n | small | large | {names} | AUROC |", "|---" * (5 + len(points)) + "|"]
    for name, group in groups.items():
        shares = (group["small"], group["large"], *group["guided"].values())
        area = "-" if group["auroc"] is None else f"{group['auroc']:.3f}"
        lines.append(f"| {name} | {group['rows']} | {' | '.join(map(percent, shares))} | {area} |")
    return lines


def cascade(found: dict[str, Any]) -> str:
    """What the cascade of the benchmark's threshold makes of it."""
    (system,) = (each for each in found["cascade"] if each["threshold"] == found["threshold"])
    return (
        f"The cascade at {found['point']}, exits at {found['threshold']:g}, escalates "
        f"{percent(system['escalated'])} % of them; minus the large model alone: "
        f"{percent(system['versus_large'], '+.1f')} points, in {system['ms_share']['value']:.2f} of its time "
        f"and with {system['tflops_share']['value']:.2f} of its operations."
    )


def measured(found: dict[str, Any]) -> list[str]:
    """The part of the card that a benchmark fills in."""
    score = found["score"]
    lines = [
        f"Exact match in % (95 % interval) on {found['rows']} held-out questions, one to a page, without",
        "transcriptions (`sgl bench`). Guided: the large model, pruned by the small one's map to",
        "that average retention. AUROC: does the small model's score tell right answers from wrong?",
        f"All: {score['auroc']['value']:.3f}, within a kind {score['auroc_within_kinds']:.3f} on average.",
        "",
        cascade(found),
        "",
        *results(found["kinds"], "kind"),
    ]
    if found["tiles"]:
        lines += ["", *results(found["tiles"], "page")]
    if found["apart"]:
        lines += ["", "Transcriptions, which need all of a part, stand apart:", ""]
        lines += results(found["apart"], "kind")
    return lines


def main() -> None:
    """Print the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", type=Path, help="folder of sgl bench")
    options = parser.parse_args()
    shipped = json.loads(SHIPPED.read_text())
    facts = {name: describe(name, runs) for name, runs in shipped.items()}
    thinned = "; ".join(run["thinned"] for run in shipped["large"] if run["thinned"])
    lines = [HEAD.format(thinned=thinned), "| | small | large |", "|---|---|---|"]
    lines += [f"| {fact} | {facts['small'][fact]} | {facts['large'][fact]} |" for fact in facts["small"]]
    lines += ["", "Counts start where training on pages did, or where the decoder got its depth."]
    lines += ["Curves of the last run: `docs/training.png`.", ""]
    lines += measured(json.loads((options.bench / "results.json").read_text()))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
