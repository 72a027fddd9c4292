"""One run of an indexer: which pictures are new, what comes of each, and how far it got.

Nothing here calls a model: ``SGLImageIndexer`` does, between ``batches`` and ``settle``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.exceptions import (
    ModelAuthenticationError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
)
from langchain_core.messages import BaseMessage

from langchain_sgl.budget.caching import is_provisional
from langchain_sgl.indexing.documents import make_document
from langchain_sgl.indexing.files import FoundPictures, PictureFailure
from langchain_sgl.indexing.manifest import DeliveredDocument, IndexManifest, StoredAnswer
from langchain_sgl.indexing.options import IndexOptions
from langchain_sgl.indexing.progress import IndexProgress, ProgressBar
from langchain_sgl.indexing.reading import IndexedPicture, PictureReader
from sgl_engine import ConfigError, ModelError, SGLError
from sgl_engine.prompt import describe_source

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
        self.progress = IndexProgress(total=self.found.total)
        self._number = 0 if self.manifest is None else self.manifest.begin()
        self._met: list[DeliveredDocument] = []
        self._missing = 0
        self._unread: list[tuple[str, bool]] = []  # names, and whether they are of folders
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
            self._fail(failure, folder=True)
            yield from self._last_known(failure.source, folder=True)

    def batches(self) -> Iterator[list[IndexedPicture]]:
        """Reads pictures; those that are known come with their answer, and without their bytes."""
        return PictureReader(self.found, self.options, self.asked_of, self.manifest).batches()

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
                picture.answer = _stored(picture, outcome)
                picture.provisional = is_provisional(outcome)
                self._model_works = True
                if not picture.provisional:
                    stored[picture.key] = picture.answer
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
                self._fail(PictureFailure(picture.source, picture.error, picture.page_of_many))
                if self.options.failed == "document":
                    yield self._failed_document(picture)
                yield from self._last_known(picture.source, picture)
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
            for source, folder in self._unread:
                self.manifest.keep(self._number, source, folder=folder)
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
        if not self.errors and not progress.new + progress.unchanged:
            looked_at = "the folder's files" if self.found.in_folder else "what was given"
            raise IncompleteIndexError(
                f"There is no picture among {looked_at}: {progress.done} were looked at.",
                remedy="Check the folder, whether it is mounted, and glob; or pass "
                'incomplete="allow" where there may be none.',
            )

    def _delivered(self, picture: IndexedPicture) -> DeliveredDocument:
        about = {
            "source": picture.source,
            "content_hash": picture.content_hash,
            "page": picture.page,
            "prompt": self.options.prompt,
        }
        return DeliveredDocument(picture.id, picture.source, picture.key, about)

    def _last_known(
        self, source: str, picture: IndexedPicture | None = None, *, folder: bool = False
    ) -> Iterator[Document]:
        """Yields what a picture, or a folder, had before it failed: a failure removes nothing."""
        known = [] if self.manifest is None else self.manifest.last_known(source, folder=folder)
        if picture is not None and picture.page_of_many is not None:
            known = [(old, answer) for old, answer in known if old.about["page"] == picture.page]
        self._missing += not known
        if self.options.unchanged == "yield":
            given = {} if picture is None else picture.blob.metadata
            for delivered, answer in known:
                yield make_document(delivered, answer, given, self.options.report)

    @staticmethod
    def _failed_document(picture: IndexedPicture) -> Document:
        error = f"{type(picture.error).__name__}: {picture.error}"
        page = {} if picture.page_of_many is None else {"page": picture.page}
        metadata = {**picture.blob.metadata, "source": picture.source, **page, "error": error}
        return Document("", id=picture.failure_id, metadata=metadata)

    def _fail(self, failure: PictureFailure, *, folder: bool = False) -> None:
        """Lists a failure, or raises it where the run is to end with the first."""
        if self.options.failed == "raise":
            raise failure.error
        self.errors.append(failure)
        self._unread.append((failure.source, folder))
        if self.options.on_error is not None:
            self.options.on_error(failure)

    def _step(self, picture: IndexedPicture) -> None:
        """Counts one picture, and tells who wants to know."""
        progress = self.progress
        ends: dict[str, Any] = {"done": progress.done + picture.ends_file, "source": picture.source}
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
            "total_pages": picture.total_pages,
            "mime_type": picture.info.mime_type,
            "width": picture.info.width,
            "height": picture.info.height,
            "model_name": about.get("model_name"),
            "finish_reason": about.get("finish_reason"),
            "sgl": about.get("sgl"),
        },
    )
