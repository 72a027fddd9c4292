"""Write a run's checkpoint as a transformers folder: float16 safetensors, tokenizer, processor.

python -m training.export runs/large sgl_engine/demo/weights/large
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, InternVLForConditionalGeneration

from training.tokenizer import save_processor


def export(run: Path, folder: Path) -> InternVLForConditionalGeneration:
    """Save the run's model, in float16, beside its processor; return it in float32."""
    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = InternVLForConditionalGeneration(AutoConfig.from_pretrained(run))
    model.load_state_dict(saved["model"])
    model.half().save_pretrained(folder)
    save_processor(run / "tokenizer", folder)
    return model.float()


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    model = export(options.run, options.folder)
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.folder}: {count:,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
