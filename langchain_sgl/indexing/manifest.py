"""What an index already holds, in an SQLite file: a run that is killed at any moment loses one batch at most.

Answers are kept by what was asked (``key``: picture bytes, prompt, settings, models), documents by their id.
Runs are numbered; a document that the last complete run did not meet is of a picture that is gone or changed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_engine import ConfigError

_VERSION = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, source TEXT NOT NULL, key TEXT NOT NULL, about TEXT NOT NULL, run INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS documents_by_source ON documents (source);
CREATE TABLE IF NOT EXISTS runs (started INTEGER NOT NULL, completed INTEGER NOT NULL);
INSERT INTO runs SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM runs);
"""
_LAST_KNOWN = """
SELECT id, source, documents.key, about, text, metadata FROM documents JOIN answers USING (key), runs
WHERE run >= completed AND (source = :source OR substr(source, 1, length(:folder)) = :folder)
ORDER BY source, documents.rowid
"""
_KEEP = """
UPDATE documents SET run = max(run, :run) WHERE run >= (SELECT completed FROM runs)
AND (source = :source OR substr(source, 1, length(:folder)) = :folder)
"""
_WAIT_S = 30.0  # for another process that writes


@dataclass(frozen=True)
class StoredAnswer:
    """What a model said about a picture.

    Attributes:
        text: The transcription or caption.
        metadata: JSON-safe: what else goes into the document.
    """

    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class DeliveredDocument:
    """A document as it was delivered, but for its text.

    Attributes:
        id: As in ``Document.id``.
        source: As in its metadata.
        key: Under which its answer is stored.
        about: JSON-safe: its metadata that the answer does not have.
    """

    id: str
    source: str
    key: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class RemovedDocument:
    """A document of an earlier run that stands for nothing any more: its picture was deleted or changed.

    Attributes:
        id: As in ``Document.id``.
        source: As in its metadata.
    """

    id: str
    source: str


class IndexManifest:
    """An index's memory. Every call opens the file anew: any thread, and any process, may use it.

    Args:
        path: The SQLite file; made, with its folder, when it does not exist.

    Raises:
        ConfigError: The file is something else, or was written by another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder of the manifest {path} cannot be made ({error.strerror}).",
                remedy="Name another file.",
            ) from error
        with self._open() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            # A file that SQLite has just made: no version and no tables.
            if version == 0 and tables == 0:
                database.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {_VERSION};COMMIT;")
            elif version != _VERSION:
                raise ConfigError(
                    f"{path} is no manifest of version {_VERSION}, but a database of version {version} with "
                    f"{tables} tables.",
                    remedy="Name another file, or delete this one to index everything anew.",
                )

    def begin(self) -> int:
        """Begins a run and returns its number."""
        with self._open() as database:
            row = database.execute("UPDATE runs SET started = started + 1 RETURNING started").fetchone()
            return int(row[0])

    def answers(self, keys: Collection[str]) -> dict[str, StoredAnswer]:
        """Looks up the answers to ``keys``; what has none is left out."""
        with self._open() as database:
            rows = database.execute(
                "SELECT key, text, metadata FROM answers WHERE key IN (SELECT value FROM json_each(?))",
                (json.dumps(list(keys)),),
            ).fetchall()
        return {key: StoredAnswer(text, json.loads(metadata)) for key, text, metadata in rows}

    def save(self, answers: Mapping[str, StoredAnswer]) -> None:
        """Adds answers, all or none of them."""
        rows = [(key, answer.text, json.dumps(answer.metadata)) for key, answer in answers.items()]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def known(self, ids: Collection[str]) -> set[str]:
        """Picks those of ``ids`` that were delivered before."""
        with self._open() as database:
            rows = database.execute(
                "SELECT id FROM documents WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(ids)),),
            ).fetchall()
        return {row[0] for row in rows}

    def met(self, run: int, documents: Iterable[DeliveredDocument]) -> None:
        """Notes that ``run`` met these documents."""
        with self._open() as database:
            database.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET run = max(run, excluded.run)",
                [(each.id, each.source, each.key, json.dumps(each.about), run) for each in documents],
            )

    def last_known(
        self, source: str, *, folder: bool = False
    ) -> list[tuple[DeliveredDocument, StoredAnswer]]:
        """Looks up what a picture, or all of a folder, was last known as; what is removed is left out."""
        with self._open() as database:
            rows = database.execute(_LAST_KNOWN, _named(source, folder=folder)).fetchall()
        return [
            (
                DeliveredDocument(name, where, key, json.loads(about)),
                StoredAnswer(text, json.loads(metadata)),
            )
            for name, where, key, about, text, metadata in rows
        ]

    def keep(self, run: int, source: str, *, folder: bool = False) -> None:
        """Keeps the documents of a picture, or of a folder, that ``run`` could not read: it may come back."""
        with self._open() as database:
            database.execute(_KEEP, {"run": run, **_named(source, folder=folder)})

    def complete(self, run: int) -> None:
        """Notes that ``run`` met every picture that there is."""
        with self._open() as database:
            database.execute("UPDATE runs SET completed = max(completed, ?)", (run,))

    def removed(self) -> list[RemovedDocument]:
        """Lists documents that the last complete run, and any run since, did not meet."""
        with self._open() as database:
            rows = database.execute(
                "SELECT id, source FROM documents, runs WHERE run < completed ORDER BY source, id"
            ).fetchall()
        return [RemovedDocument(*row) for row in rows]

    def forget(self, ids: Iterable[str]) -> None:
        """Drops documents; their answers stay, in case the picture comes back."""
        with self._open() as database:
            database.executemany("DELETE FROM documents WHERE id = ?", [(document,) for document in ids])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Opens the file for one transaction: all that is done in the context is written, or nothing."""
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise ConfigError(
                f"The manifest {self._path} cannot be used ({error}).",
                remedy="Name another file, or delete this one to index everything anew.",
            ) from error


def _named(source: str, *, folder: bool) -> dict[str, str | None]:
    """What the queries above look for: a picture's name, and, of a folder, the start of all names in it.

    Names that were given need be no paths: "a/1" is not in "a", where that is a picture.
    """
    start = "" if source == "." else source.rstrip("/") + "/"
    return {"source": source, "folder": start if folder else None}
