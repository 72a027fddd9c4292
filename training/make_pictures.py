"""Draw the bundled pictures from held-out seeds, with the questions that the documentation asks about them.

    python -m training.make_pictures

``questions.json`` maps each picture to questions and their answers, as the generator knows them.
"""

from __future__ import annotations

import json

from PIL import Image

from sgl_engine.demo import PICTURES
from sgl_engine.demo.generator import draw_sample

SEEDS = {"receipt": ("document", 5), "scene": ("scene", 2), "chart": ("chart", 4)}


def main() -> None:
    """Write pictures and questions."""
    PICTURES.mkdir(exist_ok=True)
    questions = {}
    for name, (family, seed) in SEEDS.items():
        sample = draw_sample(seed, split="heldout", family=family)
        Image.fromarray(sample.pixels).save(PICTURES / f"{name}.png", optimize=True)
        questions[name] = {question.text: question.answer for question in sample.questions}
        print(name, sample.content)
    (PICTURES / "questions.json").write_text(json.dumps(questions, indent=1))


if __name__ == "__main__":
    main()
