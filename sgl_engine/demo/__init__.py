"""The bundled pair: two small models, trained from scratch on pages that this package draws.

``demo_engine()`` needs no network and no GPU, and loads through the same code as any other pair. What the
pair has learnt is in ``weights/README.md``: documents, tables, forms, scenes of coloured shapes, charts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sgl_engine.demo.vocabulary import TRANSCRIBE

if TYPE_CHECKING:
    import torch

    from sgl_engine import EngineConfig, SGLEngine

WEIGHTS = Path(__file__).with_name("weights")
PICTURES = Path(__file__).with_name("pictures")
SCORER = "answer_probability"
"""What separates this pair's right answers from its wrong ones best (``sgl bench``)."""

__all__ = ["PICTURES", "SCORER", "TRANSCRIBE", "WEIGHTS", "demo_engine"]


def demo_engine(
    config: EngineConfig | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
) -> SGLEngine:
    """The bundled pair, ready to answer.

    Args:
        config: What can be set; None is ``EngineConfig()``. Where it names no scorer, it gets ``SCORER``.
        device: Where both models go; None is the CPU.
        dtype: What both compute in; "auto" is float32 too, although the weights are stored as float16.
    """
    from sgl_engine import VLM, EngineConfig, ExitConfig, SGLEngine

    config = config or EngineConfig()
    if config.exit.scorer is None:
        config = config.model_copy(
            update={"exit": ExitConfig(**{**config.exit.model_dump(), "scorer": SCORER})}
        )
    # Stored as float16 for size; float32 is the fast type on most CPUs.
    dtype = "float32" if dtype == "auto" else dtype
    small, large = (
        VLM.from_pretrained(WEIGHTS / size, dtype=dtype, device=device, name=f"sgl-demo-{size}")
        for size in ("small", "large")
    )
    return SGLEngine(small, large, config)
