"""LangChain's standard suites: on the bundled pair, on a scripted small pass, and on any pair by environment.

SGL_TEST_SMALL and SGL_TEST_LARGE name another pair (paths or hub ids), which is then held to the same suites.
Four tests need a model that copies values out of instructions. The bundled pair cannot; each of those tests
passes with a scripted small pass, so that only the model is missing, not the plumbing.
"""

import os
from typing import Any

import httpx
import pytest
from instructed import scripted_engine
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as suite
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_sgl import ChatSGL
from sgl_engine.demo import PICTURES

PAIR = {
    name: os.environ[variable]
    for name, variable in {"small": "SGL_TEST_SMALL", "large": "SGL_TEST_LARGE"}.items()
    if variable in os.environ
}
DOES_NOT_FOLLOW = "the bundled pair does not follow instructions: it cannot copy {} into a tool call"


class Profile:
    """What ChatSGL claims to support; the suites test every claim."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSGL

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return dict(PAIR)

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True


class TestUnit(Profile, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {
            "SGL_SMALL": "one",
            "SGL_LARGE": "other",
            "SGL_RETENTION": "64%",
            "SGL_EXIT_THRESHOLD": "0.5",
            "SGL_DEVICE": "cpu",
            "SGL_DTYPE": "float32",
        }
        expected = {"small": "one", "large": "other", "retention": "64%", "exit_threshold": 0.5}
        return environment, {}, expected


@pytest.fixture(autouse=True)
def offline_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites download a picture, and name it by its URL; both get a bundled one instead."""
    picture = (PICTURES / "receipt.png").read_bytes()

    def get(url: str, **_: Any) -> httpx.Response:
        assert url.startswith("https://")
        return httpx.Response(200, content=picture)

    monkeypatch.setattr(suite.httpx, "get", get)
    monkeypatch.setattr("sgl_engine.prompt.images.fetch", lambda url, *_, **__: get(url).content)


class OnAPair(Profile, ChatModelIntegrationTests):
    room = 96
    """Tokens of an answer. A call or an object takes up to 76, with nothing in it."""

    escalate = "auto"

    @pytest.fixture(autouse=True)
    def _room_for_words(self, request: pytest.FixtureRequest) -> None:
        """A model that does not follow instructions writes as much as it may, and the suites are long.

        So what has a form is written by the small model alone, but for one test of each form: 24 layers take
        seconds for such an answer.
        """
        formed, name = ("tool", "structured", "json", "agent"), request.node.name
        if not any(word in name for word in formed):
            self.room = 12
        elif not name.startswith(("test_structured_output[pydantic", "test_tool_choice")):
            self.escalate = "never"

    @property
    def chat_model_params(self) -> dict[str, Any]:
        if PAIR:
            return super().chat_model_params | {"max_tokens": 1024}
        return {"max_tokens": self.room, "escalate": self.escalate}

    @property
    def model_override_value(self) -> str:
        return PAIR["large"] if PAIR else "sgl-demo-large"


if PAIR:

    class TestAnyPair(OnAPair):
        """The pair that the environment names; it is expected to follow instructions."""

else:

    class TestBundledPair(OnAPair):
        @pytest.mark.xfail(reason=DOES_NOT_FOLLOW.format("the number 3"), strict=True)
        def test_tool_calling(self, model: BaseChatModel) -> None:
            super().test_tool_calling(model)

        @pytest.mark.xfail(reason=DOES_NOT_FOLLOW.format("the number 3"), strict=True)
        async def test_tool_calling_async(self, model: BaseChatModel) -> None:
            await super().test_tool_calling_async(model)

        @pytest.mark.xfail(reason=DOES_NOT_FOLLOW.format("a city, unforced,"), strict=True)
        def test_agent_loop(self, model: BaseChatModel) -> None:
            super().test_agent_loop(model)

        @pytest.mark.xfail(reason=DOES_NOT_FOLLOW.format("a Chinese name"), strict=True)
        def test_unicode_tool_call_integration(self, model: BaseChatModel, **_: Any) -> None:
            super().test_unicode_tool_call_integration(model)


class TestScriptedSmallPass(Profile, ChatModelIntegrationTests):
    """The tests that the bundled pair is excused from, and what goes with them, on a scripted answer."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": scripted_engine()}

    @property
    def model_override_value(self) -> str:
        return "sgl-demo-small"
