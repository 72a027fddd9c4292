"""The outcome of one architecture."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from typing import Any

from benchmarks.coverage_families.architectures import RECIPES, REMARKS
from benchmarks.coverage_families.checks import Outcome, examine
from benchmarks.coverage_families.sizes import TOKENIZER, default, randomize
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.families import find_family
from sgl_engine.families.generic import why_not_generic
from sgl_engine.families.refused import why_refused
from sgl_engine.families.tiny import TINY_FAMILIES


def outcome_of(name: str) -> Outcome:
    """Builds and runs it; where there is no recipe, only its default configuration is shown to the engine."""
    try:
        if name in TINY_FAMILIES:
            from sgl_engine.testing import tiny_vlm

            tiny = tiny_vlm(name, size="large")
            return examine(name, tiny.model, tiny.processor)
        if name not in RECIPES:
            return _by_configuration(name)
        model, processor = RECIPES[name]()
        outcome = examine(name, *finished(model, processor))
        return replace(outcome, reason=REMARKS.get(name, "")) if outcome.verdict == "exact" else outcome
    except Exception as error:  # noqa: BLE001  # whatever an unknown architecture raises is its outcome
        if os.environ.get("TRACEBACK"):
            traceback.print_exc()
        return Outcome(name, "fails", reason=f"{type(error).__name__}: {error}")


def finished(model: Any, processor: Any) -> tuple[Any, Any]:
    """With weights that matter, and tokens that its generation ends with."""
    randomize(model)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.generation_config.pad_token_id = TOKENIZER.pad_token_id
    return model, processor


def _by_configuration(name: str) -> Outcome:
    config = default(name)
    try:
        family = find_family(config, name)
    except UnsupportedModelError as error:
        reason = why_refused(config) or why_not_generic(config) or str(error)
        return Outcome(name, "refused", reason=reason)
    return Outcome(name, "not built", family.name, "no recipe in benchmarks/coverage_families")
