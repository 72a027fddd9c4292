"""What must be the same when a run goes on: the rows, the models, and every setting that counts."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

from sgl_engine import EngineConfig
from sgl_engine.batch.inputs import Rows
from sgl_engine.planning.files import find_files

Job: TypeAlias = Mapping[str, str | int | None]

_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 4096
_SMALL_BYTES: Final = 2**20
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
    """
    calibration = config.exit.calibration
    return {
        "rows": len(rows),
        "input": rows.identity,
        "form": form,
        "small": model_identity(small),
        "large": model_identity(large),
        "config": sha256(config.model_dump_json(exclude={"scheduler", "reuse"}).encode()).hexdigest(),
        "calibration": None if calibration is None else sha256(Path(calibration).read_bytes()).hexdigest(),
        **settings,
    }


def model_identity(source: str | Path) -> str:
    """Stands for a model's files: its commit on the hub, or a digest of its folder.

    Of large files, size and samples count, so that it takes milliseconds; the models are not loaded.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    files = find_files(source)
    if files.revision is not None:
        return f"{files.name}@{files.revision}"
    digest = sha256()
    for path in sorted(each for each in files.folder.rglob("*") if each.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(files.folder).as_posix()} {size}\n".encode(errors="replace"))
        with path.open("rb") as file:
            if size <= _SMALL_BYTES:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek(sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
