"""The two models of a cluster, with their weights or without them."""

from __future__ import annotations

from typing import Literal

from sgl_engine import VLM, EngineConfig
from sgl_engine.cluster.settings import ClusterSettings, ModelSource, check_engine
from sgl_engine.demo import WEIGHTS, demo_model, with_scorer
from sgl_engine.planning.files import find_files
from sgl_engine.planning.outline import outline

Size = Literal["small", "large"]


def load(source: ModelSource, size: Size) -> VLM:
    """Loads a model; errors are those of ``VLM.from_pretrained``."""
    settings = dict(source.settings)
    if source.path is None:
        return demo_model(size, **settings)
    return VLM.from_pretrained(source.path, name=source.name, **settings)


def sketch(source: ModelSource, size: Size) -> VLM:
    """Builds a model without weights: it reads requests and answers, and its operations can be counted.

    Raises:
        ModelError: Its configuration or its processor cannot be used.
    """
    path, name = source.path, source.name
    if path is None:
        path, name = str(WEIGHTS / size), f"sgl-demo-{size}"
    files = find_files(path, revision=source.settings.get("revision"))
    vlm = outline(files, trust_remote_code=source.settings.get("trust_remote_code", False))
    vlm.name = name or vlm.name
    vlm.is_checked = True  # by the process that has its weights
    return vlm


def engine_config(settings: ClusterSettings) -> EngineConfig:
    """The engine's settings; the bundled pair has a scorer of its own, as in ``demo_engine``.

    Raises:
        ConfigError: They take the weights of both models.
    """
    config = settings.engine
    check_engine(config)
    return config if settings.small.path is not None else with_scorer(config)
