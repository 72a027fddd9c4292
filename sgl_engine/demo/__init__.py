"""The bundled pair: two small models, trained from scratch on pictures that this package draws.

``demo_engine()`` needs no network and no GPU, and loads through the same code as any other pair. What the
pair has learnt is in ``weights/README.md``: receipts and notes, scenes of coloured shapes, bar charts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sgl_engine.config import EngineConfig
    from sgl_engine.engine import SGLEngine

WEIGHTS = Path(__file__).with_name("weights")
PICTURES = Path(__file__).with_name("pictures")

__all__ = ["PICTURES", "WEIGHTS", "demo_engine"]


def demo_engine(config: EngineConfig | None = None, *, device: str | torch.device | None = None) -> SGLEngine:
    """The bundled pair, ready to answer.

    Args:
        config: What can be set; None is ``EngineConfig()``.
        device: Where both models go; None is the CPU.
    """
    from sgl_engine.engine import SGLEngine
    from sgl_engine.vlm import VLM

    # Stored as float16 for size; computed in float32, which is the fast type on most CPUs.
    small, large = (
        VLM.from_pretrained(WEIGHTS / size, dtype="float32", device=device, name=f"sgl-demo-{size}")
        for size in ("small", "large")
    )
    return SGLEngine(small, large, config)
