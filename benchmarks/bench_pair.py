"""The pair that a latency run times, its requests, and what it is held against."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.shapes import PAIRS, Pair, build, picture, processor
from benchmarks.timing import Seconds, Side, take_turns
from sgl_engine import VLM, EngineConfig, Request, SGLEngine
from sgl_engine.config import ExitConfig, GenerationConfig, PruningConfig
from sgl_engine.passes.small import SmallPassResult
from sgl_engine.passes.work import run_small

if TYPE_CHECKING:
    import torch
    from PIL import Image

QUESTIONS = ("What is the total of the second column?", "Who signed it at the bottom of the page?")


@dataclass(frozen=True, eq=False)
class Weights:
    """The models of a run, each made when it is first needed.

    Attributes:
        name: Of the pair, in ``PAIRS``.
        dtype: What they compute in.
        device: "cpu" or "cuda".
    """

    name: str
    dtype: torch.dtype
    device: str

    @property
    def pair(self) -> Pair:
        """Their sizes."""
        return PAIRS[self.name]

    @cached_property
    def small(self) -> Any:
        """The small model."""
        return build(self.pair.small, dtype=self.dtype, device=self.device)

    @cached_property
    def large(self) -> Any:
        """The large one."""
        return build(self.pair.large, dtype=self.dtype, device=self.device, seed=1)


@dataclass(frozen=True, eq=False)
class Timed:
    """What is timed, and how often.

    Attributes:
        weights: The models.
        tokens: Visual tokens of a picture.
        answer_tokens: Tokens of every answer.
        repeats: Rounds of each comparison.
        clock: Seconds.
    """

    weights: Weights
    tokens: int
    answer_tokens: int
    repeats: int
    clock: Callable[[], float] = time.perf_counter
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @cached_property
    def small(self) -> VLM:
        """The small model."""
        shape = self.weights.pair.small
        return VLM(self.weights.small, processor(shape, self.tokens), name=f"{self.weights.name} small")

    @cached_property
    def large(self) -> VLM:
        """The large one."""
        shape = self.weights.pair.large
        return VLM(self.weights.large, processor(shape, self.tokens), name=f"{self.weights.name} large")

    def take_turns(self, first: Side, second: Side, **settings: Any) -> Seconds:
        """``benchmarks.timing.take_turns`` by this clock."""
        settings = {"repeats": self.repeats, **settings}
        return take_turns(first, second, now=self.now, **settings)

    def now(self) -> float:
        """Seconds, when the device has done what it was given."""
        self.wait()
        return self.clock()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.weights.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def picture(self) -> Image.Image:
        """One that nothing has seen yet, so that no cache knows it."""
        return picture(self.weights.pair.large, self.tokens, next(self._numbers))

    def request(self, question: int = 0, image: Image.Image | None = None) -> Request:
        """A question about a picture; about a new one if none is given."""
        return Request.ask(QUESTIONS[question], image or self.picture())

    def cold(self) -> Timed:
        """The same weights behind objects that remember nothing."""
        return replace(self)

    def engine(self, *, escalate: bool, tiles: int | Literal["all"] = "all") -> DraftedEngine:
        """An engine that always or never escalates, and whose answers have ``answer_tokens``.

        Args:
            escalate: Which of the two.
            tiles: Tiles that the large model is given (``PruningConfig.tiles``).
        """
        leaving = ExitConfig(escalate="always") if escalate else ExitConfig(threshold=0.0)
        answers = GenerationConfig(max_new_tokens=self.answer_tokens)
        config = EngineConfig(pruning=PruningConfig(tiles=tiles), exit=leaving, generation=answers)
        return DraftedEngine(self.small, self.large, config)


class DraftedEngine(SGLEngine):
    """An engine whose small answer can be put into its mouth, once it has been generated and paid for.

    Random models never agree; with ``draft`` set to what the large one will say, they do.
    """

    def __init__(self, small: VLM, large: VLM, config: EngineConfig) -> None:
        super().__init__(small, large, config, small_pass=self._run_drafted)
        self.draft: torch.Tensor | None = None

    def _run_drafted(self, *given: Any, **settings: Any) -> Sequence[Any]:
        return [self._drafted(result) for result in run_small(*given, **settings)]

    def _drafted(self, result: Any) -> Any:
        if self.draft is None or not isinstance(result, SmallPassResult):
            return result
        generation = replace(
            result.generation, token_ids=self.draft, text=self.small.text(self.draft.tolist())
        )
        return replace(result, generation=generation)


def plain_generate(
    vlm: VLM, question: str, image: Image.Image, max_new_tokens: int, **settings: Any
) -> Callable[[], str]:
    """The way of transformers from a picture and a question to a text: processor, generate, decode."""
    import torch

    content = [{"type": "image"}, {"type": "text", "text": question}]
    tokenizer = vlm.processor.tokenizer

    def answer() -> str:
        text = vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = vlm.processor(text=[text], images=[[image]], return_tensors="pt")
        inputs = inputs.to(vlm.device, dtype=vlm.model.dtype)
        with torch.inference_mode():
            ids = vlm.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **settings)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return answer
