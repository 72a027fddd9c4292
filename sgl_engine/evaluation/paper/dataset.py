"""All benchmarks that were found, as one list of rows; what cannot be read is named, never dropped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sgl_engine import ConfigError
from sgl_engine.evaluation.columns import RawRow
from sgl_engine.evaluation.dataset import DataSample
from sgl_engine.evaluation.json_lines import BadLine
from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS, Benchmark, Coordinates, PaperQuestion
from sgl_engine.evaluation.paper.tables import ENDINGS, only_picture, read_rows
from sgl_engine.evaluation.records import DataRow

HUB_REVISION = "refs/convert/parquet"
"""Where the hub keeps every public data set as parquet, in a folder for each configuration and split."""


@dataclass(frozen=True, eq=False)
class PaperData:
    """Rows of several benchmarks, one after the other.

    Attributes:
        rows: What is asked, with the row that holds its pictures.
        bad: Rows that cannot be used, all of them; the problem names file and row.
        identity: Digest of all that is asked, whatever ``limit`` leaves of it.
        missing: Titles of benchmarks that were not found.
        others: Benchmark -> rows that are no part of it, such as SEED-Bench's videos.
    """

    rows: tuple[tuple[DataRow, RawRow], ...]
    bad: tuple[BadLine, ...]
    identity: str
    missing: tuple[str, ...]
    others: Mapping[str, int]

    @classmethod
    def read(
        cls,
        places: Mapping[str, Path],
        *,
        limit: int | None = None,
        coordinates: Coordinates = "fractions",
        longest: int | None = None,
    ) -> PaperData:
        """Reads benchmarks; pictures are opened when a row is asked about.

        Args:
            places: Benchmark -> its file or folder (``find_benchmarks``).
            limit: Questions that are taken of each; None is all.
            coordinates: How boxes are asked for.
            longest: Answer tokens at most, where a benchmark allows more; None is what each allows.

        Raises:
            ConfigError: A file cannot be read, or a benchmark has not one row that can be used.
        """
        rows: list[tuple[DataRow, RawRow]] = []
        bad: list[BadLine] = []
        others: Counter[str] = Counter()
        digest = hashlib.sha256(coordinates.encode())
        for name, path in places.items():
            benchmark = BENCHMARKS[name]
            asked, faults, others[name] = _ask(benchmark, path, coordinates)
            bad += faults
            if not asked:
                said = f" The first of {len(faults)} problems: {faults[0].problem}." if faults else ""
                raise ConfigError(
                    f"{path} has no row that can be used for {benchmark.title}.{said}",
                    remedy="docs/benchmarks.md says which columns are needed.",
                )
            for each, _ in asked:
                digest.update(repr(each).encode())
            first = len(rows)
            rows += [
                (_row(first + at, benchmark, each, longest), raw)
                for at, (each, raw) in enumerate(asked[:limit])
            ]
        missing = tuple(each.title for each in BENCHMARKS.values() if each.name not in places)
        found = ", ".join(BENCHMARKS[name].title for name in places)
        # Rows are numbered one after the other, so a run with another limit is another run.
        identity = f"{found}, {limit or 'all'} questions of each, sha256 {digest.hexdigest()}"
        return cls(tuple(rows), tuple(bad), identity, missing, +others)

    @property
    def name(self) -> str:
        """How people call it."""
        kinds = {row.kind for row, _ in self.rows}
        return f"{len(self.rows)} questions of {len(kinds)} benchmarks"

    def __len__(self) -> int:
        """Counts the questions."""
        return len(self.rows)

    def __getitem__(self, index: int) -> DataSample:
        """Returns a question and its picture, or what is wrong with the picture."""
        row, raw = self.rows[index]
        try:
            return DataSample(row, (only_picture(raw.pictures()),))
        except (ValueError, OSError, ConfigError) as error:
            return DataSample(row, (), problem=f"{raw.name}: {error}")


def _ask(
    benchmark: Benchmark, path: Path, coordinates: Coordinates
) -> tuple[list[tuple[PaperQuestion, RawRow]], list[BadLine], int]:
    """Returns the questions of a benchmark with their rows, what is no row, and how many rows are others'."""
    asked: list[tuple[PaperQuestion, RawRow]] = []
    bad: list[BadLine] = []
    others = 0
    for number, raw in enumerate(_with_pictures(read_rows(path, benchmark.split)), start=1):
        try:
            if raw.problem is not None:
                raise ValueError(raw.problem)  # noqa: TRY301  # told as the others are
            questions = benchmark.ask(raw, coordinates)
        except (ValueError, OSError) as error:  # PIL's errors are such
            bad.append(BadLine(number, f"{benchmark.title}, {raw.name}: {error}"))
            continue
        others += not questions
        asked += [(each, raw) for each in questions]
    return asked, bad, others


def _with_pictures(rows: Sequence[RawRow]) -> Iterator[RawRow]:
    """Gives rows that name a picture by ``imageId`` that picture: GQA's pictures are rows of their own."""
    named = {str(row.values["imageId"]) for row in rows if "imageId" in row.values}
    apart = {
        str(row.values["id"]): row
        for row in rows
        if "question" not in row.values and str(row.values.get("id")) in named
    }
    for row in rows:
        if apart.get(str(row.values.get("id"))) is row:
            continue
        picture = apart.get(str(row.values.get("imageId")))
        yield row if picture is None else replace(row, pictures=picture.pictures)


def _row(index: int, benchmark: Benchmark, asked: PaperQuestion, longest: int | None) -> DataRow:
    limits = [limit for limit in (benchmark.max_new_tokens, longest) if limit is not None]
    return DataRow(
        index=index,
        id=f"{benchmark.name}/{asked.id}",
        kind=benchmark.name,
        metric=asked.metric,
        question=asked.question,
        answers=asked.answers,
        part=asked.part,
        group=asked.group,
        max_new_tokens=min(limits, default=None),
    )


def find_benchmarks(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Looks for benchmarks by the names of what lies in a folder, whatever their case.

    Args:
        folder: With a folder or a file for each benchmark.
        names: Which; in this order.

    Returns:
        Benchmark -> its place, of those that are there.

    Raises:
        ConfigError: There is no such folder, or none of them in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder.", remedy="Name the folder that the benchmarks lie in.")
    there = {
        (each.stem if each.suffix in ENDINGS else each.name).lower(): each
        for each in sorted(folder.iterdir())
        if each.is_dir() or each.suffix in ENDINGS
    }
    found = {}
    for name in names:
        called = [call for call in (name, *BENCHMARKS[name].files) if call in there]
        if called:
            found[name] = there[called[0]]
    if not found:
        raise ConfigError(
            f"{folder} has none of the benchmarks {', '.join(names)}.",
            remedy="Call a folder or file as the benchmark is called; docs/benchmarks.md lists the names.",
        )
    return found


def fetch_benchmarks(names: Sequence[str]) -> dict[str, Path]:
    """Fetches benchmarks from the Hugging Face hub, as parquet; what was fetched before is not fetched again.

    Raises:
        ConfigError: One of them cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    found = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        repository, configurations = benchmark.hub
        wanted = [f"{configuration}/{benchmark.split}/*" for configuration in configurations]
        try:
            fetched = snapshot_download(
                repository, repo_type="dataset", revision=HUB_REVISION, allow_patterns=wanted
            )
        except Exception as error:
            raise ConfigError(
                f"{benchmark.title} cannot be fetched from {repository} ({type(error).__name__}: {error}).",
                remedy="Look at the connection, or fetch its files yourself and name their folder.",
            ) from error
        found[name] = Path(fetched)
    return found
