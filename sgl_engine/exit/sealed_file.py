"""A file whose id is a hash of what it holds, so that an edited one is noticed, as calibrations are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sgl_engine.errors import ConfigError
from sgl_engine.exit.binding import digest


class SealedFile(BaseModel):
    """What such a file holds; JSON.

    Attributes:
        id: Hash of everything that is written, but for itself and ``created``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind_of_file: ClassVar[str]
    """For messages: "a calibration"."""
    made_by: ClassVar[str]
    """The command that makes one."""

    id: str = ""

    def identified(self) -> Self:
        """Returns it with the id that its content has."""
        return self.model_copy(update={"id": _hash(self.model_dump(mode="json"))})

    def save(self, path: Path) -> None:
        """Writes it.

        Raises:
            ConfigError: The file cannot be written.
        """
        try:
            path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror or error}).",
                remedy="Name another file with --out.",
            ) from error


Sealed = TypeVar("Sealed", bound=SealedFile)


def load_sealed(cls: type[Sealed], path: str | Path) -> Sealed:
    """Reads and checks a file; one that has not changed is read once.

    Raises:
        ConfigError: It is missing, holds something else, is of another version, or was edited.
    """
    path = Path(path).expanduser()
    try:
        status = path.stat()
        found: Sealed = _load(cls, path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read as {cls.kind_of_file} ({error.strerror or error}).",
            remedy=f"Make it with {cls.made_by}, or correct the path.",
        ) from error
    return found


@lru_cache(maxsize=16)
def _load(cls: type[Sealed], path: Path, modified_ns: int, size_bytes: int) -> Sealed:
    del modified_ns, size_bytes  # part of the key
    content = path.read_bytes()
    try:
        found = cls.model_validate_json(content)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "the whole"
        raise ConfigError(
            f"{path} is not {cls.kind_of_file} that this version can read ({where}: {wrong['msg']}).",
            remedy=f"Use a file that {cls.made_by} wrote, with this version of the package.",
        ) from error
    # Of what is written, not of what is read: fields that did not exist when it was made are no part of it.
    if _hash(json.loads(content)) != found.id:
        raise ConfigError(
            f"{path}, {cls.kind_of_file}, was changed after it was made: its id is not that of its content.",
            remedy=f"Use the file as {cls.made_by} wrote it; numbers set by hand guarantee nothing.",
        )
    return found


def _hash(content: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in content.items() if name not in ("id", "created")}
    return digest(json.dumps(kept, sort_keys=True))
