"""The bundled pair: two small models, trained from scratch on pages that this package draws.

``demo_engine()`` needs no network and no GPU, and loads through the same code as any other pair. What the
pair has learnt is in ``weights/README.md``: documents, tables, forms, scenes of coloured shapes, charts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from sgl_engine.demo.vocabulary import TRANSCRIBE

if TYPE_CHECKING:
    from sgl_engine import VLM, EngineConfig, LoadSettings, SGLEngine

WEIGHTS = Path(__file__).with_name("weights")
PICTURES = Path(__file__).with_name("pictures")
SCORER = "answer_probability"
"""What separates this pair's right answers from its wrong ones best (``sgl bench``)."""
SMALL_NAME = "sgl-demo-small"
"""By which the bundled small model is known: it follows no instructions, and has to be asked otherwise."""

__all__ = [
    "PICTURES",
    "SCORER",
    "SMALL_NAME",
    "TRANSCRIBE",
    "WEIGHTS",
    "demo_engine",
    "demo_model",
    "with_scorer",
]


def demo_engine(
    config: EngineConfig | None = None,
    *,
    small_settings: LoadSettings | None = None,
    large_settings: LoadSettings | None = None,
    **settings: Unpack[LoadSettings],
) -> SGLEngine:
    """The bundled pair, ready to answer.

    Args:
        config: What can be set; None is ``EngineConfig()``. Where it names no scorer, it gets ``SCORER``.
        small_settings: How the small model is loaded; as in ``SGLEngine.from_pretrained``.
        large_settings: How the large model is loaded.
        settings: How both are: ``device``, ``dtype``, ...; the dtype "auto", the default, is float32 here,
            although the weights are stored as float16.
    """
    from sgl_engine import EngineConfig, SGLEngine
    from sgl_engine.model import settings_of_each

    small, large = settings_of_each(settings, small_settings, large_settings)
    models = demo_model("small", **small), demo_model("large", **large)
    return SGLEngine(*models, with_scorer(config or EngineConfig()))


def with_scorer(config: EngineConfig) -> EngineConfig:
    """The configuration with ``SCORER``, where it names no scorer."""
    if config.exit.scorer is not None:
        return config
    return config.model_copy(update={"exit": config.exit.model_copy(update={"scorer": SCORER})})


def demo_model(size: Literal["small", "large"], **settings: Unpack[LoadSettings]) -> VLM:
    """One model of the bundled pair, as ``demo_engine`` loads it."""
    from sgl_engine import VLM

    # Stored as float16 for size; float32 is the fast type on most CPUs.
    if settings.get("dtype") in {None, "auto"}:
        settings["dtype"] = "float32"
    return VLM.from_pretrained(WEIGHTS / size, name=f"sgl-demo-{size}", **settings)
