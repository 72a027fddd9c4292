"""Writes docs/pairs.md: what ``sgl check`` says of pairs that people run.

    python -m benchmarks.pairs
    python -m benchmarks.pairs --only internvl3-1b-hf internvl3-8b-hf

Nothing is run and nothing is downloaded: ``benchmarks/configurations`` holds what is published of each model,
its configuration and its image processor's. Their tokenizers are not here, so texts are read byte by byte, by
a tokenizer that has the model's image tokens; a question is some tokens longer than it would be.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgl_engine import PairCheck, check_pair
from sgl_engine.families.tiny.tokenizer import byte_tokenizer, chat_template
from sgl_engine.planning import Machine

CONFIGURATIONS = Path(__file__).with_name("configurations")
PAGE = Path(__file__).parents[1] / "docs/pairs.md"
PAIRS = (
    ("smolvlm-256m-instruct", "smolvlm2-2.2b-instruct"),
    ("smolvlm2-500m-video-instruct", "smolvlm2-2.2b-instruct"),
    ("internvl3-1b-hf", "internvl3-8b-hf"),
    ("internvl3-2b-hf", "internvl3-8b-hf"),
    ("qwen2.5-vl-3b-instruct", "qwen2.5-vl-7b-instruct"),
    ("qwen2.5-vl-3b-instruct", "qwen2.5-vl-32b-instruct"),
    ("qwen3-vl-4b-instruct", "qwen3-vl-8b-instruct"),
    ("qwen3-vl-4b-instruct", "qwen3-vl-32b-instruct"),
    ("gemma-3-4b-it", "gemma-3-12b-it"),
    ("gemma-3-4b-it", "gemma-3-27b-it"),
    ("llava-onevision-qwen2-0.5b-ov-hf", "llava-onevision-qwen2-7b-ov-hf"),
    ("smolvlm-256m-instruct", "llava-v1.6-mistral-7b-hf"),
    ("smolvlm2-500m-video-instruct", "qwen2.5-vl-7b-instruct"),
    ("internvl3-1b-hf", "qwen2.5-vl-7b-instruct"),
    ("qwen2.5-vl-3b-instruct", "mistral-small-3.1-24b-instruct-2503"),
)
"""Small, large: names of files in ``benchmarks/configurations``."""
_NOWHERE = Machine(gpus=(), free_bytes=0, half_precision=False)
_CHOSEN = "35%"
_ABOUT = """# Pairs that people run

**Estimated, not run.** None of these models was downloaded: this is what `sgl check` says of their published
configurations.

A page of {width} x {height} pixels (A4 at 150 dpi), an answer of {tokens} tokens, preset {preset}, caches in
16 bit. "Saved" is what is left of the operations of the large model alone where so many questions escalate,
and nothing of the small answer can be taken over. How many do escalate depends on the pair and on the
questions: `sgl calibrate` says. Operations are not seconds: writing an answer waits for memory more than for
arithmetic. How often the answers are right is not in this table at all.
"""
_MORE = """
The same for any other pair, with every preset, the setting that fits a machine and the line of Python to
start with:

```text
sgl check OpenGVLab/InternVL3-1B-hf OpenGVLab/InternVL3-8B-hf
```

## Where the sizes are from
"""


def lay_out(name: str, folder: Path) -> Path:
    """Writes the folder of one model: its repository without weights, and with a tokenizer of bytes.

    Args:
        name: Of its file in ``benchmarks/configurations``.
        folder: In which its own folder is made.

    Returns:
        Its folder, called as its repository is.
    """
    known = json.loads((CONFIGURATIONS / f"{name}.json").read_text())
    own = folder / known["name"]
    tokenizer = byte_tokenizer(known["special_tokens"], known["named_tokens"])
    tokenizer.save_pretrained(own)
    ids = tokenizer.get_vocab()
    # Tokens are numbered as this tokenizer numbers them; no size depends on it.
    config = {
        key: ids.get(value, value) if isinstance(value, str) else value
        for key, value in known["config"].items()
    }
    for file, content in (
        ("config", config),
        ("preprocessor_config", known["preprocessor_config"]),
        ("processor_config", known["processor_config"]),
    ):
        (own / f"{file}.json").write_text(json.dumps(content))
    (own / "chat_template.jinja").write_text(chat_template(known["image_text"]))
    return own


def check(small: str, large: str) -> PairCheck:
    """What is said of two models of ``benchmarks/configurations``, on a machine that has nothing."""
    with tempfile.TemporaryDirectory() as folder:
        models = [lay_out(name, Path(folder)) for name in dict.fromkeys((small, large))]
        return check_pair(models[0], models[-1], machine=_NOWHERE)


def rows(found: PairCheck) -> Iterator[str]:
    """The pair's row, and nothing where it does not run."""
    assert found.cascade is not None, (found.small.problem, found.large.problem, found.problem)
    models = (found.small, found.large)
    weights = [model.weights_bytes or {} for model in models]
    caches = [model.cache_bytes or {} for model in models]
    chosen = next(preset for preset in found.cascade.presets if preset.retention == _CHOSEN)
    cells = (
        " -> ".join(Path(model.name).name for model in models),
        " -> ".join(f"{(model.parameters or 0) / 1e9:.2f}" for model in models),
        f"{sum(each['bfloat16'] for each in weights) / 2**30:.1f}",
        f"{(weights[0]['bfloat16'] + weights[1]['int8']) / 2**30:.1f}",
        " -> ".join(f"{model.page_tokens:,}" for model in models),
        " -> ".join(f"{each['bfloat16'] / 2**20:,.0f}" for each in caches),
        f"{found.cascade.cost_ratio:.2f}",
        *(f"{saving.saved_fraction:.0%}" for saving in chosen.savings),
    )
    yield f"| {' | '.join(cells)} |"


def page(found: list[PairCheck]) -> str:
    """The whole page."""
    width, height = found[0].page
    sources = sorted(
        {(known["name"], known["source"]) for known in map(_read, CONFIGURATIONS.glob("*.json"))}
    )
    head = (
        "pair|parameters, billions|weights in 16 bit, GiB|large in int8, GiB|visual tokens of a page"
        "|cache of a page, MiB|operations small : large|saved at 20 % escalated|at 40 %|at 60 %"
    ).split("|")
    about = _ABOUT.format(width=width, height=height, tokens=found[0].answer_tokens, preset=_CHOSEN)
    lines = [
        f"{about}\n| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(row for each in found for row in rows(each)),
        f"{_MORE}\n| model | source |",
        "|---|---|",
        *(f"| {name} | {source} |" for name, source in sources),
        "",
        "Written by `python -m benchmarks.pairs`.",
    ]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def main() -> None:
    """Check every pair, and write the page; or print one pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs=2, metavar=("SMALL", "LARGE"), help="print one pair as JSON instead")
    only = parser.parse_args().only
    if only:
        print(check(*only).model_dump_json(indent=1))
        return
    found = []
    for pair in PAIRS:
        found.append(check(*pair))
        print(*rows(found[-1]), flush=True)
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
