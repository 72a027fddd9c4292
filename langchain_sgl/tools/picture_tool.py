"""What tools over pictures share: finding the picture, asking the model, telling the agent what came of it.

The agent's model does not see response metadata, so a line of text says what a run did and what it cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from pydantic import BeforeValidator, ConfigDict, SkipValidation, ValidationError

from langchain_sgl.chat.image_blocks import image_block
from langchain_sgl.evidence import crop_box
from langchain_sgl.tools.picture_store import PictureStore, as_picture_store
from langchain_sgl.tools.references import describe_reference, resolve_picture
from sgl_engine import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    LimitsConfig,
    OverloadedError,
    RequestCancelledError,
    RequestError,
)
from sgl_engine.prompt import shorten

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgl_engine.prompt import Box

OptionalStore = Annotated[
    # pydantic cannot check a protocol: as_picture_store does.
    SkipValidation[PictureStore | None],
    BeforeValidator(lambda store: None if store is None else as_picture_store(store)),
]


def describe_wrong_arguments(error: Any) -> str:
    """Tells the agent that made a tool call what is wrong with its arguments."""
    assert isinstance(error, ValidationError)
    faults = [
        f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in error.errors()
    ]
    return f"The call's arguments are wrong ({'; '.join(faults)}). Correct them and call again."


class PictureAnswer(TypedDict):
    """The artifact of a tool's message: plain JSON.

    Attributes:
        answer: The model's answer, without the line about it.
        picture: The reference as it was given; data only by its length and hash.
        region: What was looked at, as it was given.
        report: ``RunReport`` as JSON.
        evidence: Where the small model looked, if that was asked for. "box": fractions of the whole picture;
            "map": ``Evidence`` as JSON, on the whole picture; "picture": the id of a picture in the tool's
            ``drawings``, or an image content block: what the model was shown, with the heat over it.
    """

    answer: str
    picture: str
    region: list[float] | None
    report: dict[str, Any]
    evidence: NotRequired[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A picture, or a region of one, ready to be asked about.

    Attributes:
        block: Image content block.
        region: The part of the picture that this is.
        pixels: The same, decoded, where that was needed.
    """

    block: dict[str, Any]
    region: Box
    pixels: Image | None = None

    def ask(self, question: str) -> list[HumanMessage]:
        """Writes the messages for the model: the picture, then the question."""
        return [HumanMessage([self.block, {"type": "text", "text": question}])]


class PictureTool(BaseTool):
    """A tool that asks ``ChatSGL`` about a picture.

    Attributes:
        model: ``ChatSGL``, or a runnable around one (``bind``, ``with_retry``, ...).
        root: The only folder that picture files are read from; None allows no local files.
        store: Pictures by id; anything that ``as_picture_store`` takes.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model: Runnable[Any, Any]
    root: Path | None = None
    store: OptionalStore = None
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True
    handle_validation_error: Any = describe_wrong_arguments

    def show(self, reference: str, region: list[float] | None, *, pixels: bool = False) -> ShownPicture:
        """Finds the picture and cuts the region out of it.

        Args:
            reference: As the agent wrote it.
            region: x0, y0, x1, y1 in fractions; None is the whole picture.
            pixels: Whether the decoded picture is needed as well.

        Raises:
            ImageError: There is no such picture, or it cannot be used.
            InvalidRequestError: The region is not part of a picture.
        """
        from sgl_engine.prompt import load_image, read_file

        box = (0.0, 0.0, 1.0, 1.0) if region is None else _as_box(region)
        source = resolve_picture(reference, root=self.root, store=self.store)
        if region is None and not pixels:
            # The bytes go on as they are: a photograph is decoded once, by the engine.
            return ShownPicture(
                image_block(read_file(source, self._limits) if isinstance(source, Path) else source), box
            )
        picture = crop_box(load_image(source, self._limits), box)
        return ShownPicture(image_block(picture), box, picture)

    @property
    def _limits(self) -> LimitsConfig:
        engine = self.setting("ready_engine")
        limits: LimitsConfig | None = self.setting("limits") or (engine and engine.config.limits)
        return limits or LimitsConfig()

    def setting(self, name: str) -> Any:
        """Reads a setting of the chat model; what is bound around it counts more. None if not set."""
        # From the outermost layer inwards.
        layer: Any = self.model
        while layer is not None:
            if name in (bound := getattr(layer, "kwargs", None) or {}):
                return bound[name]
            if name in getattr(type(layer), "model_fields", {}):
                return getattr(layer, name)
            # Bindings keep what they wrap as "bound", configurable models as "default"; of a model with
            # fallbacks, the first one is "runnable".
            inner = (getattr(layer, name, None) for name in ("bound", "default", "runnable"))
            layer = next(filter(None, inner), None)
        return None

    def artifact(self, reference: str, region: list[float] | None, answer: AIMessage) -> PictureAnswer:
        """Builds the artifact of the tool's message, which the program gets.

        Raises:
            ConfigError: The answer is no ``ChatSGL``'s.
        """
        report = answer.response_metadata.get("sgl")
        if not isinstance(report, dict):
            raise ConfigError(
                f"The model of the tool {self.name!r} answered without a report.",
                remedy="Give the tool a ChatSGL, or a runnable around one.",
            )
        return PictureAnswer(
            answer=answer.text, picture=describe_reference(reference), region=region, report=report
        )


def child_config(
    run_manager: CallbackManagerForToolRun | AsyncCallbackManagerForToolRun | None,
) -> RunnableConfig | None:
    """Puts the model's call below the tool's in callbacks and traces; tags and the rest come by context."""
    return None if run_manager is None else {"callbacks": run_manager.get_child()}


@contextmanager
def told_to_the_agent() -> Iterator[None]:
    """Turns what is wrong with a request into ``ToolException``, which the agent reads and can act on.

    What the engine advises its caller to do about time and load, an agent cannot do; so it is told what it
    can. Errors of the set-up (a missing model, a wrong folder) are nothing that an agent could mend, and a
    cancelled run has no agent any more: both pass.
    """
    try:
        yield
    except RequestCancelledError:
        raise
    except DeadlineError as error:
        raise ToolException(
            "There was not enough time to answer. Ask for less: about a region of the picture, for a shorter "
            "answer, and without escalating. Or go on without this answer."
        ) from error
    except OverloadedError as error:
        raise ToolException(
            "The vision model has too much to do right now. Ask again later, one question at a time."
        ) from error
    except RequestError as error:
        raise ToolException(str(error)) from error


def _as_box(region: list[float]) -> Box:
    """Checks the region that an agent wrote."""
    if len(region) == 4:
        x0, y0, x1, y1 = region
        if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
            return (x0, y0, x1, y1)
    raise InvalidRequestError(
        f"The region {region} is not part of a picture.",
        remedy="Give x0, y0, x1, y1 as fractions from 0 to 1, with x0 < x1 and y0 < y1.",
    )


def describe_run(answer: str, metadata: Mapping[str, Any], *, box: Box | None = None) -> str:
    """Writes the answer, then a line on whose it is, how sure the small model was, the cost, and the place.

    Args:
        answer: The model's.
        metadata: The message's ``response_metadata``, with the report.
        box: Where the small model looked, in fractions of the whole picture.
    """
    report = metadata["sgl"]
    parts = [_route(report), _cost(report)]
    if metadata.get("finish_reason") == "length":
        parts.append("cut off at the token limit")
    if box is not None:
        x0, y0, x1, y1 = box
        parts.append(f"looked at x {x0:.2f}-{x1:.2f}, y {y0:.2f}-{y1:.2f}")
    return f"{answer or '(no answer)'}\n[{'; '.join(parts)}]"


def _route(report: Mapping[str, Any]) -> str:
    """Says which model answered, and why."""
    score, threshold = report["score"], report["threshold"]
    if not report["escalated"]:
        # The score asked for the large model; a budget or ``escalate="never"`` did not let it.
        if report["forced"] and score < threshold:
            unsure = f"answered by the small model alone, score {_compare(score, threshold)}"
            return f"{unsure}, as the large model may not be asked"
        return f"answered by the small model, score {_compare(score, threshold)}"
    if report["large_agreed"]:
        small = "the small one gave the same answer"
    else:
        small = f"the small one answered {shorten(report['small_answer'] or '')!r}"
    at = f"with score {score:.2f}" if report["forced"] else f"with score {_compare(score, threshold)}"
    return f"answered by the large model{', as asked' if report['forced'] else ''}; {small} {at}"


def _compare(score: float, threshold: float) -> str:
    """Writes a comparison, with as many digits as it takes to look true: ``0.92 >= 0.80``."""
    sign = ">=" if score >= threshold else "<"
    for digits in (2, 3, 4, 6):
        left, right = f"{score:.{digits}f}", f"{threshold:.{digits}f}"
        if left != right:
            break
    return f"{left} {sign} {right}"


def _cost(report: Mapping[str, Any]) -> str:
    saved = round(100 * report["saved_fraction"])
    compute = (
        f"{saved} % of the large model's compute saved"
        if saved >= 0
        else f"{-saved} % more compute than the large model alone"
    )
    return f"{compute}, {report['stage_ms']['total']:.0f} ms"
