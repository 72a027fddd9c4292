"""Where records are kept: one JSON line each, appended as they come, so that a run can stop and go on.

A folder holds ``run.json`` (what ties its records together) and ``records.jsonl``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sgl_engine import ConfigError
from sgl_engine.evaluation.json_lines import BadLine, mend_end, read_json_lines
from sgl_engine.evaluation.records import BenchRecord

if TYPE_CHECKING:
    from sgl_engine import VLM

RUN = "run.json"
RECORDS = "records.jsonl"


class BenchModel(BaseModel):
    """Which model answered.

    Attributes:
        name: Path, hub id, or the name that it was given.
        revision: Commit on the hub; None for a local folder.
        weights: Digest of some weights of every tensor: tells a retrained model from the one before.
        dtype: What it computes in.
        device: The kind of device it ran on, such as "cpu".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    revision: str | None
    weights: str
    dtype: str
    device: str

    @classmethod
    def of(cls, vlm: VLM) -> BenchModel:
        """Describes a loaded model."""
        digest = hashlib.sha256()
        for name, tensor in vlm.model.named_parameters():
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 16)][:16]
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(some.float().cpu().numpy().tobytes())
        return cls(
            name=vlm.name,
            revision=vlm.revision,
            weights=digest.hexdigest()[:16],
            dtype=str(vlm.model.dtype).removeprefix("torch."),
            device=vlm.device.type,
        )


class Manifest(BaseModel):
    """What ties the records of a folder together; a run goes on only where all of it is the same.

    Attributes:
        schema_version: Of the records.
        engine_version: Version of this package.
        small: The small model.
        large: The large model.
        data: ``Data.identity``.
        settings: Everything else that changes an answer, a cost or a score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal["1"] = "1"
    engine_version: str
    small: BenchModel
    large: BenchModel
    data: str
    settings: Mapping[str, Any]


class Store:
    """A folder of records.

    Args:
        folder: Made where it does not exist.
        manifest: Of the run that is about to begin or to go on.
        overwrite: Throw away what another run has left there.

    Attributes:
        bad: Lines that were no records when ``records`` last read them.

    Raises:
        ConfigError: It holds records of another run, or cannot be written.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, overwrite: bool = False) -> None:
        self.folder = folder
        self.manifest = manifest
        self.bad: tuple[BadLine, ...] = ()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._records.unlink(missing_ok=True)
                self._run.unlink(missing_ok=True)
            if self._run.exists():
                self._check_same()
            else:
                self._run.write_text(manifest.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror or error}).", remedy="Name another folder."
            ) from error

    @property
    def _run(self) -> Path:
        return self.folder / RUN

    @property
    def _records(self) -> Path:
        return self.folder / RECORDS

    def _check_same(self) -> None:
        try:
            found = Manifest.model_validate_json(self._run.read_text())
        except ValidationError as error:
            raise ConfigError(
                f"{self._run} is not the description of a run.",
                remedy="Name another folder, or begin anew with --overwrite.",
            ) from error
        changed = _differences(found.model_dump(mode="json"), self.manifest.model_dump(mode="json"))
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run that differs: {'; '.join(changed)}.",
                remedy="Name another folder, go back to those settings, or begin anew with --overwrite.",
            )

    def records(self) -> dict[int, BenchRecord]:
        """Reads what is recorded, by the row's number; the last record of a row counts.

        A last line that was cut off, as by a power failure, is removed from the file. Other lines that are no
        records are left out, and listed in ``bad``: their rows are asked about again.
        """
        if not self._records.exists():
            return {}
        mend_end(self._records)
        lines, bad = read_json_lines(self._records.read_bytes(), BenchRecord.model_validate)
        self.bad = tuple(bad)
        return {record.row.index: record for _, record in lines}

    def append(self, record: BenchRecord) -> None:
        """Adds a record; it is on the disk, whole, when this returns."""
        line = record.model_dump_json().encode() + b"\n"
        with self._records.open(
            "ab", buffering=0
        ) as file:  # one write: a line is there or cut off, never mixed
            file.write(line)
            os.fsync(file.fileno())


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Lists where two documents differ, by the shortest names that say so."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            fault
            for key in keys
            for fault in _differences(there.get(key), here.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if there == here else [f"{name.removeprefix('settings.')} was {there!r} and is {here!r}"]
