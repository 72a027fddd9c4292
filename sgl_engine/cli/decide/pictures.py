"""What the command line names -> pictures: files, folders, URLs, standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sgl_engine import LimitsConfig, MissingImageError
from sgl_engine.cli.decide.rows import whole_text
from sgl_engine.prompt import at_home, decode_data_url, describe_source, pictures_in, read_file


@dataclass(frozen=True)
class Found:
    """A picture that was named or found, not read yet.

    Attributes:
        given: As it was written, or its path below a folder as that was written.
        error: Why there is none.
    """

    given: str
    error: MissingImageError | None = None

    @property
    def name(self) -> str:
        """What rows call it; data that was written out is not repeated."""
        return whole_text(describe_source(self.given) if self._is_data else self.given)

    @property
    def is_path(self) -> bool:
        """Whether it is on this machine's disks."""
        return self.given != "-" and not self._is_data and "://" not in self.given

    @property
    def _is_data(self) -> bool:
        return self.given.startswith("data:")

    def read(self, limits: LimitsConfig) -> bytes | str:
        """Its bytes; of a URL, the URL.

        Raises:
            ImageError: It is not there, cannot be read, or is too large.
        """
        if self.error is not None:
            raise self.error
        if self.given == "-":
            return sys.stdin.buffer.read(limits.max_image_bytes + 1)  # one too many is enough to be refused
        if self._is_data:
            return decode_data_url(self.given)
        return read_file(at_home(self.given), limits) if self.is_path else self.given


def digest(source: bytes | str) -> str | None:
    """By what a picture is known again; None where only its name can say."""
    return sha256(source).hexdigest() if isinstance(source, bytes) else None


def find_pictures(names: Iterable[str]) -> list[Found]:
    """Every picture once, in the order in which they are named; those of a folder by their paths."""
    found: dict[str, Found] = {}
    for name in names:
        each = Found(name)
        is_folder = each.is_path and at_home(name).is_dir()
        for picture in _in_folder(name) if is_folder else [each]:
            found.setdefault(picture.given, picture)
    return list(found.values())


def _in_folder(name: str) -> Iterator[Found]:
    """Pictures of a folder and of those in it; files that are none are passed over."""
    root = at_home(name)
    paths, failures = pictures_in(root)
    yield from (Found(str(Path(name, path.relative_to(root)))) for path in paths)
    for failure in failures:
        problem = f"The folder {failure.filename} cannot be read ({failure.strerror})."
        yield Found(str(failure.filename), MissingImageError(problem, remedy="Check its permissions."))
    if not paths and not failures:
        problem = f"The folder {name} holds no picture."
        yield Found(name, MissingImageError(problem, remedy="Name a picture, or a folder of some."))
