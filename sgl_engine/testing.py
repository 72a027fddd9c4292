"""For tests of code that uses this package: tiny models, and an engine that says what it is told to say.

    from sgl_engine import SGLEngine
    from sgl_engine.testing import FakeEngine, tiny_vlm

    engine = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))
    scripted = FakeEngine(lambda request: "a receipt", score=0.97)

Tiny models are real architectures with random weights; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Literal

import torch

from sgl_engine import (
    VLM,
    ConfigError,
    EngineConfig,
    HostedAnswer,
    HostedCall,
    HostedModel,
    HostedUsage,
    ReasoningDelta,
    Request,
    SGLEngine,
    TextDelta,
    ToolCallDelta,
)
from sgl_engine.attention import ImportanceMap
from sgl_engine.decoding import Generation
from sgl_engine.families.tiny import (
    DEFAULT_DECODER,
    DEFAULT_FAMILY,
    TINY_FAMILIES,
    TINY_SIZES,
    TinyDecoder,
    TinyOptions,
    build_tiny,
)
from sgl_engine.passes import Asked, SmallPassResult

__all__ = ["FakeEngine", "FakeHostedModel", "tiny_vlm"]


def tiny_vlm(
    family: str = DEFAULT_FAMILY,
    *,
    size: Literal["small", "large"] = "small",
    decoder: TinyDecoder = DEFAULT_DECODER,
    max_tiles: int = 1,
    side_tokens: int = 4,
    seed: int = 0,
    context_tokens: int = 2048,
) -> VLM:
    """A VLM of 60 to 180 thousand parameters, float32, on the CPU. Its answers are gibberish, and repeatable.

    Args:
        family: Architecture family, by its ``config.model_type``.
        size: "small" has 3 decoder layers, "large" 6 wider ones; both see the same grid.
        decoder: Which text model, for the default family, whose checkpoints come with several.
        max_tiles: 1 makes one tile of every image; more cuts large images into tiles, as the family does it,
            or makes their one grid larger.
        side_tokens: A tile is side_tokens x side_tokens visual tokens.
        seed: Of the weights; the global random state is left as it was.
        context_tokens: Longest sequence.

    Raises:
        ConfigError: There is no tiny model of this family.
    """
    if family not in TINY_FAMILIES:
        raise ConfigError(
            f"There is no tiny model of the family {family!r}.",
            remedy=f"Use one of {', '.join(TINY_FAMILIES)}.",
        )
    options = TinyOptions(
        size=TINY_SIZES[size], max_tiles=max_tiles, side_tokens=side_tokens, context_tokens=context_tokens
    )
    model, processor = build_tiny(family, options, decoder=decoder, seed=seed)
    return VLM(model, processor, name=f"tiny-{family}-{size}")


class FakeEngine(SGLEngine):
    """An engine whose small pass is scripted; everything around it is real.

    Requests are checked, encoded and counted, tool calls are read out of the scripted text, and where the
    score is below the threshold a real large model answers. Images get equal importance.

    Args:
        answer: What the small model says to a request, tool calls in its own format included
            (``sgl_engine.chat.tool_calls.render_call``). Called from the thread that runs the models, one
            request after the other.
        score: The small model's score in [0, 1], whatever the scorer; a function may look at the request.
        small: Whose tokenizer and processor are used; None is a tiny model.
        large: Answers when it is called, and may be hosted; None is a tiny model, which writes gibberish.
        config: What can be set.
    """

    def __init__(
        self,
        answer: Callable[[Request], str],
        *,
        score: float | Callable[[Request], float] = 1.0,
        small: VLM | None = None,
        large: VLM | HostedModel | None = None,
        config: EngineConfig | None = None,
    ) -> None:
        super().__init__(
            small or tiny_vlm(size="small"), large or tiny_vlm(size="large"), config, small_pass=self._say_all
        )
        self._answer_of = answer
        self._score_of = score

    def _say_all(self, vlm: VLM, asked: Sequence[Asked], **_: object) -> list[SmallPassResult | Exception]:
        """Takes the small pass's place; what fails, fails alone."""
        results: list[SmallPassResult | Exception] = []
        for each in asked:
            try:
                results.append(self._say(vlm, each))
            except Exception as error:  # noqa: BLE001  # a script may raise what it likes
                results.append(error)
        return results

    def _say(self, vlm: VLM, asked: Asked) -> SmallPassResult:
        request, prompt, max_new_tokens = asked.request, asked.task.prompt, asked.task.max_new_tokens
        text = self._answer_of(request)
        ids = vlm.processor.tokenizer.encode(text, add_special_tokens=False)
        ids = [*ids, *sorted(vlm.eos_token_ids)[:1]]
        if len(ids) > max_new_tokens:
            raise ConfigError(
                f"The scripted answer has {len(ids)} tokens; the request allows {max_new_tokens}.",
                remedy="Script a shorter answer, or raise max_new_tokens.",
            )
        score = self._score_of(request) if callable(self._score_of) else self._score_of
        even = math.log(max(score, 1e-9))  # of every token, so that the score is their geometric mean
        importance = None
        if prompt.spans:
            importance = ImportanceMap(torch.ones(prompt.num_visual_tokens), prompt.spans, num_queries=1)
        return SmallPassResult(
            generation=Generation(
                text=text,
                token_ids=torch.tensor(ids, dtype=torch.int64),
                logprobs=torch.full((len(ids),), even),
                entropies=torch.zeros(len(ids)),
                finish_reason="stop",
            ),
            parts={  # every scorer makes the score of them
                "confidence": score,
                "answer_probability": score,
                "min_token_probability": score,
                "mean_entropy": -even,
            },
            importance=importance,
            consistency_plan=None,
            stage_ms={"vision": 0.0, "generate": 0.0},
        )


class FakeHostedModel:
    """A hosted model that says what it is told to say, and keeps what it was asked.

    Args:
        answer: What it answers, piece by piece; an exception is raised in its place.
        name: What reports call it.
        usage: What it says that it took.

    Attributes:
        calls: What it was asked, in order.
    """

    def __init__(
        self,
        *answer: TextDelta | ReasoningDelta | ToolCallDelta | str | Exception,
        name: str = "scripted",
        usage: HostedUsage | None = None,
    ) -> None:
        self.name = name
        self.calls: list[HostedCall] = []
        self._answer = answer
        self._usage = usage

    def stream(
        self, call: HostedCall
    ) -> Generator[TextDelta | ReasoningDelta | ToolCallDelta, None, HostedAnswer]:
        """Plays the script."""
        self.calls.append(call)
        text = ""
        for piece in self._answer:
            if isinstance(piece, Exception):
                raise piece
            delta = TextDelta(piece) if isinstance(piece, str) else piece
            text += delta.text if isinstance(delta, TextDelta) else ""
            yield delta
        return HostedAnswer(text, usage=self._usage)
