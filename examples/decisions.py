"""Sorts a folder of pictures by typed questions: what is it, is it legible, is the total above 5, and where.

The bundled pair follows no instructions: it reads pages, and knows some questions about them. ``PageForm``
puts what is asked in its words, and says which of its answers mean what. A pair that follows instructions
needs no form of its own: ``SGLDecisionModel(small=..., large=...)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from langchain_core.decisions import Box, Choice, Noul
from PIL import Image, ImageDraw, ImageFilter

from langchain_sgl import SGLDecisionModel, image_block
from sgl_engine.decisions import (
    BareForm,
    BoxQuestion,
    ChoiceQuestion,
    DecisionConfig,
    DecisionQuestion,
    LabelWay,
    Option,
    PutQuestion,
)
from sgl_engine.demo import PICTURES
from sgl_engine.demo.vocabulary import BARS, COLORS, ITEMS, NONE, TRANSCRIBE

TOTAL = "How much is the total?"
FIRST_WORDS = {"receipt": ITEMS, "chart": BARS, "scene": COLORS}
QUESTIONS = {
    "kind": Choice(instructions="What is it?", criteria=dict.fromkeys(FIRST_WORDS)),
    "legible": Noul(instructions="Is there a total that can be read?"),
    "above 5": Noul(instructions="Is the total above 5?"),
    "where": Box(instructions=TOTAL),
}


class PageForm:
    """What the bundled pair is asked instead, and which of its answers count as which."""

    def put(self, question: DecisionQuestion, order: Sequence[int], labels: LabelWay) -> PutQuestion:
        """Puts one of ``QUESTIONS``."""
        if isinstance(question, BoxQuestion):
            return BareForm().put(question, order, labels)
        if isinstance(question, ChoiceQuestion):
            # A transcription begins with a good, a month or a colour.
            return PutQuestion(
                (TRANSCRIBE,), tuple(Option(begins=FIRST_WORDS[each]) for each in question.labels)
            )
        if "above" in str(question.instructions):
            above, below = (tuple(f"{digit}." for digit in digits) for digits in ("56789", "01234"))
            return PutQuestion((TOTAL,), (Option(begins=above), Option(says=(NONE,), begins=below)))
        return PutQuestion((TOTAL,), (Option(rest=True), Option(says=(NONE,))))


def fill(folder: Path) -> None:
    """Puts the bundled pictures into an empty folder, and one that nobody can read."""
    for name in FIRST_WORDS:
        Image.open(PICTURES / f"{name}.png").save(folder / f"{name}.png")
    blurred = Image.open(PICTURES / "receipt.png").convert("RGB").filter(ImageFilter.GaussianBlur(5))
    blurred.save(folder / "blurred.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and draws the boxes of the receipts' totals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="pictures; the bundled ones are put into an empty one")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("boxes"),
        help="folder for pictures with boxes (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.png")):
        fill(folder)
    model = SGLDecisionModel(settings=DecisionConfig(form=PageForm()))
    print(f"{'picture':<14}{'kind':<16}{'legible':>8}{'above 5':>9}  box of the total       asked")
    for path in sorted(folder.glob("*.png")):
        response = model.invoke({"state": [image_block(path)], "questions": QUESTIONS})  # type: ignore[typeddict-item]
        kind, legible = response.choices["kind"], response.nouls["legible"].noul
        box, shown = response.boxes["where"].box, ""
        if kind.choice == "receipt" and legible > 0.5:
            shown = f"{box.left:.2f} {box.top:.2f} {box.right:.2f} {box.bottom:.2f}"
            draw(path, (box.left, box.top, box.right, box.bottom), given.out)
        large = [name for name, each in response.reports.items() if each["route"] == "large"]  # type: ignore[attr-defined]
        by = "large: " + ", ".join(large) if large else "small"
        print(
            f"{path.name:<14}{kind.choice:<8}{kind.probabilities[kind.choice]:<8.2f}{legible:>8.2f}"
            f"{response.nouls['above 5'].noul:>9.2f}  {shown:<22} {by}"
        )


def draw(path: Path, box: tuple[float, float, float, float], out: Path) -> None:
    """Draws a box into a copy of the picture: the folder itself is only read."""
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    edges = (box[0] * width, box[1] * height, box[2] * width - 1, box[3] * height - 1)
    ImageDraw.Draw(picture).rectangle(edges, outline="red", width=2)
    out.mkdir(parents=True, exist_ok=True)
    picture.save(out / path.name)


if __name__ == "__main__":
    main()
