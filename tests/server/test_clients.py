"""The clients that people have: OpenAI's, LangChain's ChatOpenAI by its standard suites, and curl."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from instructed import scripted_engine
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as suite
from pydantic import BaseModel, SecretStr
from served import QUESTION, Running, about, picture_url, serving

openai = pytest.importorskip("openai", reason="needs the extra test")
langchain_openai = pytest.importorskip("langchain_openai", reason="needs the extra test")

from sgl_engine.demo import PICTURES  # noqa: E402  # after the checks that they are installed
from sgl_engine.server import ServerSettings  # noqa: E402

KEY = "s3cret"


@pytest.fixture(scope="module")
def instructed() -> Iterator[Running]:
    with serving(scripted_engine(), ServerSettings(api_key=SecretStr(KEY))) as running:
        yield running


@pytest.fixture
def client(instructed: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{instructed.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_openai_asks_about_a_picture(client: Any) -> None:
    answer = client.chat.completions.create(model="sgl", messages=about(picture_url()))
    assert answer.choices[0].message.content == "Hello."
    assert answer.usage.prompt_tokens > 0
    assert answer.model_extra["sgl"]["route"] == "small"
    raw = client.chat.completions.with_raw_response.create(model="sgl", messages=QUESTION)
    assert raw.headers["x-sgl-route"] == "small"


def test_openai_sends_our_settings(client: Any) -> None:
    answer = client.chat.completions.create(
        model="sgl", messages=QUESTION, max_tokens=8, extra_body={"sgl": {"escalate": "always"}}
    )
    assert answer.model_extra["sgl"]["route"] == "large"


def test_openai_streams(client: Any) -> None:
    stream = client.chat.completions.create(
        model="sgl", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello."
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].model_extra["sgl"]["route"] == "small"


def test_openai_calls_tools_and_parses_schemas(client: Any) -> None:
    class Animal(BaseModel):
        name: str
        legs: int

    parsed = client.chat.completions.parse(model="sgl", messages=QUESTION, response_format=Animal)
    assert parsed.choices[0].message.parsed == Animal(name="cats", legs=3)
    tool = openai.pydantic_function_tool(Animal)
    called = client.chat.completions.create(
        model="sgl", messages=QUESTION, tools=[tool], tool_choice="required"
    )
    [call] = called.choices[0].message.tool_calls
    assert Animal.model_validate_json(call.function.arguments) == Animal(name="cats", legs=3)


async def test_openai_asynchronously(instructed: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{instructed.url}/v1", api_key=KEY) as client:
        answer = await client.chat.completions.create(model="sgl", messages=QUESTION)
        models = [model.id async for model in client.models.list()]
    assert answer.choices[0].message.content == "Hello."
    assert models == ["sgl", "sgl:small", "sgl:large"]


def test_openais_own_errors(client: Any, instructed: Running) -> None:
    create = partial(client.chat.completions.create, model="sgl", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="picture"):
        create(messages=about("data:image/png;base64,aGVsbG8="))
    with pytest.raises(openai.NotFoundError):
        create(model="other")
    with (
        pytest.raises(openai.AuthenticationError),
        openai.OpenAI(base_url=f"{instructed.url}/v1", api_key="x", max_retries=0) as stranger,
    ):
        stranger.models.list()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(instructed: Running) -> None:
    body = '{"messages": [{"role": "user", "content": "Hello"}]}'
    command = ["curl", "-sS", f"{instructed.url}/v1/chat/completions", "-d", body]
    headers = ["-H", "content-type: application/json", "-H", f"authorization: Bearer {KEY}"]
    done = subprocess.run([*command, *headers], capture_output=True, text=True, check=True)
    assert '"content":"Hello."' in done.stdout.replace(": ", ":")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ChatOpenAI's own
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema")
class TestChatOpenAI(ChatModelIntegrationTests):
    """LangChain's standard suite: what works with ChatOpenAI elsewhere works with it here."""

    @pytest.fixture(autouse=True)
    def _served(self, instructed: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        """The suite downloads a picture, and names it by its URL; both get a bundled one instead."""
        picture = (PICTURES / "receipt.png").read_bytes()

        def get(url: str, **_: Any) -> Any:
            return suite.httpx.Response(200, content=picture)

        type(self).url = instructed.url
        monkeypatch.setattr(suite.httpx, "get", get)
        monkeypatch.setattr("sgl_engine.prompt.images.fetch", lambda url, *_, **__: picture)

    url = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        made: type[BaseChatModel] = langchain_openai.ChatOpenAI
        return made

    @pytest.fixture
    def model(self, request: Any, _served: None) -> BaseChatModel:
        extra = getattr(request, "param", None) or {}
        return self.chat_model_class(**self.standard_chat_model_params, **self.chat_model_params, **extra)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": f"{self.url}/v1",
            "api_key": KEY,
            "model": "sgl",
            "max_retries": 0,
            "stream_usage": True,
            # Clients of each test's own: ChatOpenAI's would outlive the event loop of the first one.
            "http_client": openai.DefaultHttpxClient(),
            "http_async_client": openai.DefaultAsyncHttpxClient(),
            "default_headers": {"connection": "close"},  # nobody closes them, so they keep nothing open
        }

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "sgl:small"
