"""What flows through the engine: frozen dataclasses, without behaviour beyond views of their own data.

Letters used in shapes: S prompt tokens, V visual tokens among them, M kept prompt tokens, T generated tokens,
L decoder layers, B batch (1, but in a ``PromptBatch``). Indices are prompt positions. Classes that hold
tensors compare by identity (``eq=False``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sgl_engine.digests import PictureAxes, picture_digests
from sgl_engine.resampling import resample

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sgl_engine.report import RunReport

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
ToolChoice: TypeAlias = Literal["auto", "any", "none"]
FinishReason: TypeAlias = Literal["stop", "length"]
Box: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1), fractions in [0, 1] of the source image's width and height."""
ImageSource: TypeAlias = "bytes | str | Path | Image"


@dataclass(frozen=True, eq=False)
class ImagePart:
    """One image of a message.

    Attributes:
        source: Encoded bytes, a PIL image, a URL (``https:`` or ``data:``) as ``str``, or a local file as
            ``pathlib.Path``. A ``str`` never opens a local file: text from a message cannot name one.
    """

    source: ImageSource


@dataclass(frozen=True)
class ToolSpec:
    """A function that a model may ask its caller to run.

    Attributes:
        name: What calls name.
        description: What it does, for the model.
        parameters: JSON schema of the arguments, an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A model's wish to have a tool run.

    Attributes:
        id: Ties the tool's result to this call.
        name: Name of a ``ToolSpec``.
        arguments: As the tool's schema says, where decoding was constrained; else whatever the model wrote.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """Something that was meant as a tool call and cannot be read as one.

    Attributes:
        id: An id, as a valid call would have.
        name: The tool's name, where it can be told.
        arguments: What the model wrote for them.
        error: Why it is not a call.
    """

    id: str
    name: str | None
    arguments: str
    error: str


@dataclass(frozen=True)
class Message:
    """One turn: a role, then texts and images in the order in which the model reads them.

    Attributes:
        role: Who speaks.
        content: Texts and images.
        tool_calls: Of an assistant: what it called after the text.
        tool_call_id: Of a tool: which call this is the result of.
        name: Of a tool: its name, where it is known.
    """

    role: Role
    content: tuple[str | ImagePart, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Request:
    """A question and its pictures.

    ``None`` means "as the engine's configuration says".

    Attributes:
        messages: The conversation; the last message is the one that is answered.
        max_new_tokens: Upper limit of answer tokens.
        temperature: 0 is greedy.
        top_p: Nucleus in (0, 1]; only used when the temperature is above 0.
        stop: Strings that end the answer; they are not part of it. JSON and tool calls are never cut: inside
            them, and so in an answer that has to be JSON or a call, these strings mean nothing.
        seed: Makes sampling repeatable.
        deadline: ``time.monotonic()`` value in seconds, after which the request fails with ``DeadlineError``.
        cancel: Once set, the request fails with ``RequestCancelledError`` within one token.
        may_escalate: Asked, from the thread that runs the request, right before the large model would be
            called; False keeps the small answer. For budgets that many requests share.
        tools: What the model may call.
        tool_choice: "auto" leaves it to the model, "any" makes it call at least one, "none" forbids calls.
        tool_name: The only tool that may be called; None is any of ``tools``.
        parallel_tool_calls: Whether one answer may hold several calls.
        logprobs: Whether ``Response.tokens`` is wanted.
        response_schema: JSON schema that the answer satisfies, by constrained decoding; {"type": "object"} is
            any JSON object. With tools, the answer is that or calls. Not together with a forced call.
    """

    messages: tuple[Message, ...]
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    deadline: float | None = None
    cancel: threading.Event | None = None
    may_escalate: Callable[[], bool] | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    logprobs: bool = False
    response_schema: Mapping[str, Any] | None = None

    @classmethod
    def ask(
        cls,
        question: str,
        *images: ImageSource,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: tuple[str, ...] = (),
        seed: int | None = None,
        deadline: float | None = None,
    ) -> Request:
        """The common case: one user turn, the images first, then the question."""
        content: tuple[str | ImagePart, ...] = (*(ImagePart(image) for image in images), question)
        return cls(
            messages=(Message("user", content),),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            deadline=deadline,
        )

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """All images, in the order in which the model sees them."""
        parts = (part for message in self.messages for part in message.content)
        return tuple(part for part in parts if isinstance(part, ImagePart))


@dataclass(frozen=True)
class VisualSpan:
    """The visual tokens of one image, or of one tile of an image.

    Attributes:
        image: Index of the image in the request, from 0.
        start: First prompt position.
        stop: One past the last prompt position.
        grid: (rows, cols) of tokens after merging, row-major.
        box: The part of the source image that the tokens see; None where it is unknown (a tiled prompt built
            from raw inputs, without the image sizes).
        row_gap: Prompt tokens between two rows that are no visual tokens (row separators); they are text.
    """

    image: int
    start: int
    stop: int
    grid: tuple[int, int]
    box: Box | None
    row_gap: int = 0

    def __len__(self) -> int:
        """Number of visual tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Prompt positions of the visual tokens, ascending."""
        rows, cols = self.grid
        starts = range(self.start, self.start + rows * (cols + self.row_gap), cols + self.row_gap)
        return tuple(position for start in starts for position in range(start, start + cols))


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """What a model takes.

    Attributes:
        inputs: The model's keyword arguments (input_ids, attention_mask, pixel_values, ...).
        input_ids: int64 (B, S).
        spans: The visual tokens, in prompt order; image-token positions only, never the text between images.
        positions: int64 (axes, B, S), positions for rotary embeddings that see an image in two dimensions;
            None where tokens are simply numbered.
        picture_axes: Where each picture lies in the inputs (``sgl_engine.digests``); None where pictures
            cannot be told apart there.
    """

    inputs: Mapping[str, Tensor]
    input_ids: Tensor
    spans: tuple[VisualSpan, ...]
    positions: Tensor | None = None
    picture_axes: PictureAxes | None = None

    def __len__(self) -> int:
        """S, the number of prompt tokens."""
        return int(self.input_ids.shape[1])

    @property
    def num_visual_tokens(self) -> int:
        """V."""
        return sum(len(span) for span in self.spans)

    @property
    def visual_positions(self) -> tuple[int, ...]:
        """The V prompt positions of visual tokens, ascending."""
        return tuple(position for span in self.spans for position in span.positions)

    @cached_property
    def picture_digests(self) -> tuple[bytes, ...]:
        """Of each picture as the model is given it, or of all together; computed when first asked for."""
        return picture_digests(self.inputs, self.picture_axes)


@dataclass(frozen=True)
class Decoding:
    """How answer tokens are chosen, and when to give up. The default is greedy and unhurried.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus in (0, 1].
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        deadline: ``time.monotonic()`` value in seconds, or None.
        cancel: Once set, generation ends within one token with ``RequestCancelledError``.
        grammar: What the answer is held to (``sgl_engine.grammar``), or None. Log-probabilities do not
            change: they are the model's own, not those of the choice that was left.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    cancel: threading.Event | None = None
    grammar: str | None = None


@dataclass(frozen=True, eq=False)
class Generation:
    """A finished answer.

    Attributes:
        text: Without special tokens, cut before a stop string.
        token_ids: int64 (T,), the end-of-sequence token included where it was generated.
        logprobs: float32 (T,), natural log of each token's probability under the model's own distribution:
            temperature 1, nothing masked, whatever the sampling did.
        entropies: float32 (T,), in nats, of the same distribution at each step.
        finish_reason: "stop" (end-of-sequence token, stop string, or the end of the grammar) or "length".
    """

    text: str
    token_ids: Tensor
    logprobs: Tensor
    entropies: Tensor
    finish_reason: FinishReason

    def __len__(self) -> int:
        """T."""
        return int(self.token_ids.shape[0])


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """How much attention each visual token received; higher = more important.

    Attributes:
        mass: float32 (V,), on the CPU, in prompt order; a plain sum over layers, heads and query rows.
        spans: The prompt's visual spans that the mass belongs to.
        num_queries: Query rows that were summed.
    """

    mass: Tensor
    spans: tuple[VisualSpan, ...]
    num_queries: int

    def grids(self) -> tuple[Tensor, ...]:
        """The mass per span, float32 (rows, cols)."""
        grids, first = [], 0
        for span in self.spans:
            grids.append(self.mass[first : first + len(span)].reshape(span.grid))
            first += len(span)
        return tuple(grids)

    def resample(self, spans: tuple[VisualSpan, ...]) -> ImportanceMap:
        """The same map on another prompt's visual tokens: other tiles, grids, model or family.

        Mass goes where it lies in the picture (``sgl_engine.resampling``); where the spans agree, it is the
        map itself. Mass that none of the new tokens see, as behind a crop, is left out.

        Args:
            spans: The other prompt's, of the same images.

        Raises:
            IncompatiblePairError: Other images, or boxes that are needed and unknown.
        """
        return ImportanceMap(resample(self.mass, self.spans, spans), spans, self.num_queries)


@dataclass(frozen=True)
class Confidence:
    """How sure the small model is.

    Attributes:
        score: In [0, 1], higher = surer; what the exit decision compares with its threshold.
        parts: What it is made of (``sgl_engine.measurements``).
    """

    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class ExitDecision:
    """Whether the small answer is kept.

    Attributes:
        exit: True: keep the small answer, the large model is not called.
        score: The small model's score; the calibrated probability where a calibration covers the request.
        threshold: What the score was compared with.
        policy: "threshold"; "forced" when the configuration says never or always, or the request's
            ``may_escalate`` said no; "uncovered" when the calibration says nothing about such a request.
        calibration: Identifier of the calibration that gave the threshold; None for a plain number.
        uncovered: Why the calibration does not cover the request; None where it does, or there is none.
    """

    exit: bool
    score: float
    threshold: float
    policy: Literal["threshold", "forced", "uncovered"]
    calibration: str | None = None
    uncovered: str | None = None

    @property
    def calibrated_probability(self) -> float | None:
        """That keeping the small answer is harmless; None where no calibration says so."""
        return self.score if self.calibration is not None and self.uncovered is None else None


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which prompt tokens the layers from ``layer`` on see.

    Attributes:
        keep: int64 (M,), on the CPU, ascending prompt positions: all text and the kept visual tokens.
        layer: K, the first decoder layer that sees only ``keep``; 0 prunes before the first layer.
        prompt_tokens: S.
        visual_tokens: V.
        kept_visual_tokens: Of the V.
        keep_ratio: The ratio that was asked for (what is kept, not what is dropped).
        spans: The prompt's visual spans, to show what is kept in the picture.
    """

    keep: Tensor
    layer: int
    prompt_tokens: int
    visual_tokens: int
    kept_visual_tokens: int
    keep_ratio: float
    spans: tuple[VisualSpan, ...] = ()

    @property
    def prunes(self) -> bool:
        """False when every token is kept: then nothing is patched at all."""
        return self.kept_visual_tokens < self.visual_tokens

    def kept_of(self, prompt_tokens: int) -> int:
        """How many of the first ``prompt_tokens`` positions the pruned layers see; those past S are kept."""
        return prompt_tokens - (self.visual_tokens - self.kept_visual_tokens)


@dataclass(frozen=True)
class Reused:
    """What a pass did not have to compute, because it was known (``sgl_engine.config.ReuseConfig``).

    Attributes:
        pictures: Pictures that did not go through the vision tower.
        tokens: Prompt tokens whose keys and values were known: in all layers, or in a pruned large model in
            those below K.
        tower_patches: Patches in each pass of the vision tower that was made; None where nothing was looked
            up, so that each of the prompt's was.
    """

    pictures: int = 0
    tokens: int = 0
    tower_patches: tuple[int, ...] | None = None


NOTHING_REUSED = Reused()


@dataclass(frozen=True, eq=False)
class SmallPassResult:
    """What the small model said, how sure it is, and where it looked.

    Attributes:
        generation: The small answer.
        parts: How sure the model was (``sgl_engine.measurements``).
        importance: None when the prompt holds no image.
        consistency_plan: What the consistency pass saw of the prompt; None when there was none.
        stage_ms: Milliseconds: "vision", "generate", "consistency".
        reused: What was known before.
    """

    generation: Generation
    parts: Mapping[str, float]
    importance: ImportanceMap | None
    consistency_plan: PruningPlan | None
    stage_ms: Mapping[str, float]
    reused: Reused = NOTHING_REUSED


@dataclass(frozen=True, eq=False)
class LargePassResult:
    """What the large model said.

    Attributes:
        generation: The large answer.
        plan: What was pruned.
        cache_tokens: Columns of the cache per decoder layer (L,) when the answer ended; shorter from
            plan.layer on, 0 in recurrent layers. Side by side, padding and others' tokens included.
        stage_ms: Milliseconds: "vision", "generate".
        fed: For each forward, how many answer tokens the cache held before it, and how many were fed, those
            of a draft that turned out wrong included; the first took the prompt too. What a batch adds,
            padding and waiting for others, is not in it.
        drafted_tokens: Of the draft, as many as the answer may have.
        accepted_tokens: Of these, how many the answer took over, in order: up to the first that differs, and
            where it came back to the draft after that.
        reused: What was known before.
    """

    generation: Generation
    plan: PruningPlan
    cache_tokens: tuple[int, ...]
    stage_ms: Mapping[str, float]
    fed: tuple[tuple[int, int], ...]
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reused: Reused = NOTHING_REUSED


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer.

    Attributes:
        token: What it adds to the text: the tokens of an answer join to its text. Empty for a control token,
            and for the first bytes of a character, which shows with its last byte.
        logprob: Natural log of its probability under the model's own distribution, see ``Generation``.
    """

    token: str
    logprob: float


@dataclass(frozen=True, eq=False)
class Response:
    """The answer, and how it came about.

    Attributes:
        text: The answer, tool calls left out.
        finish_reason: Why it ends.
        report: What it cost and how it was decided; JSON-safe.
        tool_calls: What the model wants to have run, in order.
        invalid_tool_calls: Calls that cannot be read.
        tokens: The answer's tokens, the end-of-sequence token included, where the request asked for them.
        importance: The small model's map; None when the request holds no image.
        plan: What the large model saw; None when it was not called.
    """

    text: str
    finish_reason: FinishReason
    report: RunReport
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    tokens: tuple[TokenLogprob, ...] = ()
    importance: ImportanceMap | None = None
    plan: PruningPlan | None = field(default=None)


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer, in order; the pieces of a stream join to ``Response.text``."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call, in order; the arguments of one index join to one JSON object.

    Attributes:
        index: Which call of the answer, from 0.
        id: On the first piece of a call, else None.
        name: On the first piece of a call, else None.
        arguments: Piece of the arguments' JSON text.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


StreamEvent: TypeAlias = ExitDecision | TextDelta | ToolCallDelta | Response
"""``SGLEngine.stream`` yields the decision, then text and tool call deltas, then one Response, last."""
