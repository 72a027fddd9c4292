"""SGLImageIndexer: a collection of pictures -> Documents that say what is on them; lazily, and never twice.

names -> bytes, hash -> known? -+-> the stored answer ----------------------------+-> Document
                                +-> whole picture? -> ChatSGL.batch -> manifest --+
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.document_loaders import BaseBlobParser, BaseLoader, BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor
from typing_extensions import override

from langchain_sgl.indexing.blobs import PictureSource
from langchain_sgl.indexing.documents import Report
from langchain_sgl.indexing.files import PictureFailure, find_pictures
from langchain_sgl.indexing.manifest import IndexManifest, RemovedDocument
from langchain_sgl.indexing.options import IndexOptions
from langchain_sgl.indexing.progress import IndexProgress
from langchain_sgl.indexing.reading import IndexedPicture
from langchain_sgl.indexing.run import IndexingRun
from langchain_sgl.wrapped_models import models_inside
from sgl_engine import TRANSCRIPTION_PRESET, ConfigError, LimitsConfig
from sgl_engine.prompt import mime_type_of

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.messages import AIMessage

TRANSCRIBE = "transcribe the picture"
"""What the bundled pair understands, and other pairs do as well."""


class SGLImageIndexer(BaseLoader):
    """Loads pictures as Documents: a transcription or caption as text, where it comes from as metadata.

    ``page_content`` is the model's answer. ``metadata`` has "source" (path or id), "mime_type" (from the
    bytes), "content_hash" (SHA-256), "page" (from 0), "total_pages", "width", "height", "prompt",
    "model_name", "finish_reason" ("length": the answer was cut off) and some of the run report, see
    ``report``; a blob's own metadata is kept. ``id`` is a UUID that changes with picture, source, prompt,
    settings and models, and with nothing else. A small answer that was kept because a hosted large model
    failed is provisional: its document has an id of its own, and the next run asks again.

    One bad picture never ends a run: it is listed in ``errors``, and tried again by the next run. A model
    that cannot be loaded does end it. Iterating again starts another run; run an indexer once at a time.

    With a ``manifest``, a run that was interrupted goes on where it stopped, and a later one asks the model
    about new and changed pictures alone. All pictures are read, to tell whether they changed. One manifest
    serves one collection.

    Works with ``langchain_core.indexing.index``, which removes from a store what the indexer does not yield
    any more::

        indexer = SGLImageIndexer("scans", manifest="scans.sqlite")
        by_id = lambda document: document.id
        index(indexer, records, store, cleanup="full", source_id_key="source", key_encoder=by_id)

    A failure is no removal, so a picture that fails comes with the document that the manifest knows of it.
    Where it knows none, or there is no manifest, the run ends with ``IncompleteIndexError`` after all others
    were yielded, and ``index`` with it, before it removes anything; the same where there is no picture
    at all. Give ``index`` the indexer, not the list that ``load`` returns: that one may be incomplete.

    Args:
        source: A folder, a file, a blob loader, or any number of paths, blobs, pictures (encoded bytes or
            PIL images, whose "source" is then their hash) and (id, picture) pairs; an iterator serves once.
        model: Any chat model that sees pictures, as it is or from its ``bind``, ``with_config``,
            ``with_retry`` or ``with_fallbacks``; None is ``ChatSGL()``, the bundled pair.
        prompt: What is asked about each picture. The bundled pair knows ``TRANSCRIBE`` only.
        retention: Visual tokens that the large model keeps; by default what transcriptions need
            (``TRANSCRIPTION_PRESET``). A caption does with less. None is the model's own setting; models
            other than ``ChatSGL`` need it.
        pages: Whether every page of a file is asked about, and becomes a Document ("all"), or the first one
            alone. Frames of an animation are pages. Those of a PDF need pypdfium2
            (``pip install '.[pictures]'`` in a checkout), and are drawn at ``LimitsConfig.pdf_dpi``.
        max_pages: A file of more pages cannot be used.
        glob: Which files of a folder, as in ``Path.glob``. Hidden ones are left out, and so is a file that
            neither is a picture, nor begins or is called like one. ``progress.skipped`` counts these.
        follow_symlinks: Whether links in a folder are followed.
        relative_to: Folder that "source" is relative to; None writes absolute paths.
        manifest: SQLite file that remembers what was done; None remembers nothing.
        unchanged: Whether pictures that an earlier run has delivered are yielded again ("yield") or not
            ("skip"), for stores that are only added to. A document counts as delivered when the next one is
            asked for.
        failed: Whether a bad picture yields nothing of its own ("skip"), a Document without text and with
            metadata "error" ("document"), or ends the run at once ("raise").
        incomplete: Whether ``lazy_load`` may yield less than the collection holds and come to a normal end
            ("allow"): that is what ``unchanged="skip"`` does, and what failures may do. A store that is
            cleaned up by such a run loses what is missing.
        report: "flat" puts "sgl_route", "sgl_visual_tokens" and the like into metadata: numbers and text that
            are the same in every run, as every store takes them. "full" adds the whole run report as JSON
            under "sgl", times and scores included, so that no two runs without a manifest yield equal
            documents. "none" adds nothing.
        batch_size: Pictures that are held, and asked about, at a time.
        config: For every call of the model: callbacks, tags, max_concurrency.
        limits: Sizes that are accepted; None is the model's own, or ``LimitsConfig()``.
        on_error: Told about each failure.
        on_progress: Told after each picture.
        show_progress: Whether a progress bar is drawn on the terminal (stderr).

    Raises:
        ConfigError: An empty prompt, a batch size below 1, a choice that does not exist, or a manifest that
            is something else.
    """

    def __init__(
        self,
        source: PictureSource | BlobLoader | Iterable[PictureSource],
        *,
        model: Runnable[LanguageModelInput, AIMessage] | None = None,
        prompt: str = TRANSCRIBE,
        retention: str | None = TRANSCRIPTION_PRESET,
        pages: Literal["all", "first"] = "all",
        max_pages: int = 1000,
        glob: str = "**/*",
        follow_symlinks: bool = False,
        relative_to: str | Path | None = None,
        manifest: str | Path | None = None,
        unchanged: Literal["yield", "skip"] = "yield",
        failed: Literal["skip", "document", "raise"] = "skip",
        incomplete: Literal["raise", "allow"] = "raise",
        report: Report = "flat",
        batch_size: int = 16,
        config: RunnableConfig | None = None,
        limits: LimitsConfig | None = None,
        on_error: Callable[[PictureFailure], None] | None = None,
        on_progress: Callable[[IndexProgress], None] | None = None,
        show_progress: bool = False,
    ) -> None:
        if model is None:
            from langchain_sgl.chat_models import ChatSGL

            model = ChatSGL()
        self._last: IndexingRun | None = None
        self._source, self._glob, self._follow_symlinks = source, glob, follow_symlinks
        self._model, self._config = model, config
        self._settings = {} if retention is None else {"retention": retention}
        self._manifest = None if manifest is None else IndexManifest(Path(manifest))
        self._options = IndexOptions(
            prompt=prompt,
            pages=pages,
            max_pages=max_pages,
            relative_to=None if relative_to is None else Path(relative_to),
            limits=limits or getattr(models_inside(model)[0][0], "_limits", None) or LimitsConfig(),
            unchanged=unchanged,
            failed=failed,
            incomplete=incomplete,
            report=report,
            batch_size=batch_size,
            on_error=on_error,
            on_progress=on_progress,
            show_progress=show_progress,
        )

    @property
    def errors(self) -> list[PictureFailure]:
        """What the last run could not use: pictures, and folders that cannot be listed."""
        return [] if self._last is None else self._last.errors

    @property
    def progress(self) -> IndexProgress:
        """How far the last run got."""
        return IndexProgress() if self._last is None else self._last.progress

    @override
    def lazy_load(self) -> Iterator[Document]:
        """Yields Documents in the order of the pictures (a folder's: by name), a batch at a time.

        Raises:
            IncompleteIndexError: At the end, where a document is missing; see the class.
            SGLError: The folder does not exist, or the models cannot be loaded.
        """
        self._check_yields_all()
        return self._run(strict=self._options.incomplete == "raise")

    @override
    def alazy_load(self) -> AsyncIterator[Document]:
        """Does what ``lazy_load`` does; files are read, and models run, in threads."""
        self._check_yields_all()
        return self._arun(strict=self._options.incomplete == "raise")

    @override
    def load(self) -> list[Document]:
        """Returns the documents that there are; ``errors`` says of what there is none."""
        return list(self._run(strict=False))

    @override
    async def aload(self) -> list[Document]:
        """Returns the documents that there are; ``errors`` says of what there is none."""
        return [document async for document in self._arun(strict=False)]

    def _check_yields_all(self) -> None:
        options = self._options
        if options.unchanged == "skip" and options.incomplete == "raise":
            raise ConfigError(
                'With unchanged="skip", pictures that an earlier run delivered are not yielded, and look '
                "removed to whoever cleans a store up by what is.",
                remedy='Leave unchanged at "yield", so that index(indexer, ..., cleanup="full") is right; or '
                'pass incomplete="allow" as well, and never clean up by it.',
            )

    def _run(self, *, strict: bool) -> Iterator[Document]:
        with self._begin() as run:
            yield from run.unlisted()
            for batch in run.batches():
                asked = run.unanswered(batch)
                run.settle(batch, asked, self._ask(asked))
                yield from run.documents(batch)
                run.note()
            run.complete()
        if strict:
            run.check_complete()

    async def _arun(self, *, strict: bool) -> AsyncIterator[Document]:
        with await run_in_executor(None, self._begin) as run:
            for document in run.unlisted():
                yield document
            batches = run.batches()
            while (batch := await run_in_executor(None, next, batches, None)) is not None:
                asked = run.unanswered(batch)
                answers = await self._aask(asked)
                await run_in_executor(None, run.settle, batch, asked, answers)
                for document in run.documents(batch):
                    yield document
                await run_in_executor(None, run.note)
            await run_in_executor(None, run.complete)
        if strict:
            run.check_complete()

    def removed(self) -> list[RemovedDocument]:
        """Lists documents of earlier runs whose picture is gone or has changed, until they are forgotten.

        Known after a run that came to its end; what it could not read is not among them. Delete these from
        your store, then ``forget`` them.

        Raises:
            ConfigError: There is no manifest.
        """
        return self._remembered().removed()

    def forget(self, removed: Iterable[RemovedDocument]) -> None:
        """Drops removed documents from the manifest.

        Raises:
            ConfigError: There is no manifest.
        """
        self._remembered().forget(document.id for document in removed)

    def _remembered(self) -> IndexManifest:
        if self._manifest is None:
            raise ConfigError(
                "An indexer without a manifest does not know earlier runs.",
                remedy="Pass manifest=, the path of a file to remember them in.",
            )
        return self._manifest

    def _begin(self) -> IndexingRun:
        """Lists the source and begins a run over it."""
        if self._last is not None and isinstance(self._source, Iterator):
            raise ConfigError(
                f"The pictures came from an iterator ({type(self._source).__name__}), which gives them once, "
                "and an earlier run has taken them.",
                remedy="Give the indexer a list or a folder, or make another indexer for each run.",
            )
        found = find_pictures(
            self._source,
            glob=self._glob,
            follow_symlinks=self._follow_symlinks,
            relative_to=self._options.relative_to,
        )
        self._last = IndexingRun(found, self._options, self._asked_of(), self._manifest)
        return self._last

    def _asked_of(self) -> str:
        """Names models and settings, by the strings by which LangChain's caches tell them apart."""
        names = []
        for chat, bound in models_inside(self._model):
            options = {**bound, **self._settings}
            stop, _ = options.pop("stop", None), options.pop("timeout", None)  # no answer depends on that one
            names.append(chat._get_llm_string(stop=stop, **options))  # noqa: SLF001
        return names[0] if len(names) == 1 else json.dumps(names)

    # One by one: the batch of with_retry gives pictures each other's answers once one fails for good.

    def _ask(self, pictures: Sequence[IndexedPicture]) -> list[BaseMessage | Exception]:
        prompts = [[self._message(picture)] for picture in pictures]
        answers: list[Any] = Runnable.batch(
            self._model, prompts, self._config, return_exceptions=True, **self._settings
        )
        return answers

    async def _aask(self, pictures: Sequence[IndexedPicture]) -> list[BaseMessage | Exception]:
        prompts = [[self._message(picture)] for picture in pictures]
        answers: list[Any] = await Runnable.abatch(
            self._model, prompts, self._config, return_exceptions=True, **self._settings
        )
        return answers

    def _message(self, picture: IndexedPicture) -> HumanMessage:
        assert picture.data is not None
        assert picture.info is not None
        data = base64.b64encode(picture.data).decode()
        kind = mime_type_of(picture.data) or picture.info.mime_type
        image = {"type": "image", "base64": data, "mime_type": kind}
        return HumanMessage(content=[image, {"type": "text", "text": self._options.prompt}])


class SGLImageBlobParser(BaseBlobParser):
    """``SGLImageIndexer`` for one blob at a time, for loaders that take a parser; a bad picture raises.

    Args:
        model: As for ``SGLImageIndexer``.
        prompt: As for ``SGLImageIndexer``.
        retention: As for ``SGLImageIndexer``.
        report: As for ``SGLImageIndexer``.
    """

    def __init__(
        self,
        model: Runnable[LanguageModelInput, AIMessage] | None = None,
        *,
        prompt: str = TRANSCRIBE,
        retention: str | None = TRANSCRIPTION_PRESET,
        report: Report = "flat",
    ) -> None:
        self._model, self._prompt, self._retention, self._report = model, prompt, retention, report

    @override
    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """Yields one Document.

        Raises:
            Exception: What is wrong with the picture, or with the model.
        """
        yield from SGLImageIndexer(
            blob,
            model=self._model,
            prompt=self._prompt,
            retention=self._retention,
            report=self._report,
            failed="raise",
        ).lazy_load()
