"""Tools with which an agent, of any model, looks at pictures through ``ChatSGL``.

What the agent's model reads: the answer, and one line on whose it is, how sure, and at which cost. What its
program reads: the full report, in the message's ``artifact``. Pictures are named and not sent
(``references.py`` says how), so neither the conversation nor its checkpoints hold their bytes.

A bad reference or picture comes back as an error text with its remedy, so that the agent can try again;
errors of the set-up are raised.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import ArgsSchema, BaseTool, BaseToolkit
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from langchain_sgl.chat.image_blocks import image_block
from langchain_sgl.evidence import Evidence, place_in
from langchain_sgl.tools.picture_store import InMemoryPictureStore
from langchain_sgl.tools.picture_tool import (
    OptionalStore,
    PictureAnswer,
    PictureTool,
    ShownPicture,
    child_config,
    describe_run,
    told_to_the_agent,
)
from sgl_engine import TRANSCRIPTION_PRESET, InvalidRequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgl_engine.prompt import Box

EvidenceForm: TypeAlias = Literal["none", "box", "map", "picture", "inline"]
_MAX_DRAWINGS = 100
TRANSCRIBE_PROMPT = (
    "Transcribe all text in this picture, exactly as it is written, line by line from top to bottom. "
    "Write nothing else."
)
"""What a general pair of models is asked by ``TranscribeTool``."""


def _drawings() -> InMemoryPictureStore:
    return InMemoryPictureStore(max_pictures=_MAX_DRAWINGS)


class VisualQuestionInput(BaseModel):
    """Arguments of ``VisualQuestionTool``."""

    question: str = Field(description="What to find out, as one short question that stands by itself.")
    picture: str = Field(description="Which picture: its id, file name, https URL or base64 data.")
    region: list[float] | None = Field(
        default=None,
        description="Part of a large picture to look at more closely: x0, y0, x1, y1 as fractions from 0 to "
        "1, from the left and the top. Leave it out to see the whole picture.",
    )
    escalate: bool = Field(
        default=False,
        description="True makes the large, slower model answer. Use it when an answer seems doubtful.",
    )


class VisualQuestionTool(PictureTool):
    """Answers a question about a picture.

    Attributes:
        evidence: What the artifact holds about where the small model looked. "none": nothing; "box": four
            numbers, which the agent is told too and can pass as ``region``; "map": also the importance map,
            some 7 bytes per visual token; "picture": also the id of a picture in ``drawings``, the heat map
            over what the model was shown; "inline": that picture itself as a base64 PNG, which every
            checkpoint of the conversation then holds.
        drawings: Where such pictures are kept; the default holds the last hundred, in memory.
    """

    name: str = "look_at_picture"
    description: str = (
        "Answers one question about one picture. The line after the answer says which model answered, how "
        "sure the small model was (a score from 0 to 1, and the threshold that it is held against), what it "
        "cost, and where in the picture it looked. When an answer is doubtful, escalate; when print is too "
        "small in a large picture, ask about a region of it."
    )
    args_schema: Annotated[ArgsSchema | None, SkipValidation()] = VisualQuestionInput
    evidence: EvidenceForm = "box"
    drawings: InMemoryPictureStore = Field(default_factory=_drawings, exclude=True)

    def _run(
        self,
        question: str,
        picture: str,
        region: list[float] | None = None,
        *,
        escalate: bool = False,
        run_manager: CallbackManagerForToolRun | None = None,
    ) -> tuple[str, PictureAnswer]:
        with told_to_the_agent():
            options = self._options(escalate=escalate)
            shown = self.show(picture, region, pixels=self._draws)
            answer = self.model.invoke(shown.ask(question), child_config(run_manager), **options)
            return self._output(answer, question, picture, region, shown)

    async def _arun(
        self,
        question: str,
        picture: str,
        region: list[float] | None = None,
        *,
        escalate: bool = False,
        run_manager: AsyncCallbackManagerForToolRun | None = None,
    ) -> tuple[str, PictureAnswer]:
        with told_to_the_agent():
            options = self._options(escalate=escalate)
            # In threads: stores and files may be slow, and so is drawing.
            shown = await asyncio.to_thread(self.show, picture, region, pixels=self._draws)
            answer = await self.model.ainvoke(shown.ask(question), child_config(run_manager), **options)
            return await asyncio.to_thread(self._output, answer, question, picture, region, shown)

    def _options(self, *, escalate: bool) -> dict[str, Any]:
        """Writes the call's options; refuses to escalate where the model is set never to."""
        options: dict[str, Any] = {} if self.evidence == "none" else {"evidence": True}
        if not escalate:
            return options
        if self.setting("escalate") == "never":
            raise InvalidRequestError(
                "The large model is not to be called here.", remedy="Ask again without escalating."
            )
        return options | {"escalate": "always"}

    def _output(
        self, answer: AIMessage, question: str, picture: str, region: list[float] | None, shown: ShownPicture
    ) -> tuple[str, PictureAnswer]:
        """Builds what the agent reads, and the artifact with the evidence."""
        artifact = self.artifact(picture, region, answer)
        box = None
        if self.evidence != "none":
            evidence = Evidence.from_message(answer)
            box = place_in(shown.region, evidence.box())
            artifact["evidence"] = self._evidence(evidence, box, shown, question=question, answer=answer.text)
        return describe_run(answer.text, answer.response_metadata, box=box), artifact

    def _evidence(
        self, evidence: Evidence, box: Box, shown: ShownPicture, *, question: str, answer: str
    ) -> dict[str, Any]:
        """Writes the evidence in the form that the tool is set to, on the whole picture."""
        found: dict[str, Any] = {"box": [round(edge, 4) for edge in box]}
        if self.evidence == "map":
            found["map"] = evidence.within(shown.region).to_json()
        if self._draws:
            assert shown.pixels is not None
            drawing = _png(evidence.draw(shown.pixels, question=question, answer=answer))
            found["picture"] = (
                image_block(drawing) if self.evidence == "inline" else self.drawings.add(drawing)
            )
        return found

    @property
    def _draws(self) -> bool:
        return self.evidence in {"picture", "inline"}


class TranscribeInput(BaseModel):
    """Arguments of ``TranscribeTool``."""

    picture: str = Field(description="Which picture: its id, file name, https URL or base64 data.")
    region: list[float] | None = Field(
        default=None,
        description="Part of a large picture to read: x0, y0, x1, y1 as fractions from 0 to 1, from the left "
        "and the top. Leave it out to read the whole picture.",
    )


class TranscribeTool(PictureTool):
    """Reads all text of a picture.

    Attributes:
        prompt: What the model is asked; None is the bundled pair's own question for that pair, and
            ``TRANSCRIBE_PROMPT`` for any other.
        retention: The pruning preset; by default the one for transcriptions (``TRANSCRIPTION_PRESET``).
        max_tokens: Upper limit of answer tokens; None is the model's own.
    """

    name: str = "transcribe_picture"
    description: str = (
        "Reads all text of one picture. Slower than asking for one fact: use it when most of the text is "
        "needed. The last line says which model read it, how sure the small model was, and what it cost."
    )
    args_schema: Annotated[ArgsSchema | None, SkipValidation()] = TranscribeInput
    prompt: str | None = None
    retention: str = TRANSCRIPTION_PRESET
    max_tokens: int | None = None

    def _run(
        self,
        picture: str,
        region: list[float] | None = None,
        *,
        run_manager: CallbackManagerForToolRun | None = None,
    ) -> tuple[str, PictureAnswer]:
        with told_to_the_agent():
            messages = self.show(picture, region).ask(self._question())
            answer = self.model.invoke(messages, child_config(run_manager), **self._options())
        artifact = self.artifact(picture, region, answer)
        return describe_run(answer.text, answer.response_metadata), artifact

    async def _arun(
        self,
        picture: str,
        region: list[float] | None = None,
        *,
        run_manager: AsyncCallbackManagerForToolRun | None = None,
    ) -> tuple[str, PictureAnswer]:
        with told_to_the_agent():
            messages = (await asyncio.to_thread(self.show, picture, region)).ask(self._question())
            answer = await self.model.ainvoke(messages, child_config(run_manager), **self._options())
        artifact = self.artifact(picture, region, answer)
        return describe_run(answer.text, answer.response_metadata), artifact

    def _options(self) -> dict[str, Any]:
        limit = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {"retention": self.retention, **limit}

    def _question(self) -> str:
        """Chooses the prompt: the tool's own, or the one that the pair understands."""
        from sgl_engine.demo import TRANSCRIBE

        engine = self.setting("ready_engine")
        small = self.setting("small") if engine is None else engine.small.name
        is_bundled = small is None or str(small).startswith("sgl-demo-")
        return self.prompt or (TRANSCRIBE if is_bundled else TRANSCRIBE_PROMPT)


class SGLToolkit(BaseToolkit):
    """Both tools over one model, one folder and one store.

    Attributes:
        model: ``ChatSGL``, or a runnable around one.
        root: The only folder that picture files are read from; None allows no local files.
        store: Pictures by id; anything that ``as_picture_store`` takes.
        evidence: As in ``VisualQuestionTool``.
        drawings: As in ``VisualQuestionTool``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model: Runnable[Any, Any]
    root: Path | None = None
    store: OptionalStore = None
    evidence: EvidenceForm = "box"
    drawings: InMemoryPictureStore = Field(default_factory=_drawings, exclude=True)

    def get_tools(self) -> list[BaseTool]:
        """Makes the tools anew on each call."""
        shared: dict[str, Any] = {"model": self.model, "root": self.root, "store": self.store}
        look = VisualQuestionTool(**shared, evidence=self.evidence, drawings=self.drawings)
        return [look, TranscribeTool(**shared)]


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
