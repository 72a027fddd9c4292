"""What tests of the indexer share: pictures, and a model that answers with their size."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image
from pydantic import Field

from sgl_engine.errors import InvalidRequestError, UnsupportedModelError


class FakeChat(BaseChatModel):
    """Answers with the size of the picture it is shown, and reports like ChatSGL."""

    fails_on: set[str] = Field(default_factory=set)
    broken: bool = False
    asked: Callable[[], object] = lambda: None  # called for every picture
    version: str = "1"
    seen: list[dict[str, Any]] = Field(default_factory=list, exclude=True)

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"version": self.version}

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **settings: Any
    ) -> ChatResult:
        self.asked()
        if self.broken:
            raise UnsupportedModelError("No such family.", remedy="Use another.")
        image, text = messages[0].content
        assert isinstance(image, dict)
        assert isinstance(text, dict)
        picture = Image.open(io.BytesIO(base64.b64decode(image["base64"])))
        answer = f"{text['text']}: {picture.width} x {picture.height}"
        self.seen.append({"mime_type": image["mime_type"], "answer": answer, **settings})
        if answer in self.fails_on:
            raise InvalidRequestError("It cannot be read.", remedy="Look away.")
        about = {"model_name": "fake-large", "finish_reason": "stop", "sgl": {"route": "large", "n": 1}}
        message = AIMessage(answer, response_metadata=about)
        return ChatResult(generations=[ChatGeneration(message=message)])


def picture(width: int, height: int, kind: str = "PNG", seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()
