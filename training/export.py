"""Write a checkpoint as a transformers folder: float16 safetensors, tokenizer, processor.

python -m training.export large runs/large sgl_engine/demo/weights/large
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sgl_engine.demo.drawing import PATCH
from training.models import build_model, grow
from training.tokenizer import build_processor, load_or_train


def main() -> None:
    """Read the run's checkpoint and save the model beside its processor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("small", "large"))
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patch", type=int, default=PATCH, help="as in training")
    parser.add_argument("--start-from", type=Path, help="as in training; its tokenizer is taken")
    options = parser.parse_args()
    tokenizer = load_or_train(options.start_from or options.run.parent / "tokenizer")
    saved = torch.load(options.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = build_model(options.model, tokenizer, patch=options.patch)
    if saved["progress"]["grown"]:
        model = grow(model)
    model.load_state_dict(saved["model"])
    model.half().save_pretrained(options.folder)
    build_processor(tokenizer, patch=options.patch).save_pretrained(options.folder)
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.folder}: {parameters:,} parameters, {size / 1e6:.1f} MB, trained on {saved['progress']}")


if __name__ == "__main__":
    main()
