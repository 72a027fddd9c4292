"""Write a run's checkpoint as a transformers folder: float16 safetensors, tokenizer, processor.

python -m training.export runs/large sgl_engine/demo/weights/large --ship --thinned "40 % of the batches"

With ``--ship``, what the run came to is added to ``training/shipped.json``, for the model card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, InternVLForConditionalGeneration

from training.tokenizer import save_processor

SHIPPED = Path(__file__).with_name("shipped.json")
"""Model -> the runs behind its weights, oldest first."""


def export(run: Path, folder: Path) -> InternVLForConditionalGeneration:
    """Save the run's model, in float16, beside its processor; return it in float32."""
    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = InternVLForConditionalGeneration(AutoConfig.from_pretrained(run))
    model.load_state_dict(saved["model"])
    model.half().save_pretrained(folder)
    save_processor(run / "tokenizer", folder)
    return model.float()


def came_to(run: Path, processes: int, thinned: str) -> dict[str, Any]:
    """What a run came to; its minutes are those of one process."""
    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)["progress"]
    counts = {"pages": saved["pages"], "answers": saved["answers"], "steps": saved["step"]}
    return {"minutes": round(processes * saved["seconds"] / 60), **counts, "thinned": thinned}


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ship", action="store_true", help="the folder's name says which model it is")
    parser.add_argument("--processes", type=int, default=1, help="that trained together")
    parser.add_argument("--thinned", default="", help="how many batches had visual tokens missing")
    options = parser.parse_args()
    model = export(options.run, options.folder)
    if options.ship:
        shipped = json.loads(SHIPPED.read_text())
        shipped[options.folder.name].append(came_to(options.run, options.processes, options.thinned))
        SHIPPED.write_text(json.dumps(shipped, indent=2) + "\n")
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.folder}: {count:,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
