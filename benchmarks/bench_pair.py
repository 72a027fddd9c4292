"""The pair that a latency run times, its requests, and what it is held against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import PAIRS, Pair, build, picture
from sgl_engine import VLM, EngineConfig, Request, SGLEngine
from sgl_engine.config import ExitConfig, GenerationConfig
from sgl_engine.types import SmallPassResult

if TYPE_CHECKING:
    import torch
    from PIL import Image

QUESTIONS = ("What is the total of the second column?", "Who signed it at the bottom of the page?")


class UnavailableError(Exception):
    """This comparison cannot be made here; says why."""


@dataclass(eq=False)
class Timed:
    """Models and settings of one run.

    Attributes:
        small: The small model.
        large: The large one.
        pair: Their sizes.
        tokens: Visual tokens of a picture.
        answer_tokens: Tokens of every answer.
        repeats: Rounds of each comparison.
        device: "cpu" or "cuda".
    """

    small: VLM
    large: VLM
    pair: Pair
    tokens: int
    answer_tokens: int
    repeats: int
    device: str = "cpu"
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def build(cls, pair: str, tokens: int, *, dtype: torch.dtype, device: str, **settings: int) -> Timed:
        """Makes both models."""
        shapes = PAIRS[pair]
        small = build(shapes.small, tokens, dtype=dtype, device=device, name=f"{pair} small")
        large = build(shapes.large, tokens, dtype=dtype, device=device, name=f"{pair} large", seed=1)
        return cls(small, large, shapes, tokens, device=device, **settings)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def picture(self) -> Image.Image:
        """One that nothing has seen yet, so that no cache knows it."""
        return picture(self.pair.large, self.tokens, next(self._numbers))

    def request(self, question: int = 0, image: Image.Image | None = None) -> Request:
        """A question about a picture; about a new one if none is given."""
        return Request.ask(QUESTIONS[question], image or self.picture())

    def cold(self) -> Timed:
        """The same weights behind objects that remember nothing."""
        small, large = (
            VLM(vlm.model, vlm.processor, name=vlm.name, revision=vlm.revision)
            for vlm in (self.small, self.large)
        )
        return replace(self, small=small, large=large)

    def engine(self, *, escalate: bool) -> DraftedEngine:
        """An engine that always or never escalates, and whose answers have ``answer_tokens``."""
        leaving = ExitConfig(escalate="always") if escalate else ExitConfig(threshold=0.0)
        answers = GenerationConfig(max_new_tokens=self.answer_tokens)
        return DraftedEngine(self.small, self.large, EngineConfig(exit=leaving, generation=answers))


class DraftedEngine(SGLEngine):
    """An engine whose small answer can be put into its mouth, once it has been generated and paid for.

    Random models never agree; with ``draft`` set to what the large one will say, they do.
    """

    draft: torch.Tensor | None = None

    def _small_pass(self, *given: Any, **settings: Any) -> SmallPassResult:
        return self._drafted(super()._small_pass(*given, **settings))

    def _small_batch(self, *given: Any, **settings: Any) -> Sequence[Any]:
        return [self._drafted(result) for result in super()._small_batch(*given, **settings)]

    def _drafted(self, result: Any) -> Any:
        if self.draft is None or not isinstance(result, SmallPassResult):
            return result
        generation = replace(
            result.generation, token_ids=self.draft, text=self.small.text(self.draft.tolist())
        )
        return replace(result, generation=generation)


def plain_generate(vlm: VLM, question: str, image: Image.Image, max_new_tokens: int) -> Callable[[], str]:
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
            ids = vlm.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return answer
