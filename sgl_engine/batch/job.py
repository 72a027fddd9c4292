"""What must be the same when a run goes on: the rows, the models, and every setting that counts."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

from sgl_engine import EngineConfig
from sgl_engine.batch.inputs import Rows
from sgl_engine.exit import Calibration
from sgl_engine.planning.files import calibration_bytes, model_identity

Job: TypeAlias = Mapping[str, str | int | None]
WORDS: Final[Mapping[str, str]] = {
    "rows": "the number of rows",
    "input": "the input",
    "form": "the form of the rows",
    "small": "the small model",
    "large": "the large model",
    "config": "a setting of the engine",
    "question": "--question",
    "max_new_tokens": "--max-new-tokens",
    "model_name": "--model-name",
    "dtype": "--dtype",
    "calibration": "the file of --calibration",
}
"""What each entry is called where it has changed."""


def describe(
    rows: Rows,
    *,
    form: str,
    small: str | Path,
    large: str | Path,
    config: EngineConfig,
    **settings: str | int | None,
) -> Job:
    """Describes a run.

    Args:
        rows: What is asked.
        form: What the rows are taken for.
        small: Folder or hub id of the small model.
        large: Folder or hub id of the large model.
        config: The engine's.
        settings: Others, by their names in ``WORDS``.

    Raises:
        ModelNotFoundError: There is no such model.
        ConfigError: The calibration cannot be read.
    """
    path = config.exit.calibration
    calibration = None if path is None else sha256(calibration_bytes(Calibration, path)).hexdigest()
    return {
        "rows": len(rows),
        "input": rows.identity,
        "form": form,
        "small": model_identity(small),
        "large": model_identity(large),
        "config": sha256(config.model_dump_json(exclude={"scheduler", "reuse"}).encode()).hexdigest(),
        "calibration": calibration,
        **settings,
    }
