"""Draw the bundled pictures from held-out seeds, with the questions that the documentation asks about them.

    python -m training.make_pictures

``questions.json`` maps each picture to questions and their true answers.
"""

from __future__ import annotations

import json

from PIL import Image

from sgl_engine.demo import PICTURES
from sgl_engine.demo.generator import draw_sample

QUESTIONS = {
    "receipt": {
        "How much is the total?": "3.73",
        "Which line says 9.35?": "apple",
        "What is the price of pasta?": "none",
    },
    "scene": {
        "What color is the shape with number 18?": "orange",
        "What number is on the purple triangle?": "59",
        "How many purple shapes are there?": "3",
    },
    "chart": {
        "Which bar is the highest?": "dec",
        "Which bar is orange?": "dec",
        "What color is may?": "green",
    },
}
SEEDS = {"receipt": ("document", 5), "scene": ("scene", 2), "chart": ("chart", 4)}


def main() -> None:
    """Write pictures and questions."""
    PICTURES.mkdir(exist_ok=True)
    for name, (family, seed) in SEEDS.items():
        sample = draw_sample(seed, split="heldout", family=family)
        Image.fromarray(sample.pixels).save(PICTURES / f"{name}.png", optimize=True)
        print(name, sample.content)
    (PICTURES / "questions.json").write_text(json.dumps(QUESTIONS, indent=1) + "\n")


if __name__ == "__main__":
    main()
