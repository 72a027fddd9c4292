"""Files and blobs -> pictures to be asked about, a batch at a time; what is known needs no asking."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from langchain_core.documents.base import Blob

from langchain_sgl.indexing.files import (
    FoundPictures,
    PictureInfo,
    content_hash,
    inspect_picture,
    is_meant,
    read_picture,
    source_of,
)
from langchain_sgl.indexing.manifest import IndexManifest, StoredAnswer
from langchain_sgl.indexing.options import IndexOptions
from langchain_sgl.indexing.pages import DrawnPage, count_file_pages, draw_pages
from sgl_engine.prompt import sniff

_NAMESPACE = uuid.UUID("5f1f3c1e-6f0a-4d8e-9a53-4e2f6d7c2b10")


@dataclass(eq=False)
class IndexedPicture:
    """One picture, or one page of a file, on its way through a run.

    Attributes:
        blob: Where it comes from.
        source: Its name in metadata.
        page: Counted from 0.
        total_pages: Of its file.
        ends_file: Whether nothing more comes of its file.
        data: Encoded; held only until it is answered.
        content_hash: Of the file.
        key: Equal keys have equal answers.
        info: What its bytes say.
        answer: What is known of it.
        error: Why it cannot be used.
        known: Whether an earlier run delivered its document.
        provisional: Whether the next run might get a better answer, and is to ask again.
        skipped: Whether it is no picture, and nobody called it one.
    """

    blob: Blob
    source: str
    page: int = 0
    total_pages: int = 1
    ends_file: bool = True
    data: bytes | None = None
    content_hash: str = ""
    key: str = ""
    info: PictureInfo | None = None
    answer: StoredAnswer | None = None
    error: Exception | None = None
    known: bool = False
    skipped: bool = False
    provisional: bool = False

    @property
    def id(self) -> str:
        """The document's id: of the picture's key and source, so the same in every run.

        A provisional answer has another one, or stores would keep it when the final one comes.
        """
        sort = "provisional\n" if self.provisional else ""
        return str(uuid.uuid5(_NAMESPACE, f"{sort}{self.key}\n{self.source}"))

    @property
    def failure_id(self) -> str:
        """The id of the document that says why there is none."""
        return str(uuid.uuid5(_NAMESPACE, f"error\n{self.page}\n{self.source}"))

    @property
    def page_of_many(self) -> int | None:
        """Which page of its file it is; None if it is the whole file."""
        return self.page if self.total_pages > 1 else None


class PictureReader:
    """Reads what was found, in order.

    Args:
        found: The candidates.
        options: What was asked for.
        asked_of: Names the models and their settings.
        manifest: What earlier runs did; None is nothing.
    """

    def __init__(
        self, found: FoundPictures, options: IndexOptions, asked_of: str, manifest: IndexManifest | None
    ) -> None:
        self._found, self._options, self._asked_of, self._manifest = found, options, asked_of, manifest

    def batches(self) -> Iterator[list[IndexedPicture]]:
        """Yields all of them, a batch at a time; no more is read than a batch and the files that it is of."""
        pages = self._pages()
        while batch := list(islice(pages, self._options.batch_size)):
            yield batch

    def _pages(self) -> Iterator[IndexedPicture]:
        blobs = iter(self._found.blobs)
        while chunk := list(islice(blobs, self._options.batch_size)):
            files = [self._read(blob) for blob in chunk]
            self._recognise(files)
            for file in files:
                yield from self._pages_of(file)

    def _read(self, blob: Blob) -> IndexedPicture:
        """Reads one file, as its first page."""
        file = IndexedPicture(blob, str(blob.source))
        try:
            file.source = source_of(blob, self._options.relative_to)
            file.data = read_picture(blob, self._options.limits)
        except Exception as error:  # noqa: BLE001  # a loader's blobs may raise anything; the next one may be fine
            self._refuse(file, error)
            return file
        file.content_hash = content_hash(file.data)
        file.key = self._key(file)
        return file

    def _key(self, page: IndexedPicture) -> str:
        asked: list[object] = [page.content_hash, self._options.prompt, self._asked_of, page.page]
        if page.data is not None and sniff(page.data) == "PDF":
            asked.append(self._options.limits.pdf_dpi)
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _recognise(self, pictures: Sequence[IndexedPicture]) -> None:
        """Gives pictures the answers of earlier runs."""
        pictures = [picture for picture in pictures if picture.key]
        if self._manifest is None or not pictures:
            return
        answers = self._manifest.answers({picture.key for picture in pictures})
        known = self._manifest.known({picture.id for picture in pictures})
        for picture in pictures:
            picture.answer = answers.get(picture.key)
            picture.known = picture.id in known

    def _pages_of(self, file: IndexedPicture) -> Iterator[IndexedPicture]:
        """Yields the pages of a file: those that are known without bytes, the others with their own."""
        data = file.data
        if data is None:
            yield file
            return
        try:
            file.total_pages = self._count(file, data)
        except Exception as error:  # noqa: BLE001  # whatever it is, the next file may be fine
            self._refuse(file, error)
            yield file
            return
        pages = self._divide(file)
        is_picture = file.total_pages == 1 and sniff(data) != "PDF"
        if all(page.answer is not None for page in pages):
            drawn: Iterator[DrawnPage | Exception | None] = iter([None] * len(pages))
        elif is_picture:
            drawn = iter([self._inspect(data)])
        else:
            drawn = draw_pages(data, self._options.limits, len(pages))
        for page, outcome in zip(pages, drawn, strict=True):
            page.data = None
            if isinstance(outcome, DrawnPage) and page.answer is None:
                page.data, page.info = outcome.data, outcome.info
            elif isinstance(outcome, Exception) and page.answer is None:
                self._refuse(page, outcome, data)
            yield page

    def _count(self, file: IndexedPicture, data: bytes) -> int:
        """Counts pages; where the first one is known, so is their number."""
        if file.answer is not None:
            return int(file.answer.metadata["total_pages"])
        return count_file_pages(data, self._options.limits, self._options.max_pages)

    def _divide(self, file: IndexedPicture) -> list[IndexedPicture]:
        """Makes the pages that are wanted out of the first one."""
        wanted = file.total_pages if self._options.pages == "all" else 1
        others = [replace(file, page=page, answer=None, known=False) for page in range(1, wanted)]
        for page in others:
            page.key = self._key(page)
        self._recognise(others)
        pages = [file, *others]
        for page in pages:
            page.ends_file = page is pages[-1]
        return pages

    def _inspect(self, data: bytes) -> DrawnPage | Exception:
        """Decodes a plain picture, which the model then gets as it is."""
        try:
            return DrawnPage(data, inspect_picture(data, self._options.limits))
        except Exception as error:  # noqa: BLE001  # whatever it is, the next picture may be fine
            return error

    def _refuse(self, picture: IndexedPicture, error: Exception, data: bytes | None = None) -> None:
        """Drops what cannot be used: with its error, or in silence where nobody called it a picture."""
        data, picture.data = picture.data or data, None
        # A folder of pictures may hold other files, too; what was named one by one is meant.
        picture.skipped = self._found.in_folder and not is_meant(picture.blob, data)
        picture.error = None if picture.skipped else error
