"""One run of an indexer: which pictures are new, what comes of each, and how far it got.

Nothing here calls a model: ``SGLImageIndexer`` does, between ``batches`` and ``settle``.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from langchain_core.exceptions import (
    ModelAuthenticationError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
)
from langchain_core.messages import BaseMessage

from langchain_sgl.indexing.documents import Report, make_document
from langchain_sgl.indexing.files import (
    FoundPictures,
    PictureFailure,
    PictureInfo,
    claims_picture,
    content_hash,
    inspect_picture,
    read_picture,
    source_of,
)
from langchain_sgl.indexing.manifest import DeliveredDocument, IndexManifest, StoredAnswer
from langchain_sgl.indexing.progress import IndexProgress, ProgressBar
from sgl_engine import ConfigError, LimitsConfig, ModelError, SGLError
from sgl_engine.prompt import describe_source

_NAMESPACE = uuid.UUID("5f1f3c1e-6f0a-4d8e-9a53-4e2f6d7c2b10")
_BROKEN_MODEL = (
    ModelError,
    ConfigError,
    ModelAuthenticationError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
)
"""Errors that are not about a picture: if the model has not answered yet in this run, it never will."""


class IncompleteIndexError(SGLError):
    """A run came to its end, and a document may be missing that is no document of a removed picture.

    Args:
        problem: What is missing.
        remedy: What can be done.
        failures: What could not be used.
    """

    def __init__(self, problem: str, *, remedy: str, failures: Sequence[PictureFailure] = ()) -> None:
        super().__init__(problem, remedy=remedy)
        self.failures = tuple(failures)


@dataclass(frozen=True)
class IndexOptions:
    """What an indexer was asked for; ``SGLImageIndexer`` describes each field."""

    prompt: str
    relative_to: Path | None
    limits: LimitsConfig
    unchanged: Literal["yield", "skip"]
    failed: Literal["skip", "document", "raise"]
    incomplete: Literal["raise", "allow"]
    report: Report
    batch_size: int
    on_error: Callable[[PictureFailure], None] | None
    on_progress: Callable[[IndexProgress], None] | None
    show_progress: bool


@dataclass(eq=False)
class IndexedPicture:
    """One picture on its way through a run; ``data`` is held only until it is answered."""

    blob: Blob
    source: str
    data: bytes | None = None
    content_hash: str = ""
    key: str = ""
    info: PictureInfo | None = None
    answer: StoredAnswer | None = None
    error: Exception | None = None
    known: bool = False
    skipped: bool = False

    @property
    def id(self) -> str:
        """The document's id: of the picture's key and source, so the same in every run."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.key}\n{self.source}"))


@dataclass(eq=False)
class IndexingRun:
    """One run, as a context manager: leaving it writes down what was delivered so far.

    Attributes:
        found: The candidates.
        options: What was asked for.
        asked_of: Names the models and their settings.
        manifest: What earlier runs did; None is nothing.
        errors: Failures so far.
        progress: How far it got.
    """

    found: FoundPictures
    options: IndexOptions
    asked_of: str
    manifest: IndexManifest | None
    errors: list[PictureFailure] = field(default_factory=list)
    progress: IndexProgress = field(default_factory=IndexProgress)

    def __post_init__(self) -> None:
        blobs = self.found.blobs
        self.progress = IndexProgress(total=len(blobs) if isinstance(blobs, Collection) else None)
        self._number = 0 if self.manifest is None else self.manifest.begin()
        self._met: list[DeliveredDocument] = []
        self._missing = 0
        self._unread: list[str] = []
        self._model_works = False
        self._bar = ProgressBar(self.progress.total) if self.options.show_progress else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.note()
        if self._bar is not None:
            self._bar.close()

    def unlisted(self) -> Iterator[Document]:
        """Yields what is known of folders that cannot be listed."""
        for failure in self.found.unreadable:
            self._fail(failure)
            yield from self._last_known(failure.source)

    def batches(self) -> Iterator[list[IndexedPicture]]:
        """Reads pictures; those that are known come with their answer, and without their bytes."""
        blobs = iter(self.found.blobs)
        while chunk := list(islice(blobs, self.options.batch_size)):
            pictures = [self._read(blob) for blob in chunk]
            self._recognise([picture for picture in pictures if picture.key])
            for picture in pictures:
                self._inspect(picture)
            yield pictures

    @staticmethod
    def unanswered(batch: Sequence[IndexedPicture]) -> list[IndexedPicture]:
        """Picks those that the model must be asked about: of equal pictures, the first."""
        asked: dict[str, IndexedPicture] = {}
        for picture in batch:
            if picture.data is not None:
                asked.setdefault(picture.key, picture)
        return list(asked.values())

    def settle(
        self,
        batch: Sequence[IndexedPicture],
        asked: Sequence[IndexedPicture],
        answers: Sequence[BaseMessage | Exception],
    ) -> None:
        """Takes what the model said about ``asked``, and stores answers: a run that stops later has them.

        Raises:
            Exception: What the model raised, if it is not about a picture.
        """
        outcomes = dict(zip((picture.key for picture in asked), answers, strict=True))
        stored: dict[str, StoredAnswer] = {}
        for picture in batch:
            # Known, refused, or no picture at all: nothing was asked.
            if picture.data is None:
                continue
            picture.data = None  # asked about, so the bytes can go
            outcome = outcomes[picture.key]
            if isinstance(outcome, Exception):
                picture.error = outcome
            else:
                picture.answer = stored[picture.key] = _stored(picture, outcome)
        self._model_works = self._model_works or bool(stored)
        if self.manifest is not None and stored:
            self.manifest.save(stored)
        # If nothing was answered in this run yet, such an error would meet every other picture, too.
        for outcome in outcomes.values():
            if isinstance(outcome, _BROKEN_MODEL) and not self._model_works:
                raise outcome
        self.progress = replace(self.progress, asked=self.progress.asked + len(asked))

    def documents(self, batch: Sequence[IndexedPicture]) -> Iterator[Document]:
        """Yields what comes of a batch, in order, and counts it."""
        for picture in batch:
            if picture.error is not None:
                self._fail(PictureFailure(picture.source, picture.error))
                if self.options.failed == "document":
                    yield self._failed_document(picture)
                yield from self._last_known(picture.source, picture.blob.metadata)
            elif picture.answer is not None:
                delivered = self._delivered(picture)
                if not picture.known or self.options.unchanged == "yield":
                    yield make_document(delivered, picture.answer, picture.blob.metadata, self.options.report)
                self._met.append(delivered)
            self._step(picture)

    def note(self) -> None:
        """Writes down what was delivered since the last time."""
        if self.manifest is not None:
            self.manifest.met(self._number, self._met)
            for source in self._unread:
                self.manifest.keep(self._number, source)
        self._met, self._unread = [], []

    def complete(self) -> None:
        """Notes that there are no more pictures."""
        self.note()
        if self.manifest is not None:
            self.manifest.complete(self._number)

    def check_complete(self) -> None:
        """Raises IncompleteIndexError where not everything that is there was yielded, as far as is known."""
        if self._missing:
            first = self.errors[0]
            raise IncompleteIndexError(
                f"{self._missing} pictures or folders failed, and what they held before is not known; the "
                f"first failure is {describe_source(Path(first.source))!r} "
                f"({type(first.error).__name__}: {first.error}).",
                remedy="All others were yielded. Look at errors and run again, or pass "
                'incomplete="allow" to go without these.',
                failures=self.errors,
            )
        progress = self.progress
        if self.found.in_folder and not self.errors and not progress.new + progress.unchanged:
            raise IncompleteIndexError(
                f"Not one of the folder's {progress.done} files that were looked at is a picture.",
                remedy="Check the folder, whether it is mounted, and glob; or pass "
                'incomplete="allow" where it may be empty.',
            )

    def _read(self, blob: Blob) -> IndexedPicture:
        """Reads one picture and computes its key: equal keys have equal answers."""
        picture = IndexedPicture(blob, str(blob.source))
        try:
            picture.source = source_of(blob, self.options.relative_to)
            picture.data = read_picture(blob, self.options.limits)
        except Exception as error:  # noqa: BLE001  # a loader's blobs may raise anything; the next one may be fine
            self._refuse(picture, error)
            return picture
        picture.content_hash = content_hash(picture.data)
        asked = [picture.content_hash, self.options.prompt, self.asked_of]
        picture.key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return picture

    def _recognise(self, pictures: Sequence[IndexedPicture]) -> None:
        """Gives pictures the answers of earlier runs; these need no bytes any more."""
        if self.manifest is None:
            return
        answers = self.manifest.answers({picture.key for picture in pictures})
        known = self.manifest.known({picture.id for picture in pictures})
        for picture in pictures:
            picture.answer = answers.get(picture.key)
            picture.known = picture.id in known
            if picture.answer is not None:
                picture.data = None

    def _inspect(self, picture: IndexedPicture) -> None:
        """Decodes a picture that has no answer yet, and refuses it where it is damaged."""
        if picture.data is None:
            return
        try:
            picture.info = inspect_picture(picture.data, self.options.limits)
        except Exception as error:  # noqa: BLE001  # whatever it is, the next picture may be fine
            self._refuse(picture, error)

    def _refuse(self, picture: IndexedPicture, error: Exception) -> None:
        """Drops what cannot be used: with its error, or in silence where nobody called it a picture."""
        picture.data = None
        # A folder of pictures may hold other files, too; what was named one by one is meant.
        picture.skipped = self.found.in_folder and not claims_picture(picture.blob)
        picture.error = None if picture.skipped else error

    def _delivered(self, picture: IndexedPicture) -> DeliveredDocument:
        about = {
            "source": picture.source,
            "content_hash": picture.content_hash,
            "prompt": self.options.prompt,
        }
        return DeliveredDocument(picture.id, picture.source, picture.key, about)

    def _last_known(self, source: str, given: Mapping[str, Any] | None = None) -> Iterator[Document]:
        """Yields what a picture, or a folder, had before it failed: a failure removes nothing."""
        known = [] if self.manifest is None else self.manifest.last_known(source)
        self._missing += not known
        if self.options.unchanged == "yield":
            for delivered, answer in known:
                yield make_document(delivered, answer, given or {}, self.options.report)

    @staticmethod
    def _failed_document(picture: IndexedPicture) -> Document:
        error = f"{type(picture.error).__name__}: {picture.error}"
        name = str(uuid.uuid5(_NAMESPACE, f"error\n{picture.source}"))
        metadata = {**picture.blob.metadata, "source": picture.source, "error": error}
        return Document("", id=name, metadata=metadata)

    def _fail(self, failure: PictureFailure) -> None:
        """Lists a failure, or raises it where the run is to end with the first."""
        if self.options.failed == "raise":
            raise failure.error
        self.errors.append(failure)
        self._unread.append(failure.source)
        if self.options.on_error is not None:
            self.options.on_error(failure)

    def _step(self, picture: IndexedPicture) -> None:
        """Counts one picture, and tells who wants to know."""
        progress = self.progress
        ends: dict[str, Any] = {"done": progress.done + 1, "source": picture.source}
        if picture.error is not None:
            ends["failed"] = progress.failed + 1
        elif picture.skipped:
            ends["skipped"] = progress.skipped + 1
        elif picture.known:
            ends["unchanged"] = progress.unchanged + 1
        else:
            ends["new"] = progress.new + 1
        self.progress = replace(progress, **ends)
        if self._bar is not None:
            self._bar.show(self.progress)
        if self.options.on_progress is not None:
            self.options.on_progress(self.progress)


def _stored(picture: IndexedPicture, answer: BaseMessage) -> StoredAnswer:
    assert picture.info is not None
    about = answer.response_metadata
    return StoredAnswer(
        text=str(answer.text),
        metadata={
            "mime_type": picture.info.mime_type,
            "width": picture.info.width,
            "height": picture.info.height,
            "model_name": about.get("model_name"),
            "finish_reason": about.get("finish_reason"),
            "sgl": about.get("sgl"),
        },
    )
