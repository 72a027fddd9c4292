"""What a hosted large model makes of all of a page, of crops, of a masked page: accuracy against pixels sent.

    python -m benchmarks.hosted --questions 300 --json runs/hosted.json

The bundled large model stands for the hosted one, behind OpenAI's interface on this machine; the bundled
small model looks first. Held-out pages of 1 to 6 tiles. Every question goes out in each way, and controls are
crops of the same sizes elsewhere, and the small picture of the whole alone. The "cascade" columns keep the
small answer from the threshold on. Rows are written as they come, and a second run goes on where it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import heldout
from sgl_engine import EngineConfig, ExitConfig, OpenAIModel, Request, SendConfig, SGLEngine
from sgl_engine.demo import SCORER, demo_model
from sgl_engine.demo.loopback import serve
from sgl_engine.hosted import HostedCall, encode, gather, show

THRESHOLD = 0.8
WAYS = ("full", "crop", "mask", "mask, blank", "auto", "random crop", "overview")
_CROP = SendConfig(mode="crop")
CONFIGS = {
    "full": SendConfig(mode="full"),
    "crop": _CROP,
    "mask": SendConfig(mode="mask"),
    "mask, blank": SendConfig(mode="mask", mask="blank"),
    "auto": SendConfig(mode="auto"),
}
Box = tuple[float, float, float, float]


def sent_pictures(
    request: Request, importance: Any, image: Image.Image, seed: int
) -> dict[str, tuple[str, list[Image.Image]]]:
    """What each way sends: the mode that it chose, and the pictures."""
    found: dict[str, tuple[str, list[Image.Image]]] = {}
    for way, config in CONFIGS.items():
        [sent] = gather(request, importance, config).sent
        found[way] = sent.mode, show(image, sent.boxes, sent.mode, config)
        if way == "crop":
            elsewhere = [moved(box, random.Random(f"{seed} {box}")) for box in sent.boxes]  # noqa: S311
            found["random crop"] = sent.mode, show(image, elsewhere, sent.mode, config)
    found["overview"] = "crop", show(image, (), "crop", _CROP)
    return found


def moved(box: Box, chance: random.Random) -> Box:
    """A box of the same size, anywhere."""
    width, height = box[2] - box[0], box[3] - box[1]
    left, top = chance.uniform(0, 1 - width), chance.uniform(0, 1 - height)
    return left, top, left + width, top + height


def measure(count: int, start: int, done: set[int]) -> Iterator[dict[str, Any]]:
    """Asks each question that is not done in each way; one row of results for each."""
    with serve() as server, OpenAIModel(server.base_url, server.model, timeout_s=600) as model:
        config = EngineConfig(exit=ExitConfig(scorer=SCORER)).without_reuse().escalating("never")
        with SGLEngine(demo_model("small"), model, config) as engine:
            for number, (request, question) in enumerate(heldout.questions(count, start), start):
                if number not in done:
                    yield {"seed": number, **ask(engine, model, request, question, number)}


def ask(engine: SGLEngine, model: OpenAIModel, request: Request, question: Any, seed: int) -> dict[str, Any]:
    """One question: the small answer and its score, and each way's answer and pixels."""
    small = engine.run(request)
    [part] = request.images
    image: Any = part.source
    ways = sent_pictures(request, small.importance, image, seed)
    answers: dict[bytes, str] = {}
    found = {}
    for way in WAYS:
        mode, pictures = ways[way]
        data = tuple(encode(picture, CONFIGS["full"]) for picture in pictures)
        key = b"".join(data)
        if key not in answers:  # two ways may send the same
            answers[key] = hosted_answer(model, HostedCall(request, (data,)))
        pixels = sum(picture.width * picture.height for picture in pictures)
        right = heldout.is_exact(answers[key], question)
        found[way] = {"mode": mode, "right": right, "pixels": pixels, "answer": answers[key]}
    return {
        "kind": question.kind,
        "pixels": image.width * image.height,
        "score": small.report.score,
        "small": heldout.is_exact(small.text, question),
        "ways": found,
    }


def hosted_answer(model: OpenAIModel, call: HostedCall) -> str:
    """The hosted model's whole answer."""
    pieces = model.stream(call)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            text: str = end.value.text
            return text


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy and pixels of each way, alone and behind the small model."""
    lines = [
        "| sent | right, always asked | pixels sent | cascade: right | asked | pixels sent |",
        "|---|---|---|---|---|---|",
        f"| nothing (small alone) | {heldout.percent(row['small'] for row in rows)} | 0 % | | | |",
    ]
    asked = [row["score"] < THRESHOLD for row in rows]
    for way in WAYS:
        right = [row["ways"][way]["right"] for row in rows]
        both = [each if up else row["small"] for each, up, row in zip(right, asked, rows, strict=True)]
        lines.append(
            f"| {way} | {heldout.percent(right)} | {pixels(rows, way)} | {heldout.percent(both)} | "
            f"{sum(asked) / len(rows):.0%} | {pixels(rows, way, asked)} |"
        )
    return "\n".join(lines)


def pixels(rows: Sequence[dict[str, Any]], way: str, asked: Sequence[bool] | None = None) -> str:
    """Pixels sent, of those of all pages."""
    wanted = [True] * len(rows) if asked is None else asked
    sent = sum(row["ways"][way]["pixels"] for row, up in zip(rows, wanted, strict=True) if up)
    return f"{sent / sum(row['pixels'] for row in rows):.0%}"


def kinds_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each way, always asked, by kind of question; pixels sent by "crop" and "auto"."""
    head = ["kind", "n", "small", *WAYS, "pixels of crop", "pixels of auto"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    kind: Callable[[dict[str, Any]], str] = lambda row: str(row["kind"])  # noqa: E731
    for name, some in heldout.by_kind(rows, kind).items():
        shares = [f"{sum(row['ways'][way]['right'] for row in some) / len(some):.0%}" for way in WAYS]
        small = f"{sum(row['small'] for row in some) / len(some):.0%}"
        lines.append(
            f"| {name} | {len(some)} | {small} | {' | '.join(shares)} | {pixels(some, 'crop')} | "
            f"{pixels(some, 'auto')} |"
        )
    return "\n".join(lines)


def known(file: Path | None) -> list[dict[str, Any]]:
    """Rows of an earlier run."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Measures, writes rows as they come, and prints the tables."""
    options = heldout.parse(__doc__, questions=300, json="rows, one a line; a second run goes on")
    wanted = range(options.start, options.start + options.questions)
    rows = [row for row in known(options.json) if row["seed"] in wanted]
    for row in measure(options.questions, options.start, {row["seed"] for row in rows}):
        rows.append(row)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print(f"{len(rows)} held-out questions, threshold {THRESHOLD}\n")
    print(table(rows), "\n\n", kinds_table(rows), sep="")


if __name__ == "__main__":
    main()
