"""ChatSGL on the bundled pair: every way to call it gives the same answer and the same report."""

import copy
import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundled import EXITS, OVERRULED
from langchain_core import exceptions as core
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    trim_messages,
)
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from PIL import Image
from pydantic import ValidationError

from langchain_sgl import ChatSGL, forget_engines, image_block
from langchain_sgl.chat.call_options import CallFields
from langchain_sgl.chat.pair import Pair, shared_engine
from sgl_engine import SGLEngine
from sgl_engine.config import LimitsConfig
from sgl_engine.demo import PICTURES, WEIGHTS
from sgl_engine.errors import (
    ConfigError,
    CorruptImageError,
    DeadlineError,
    ImageLimitError,
    InvalidRequestError,
    ModelNotFoundError,
    RequestCancelledError,
    SGLError,
)

SURE = [HumanMessage([image_block(PICTURES / "receipt.png"), "How much is the total?"])]
UNSURE = [HumanMessage([image_block(PICTURES / "page.png"), OVERRULED.question])]


@pytest.fixture(scope="module")
def chat() -> ChatSGL:
    return ChatSGL()


def report(message: BaseMessage) -> dict[str, Any]:
    """The report, without what differs from run to run: the time that each stage took."""
    sgl = dict(message.response_metadata["sgl"])
    assert set(sgl.pop("stage_ms")) >= {"encode_small", "generate_small", "total"}
    return sgl


def joined(chunks: Iterator[AIMessageChunk]) -> AIMessageChunk:
    whole = next(chunks)
    for chunk in chunks:
        whole += chunk  # type: ignore[assignment]
    return whole


def test_a_sure_small_model_answers_alone(chat: ChatSGL) -> None:
    message = chat.invoke(SURE)
    assert message.content == "3.73"
    sgl = message.response_metadata["sgl"]
    assert (sgl["route"], sgl["escalated"], sgl["large_tflops"]) == ("small", False, 0.0)
    assert sgl["score"] >= sgl["threshold"]
    assert message.response_metadata["model_name"] == "sgl-demo-small"
    assert message.response_metadata["model_provider"] == "sgl"
    assert message.response_metadata["finish_reason"] == "stop"
    assert json.loads(json.dumps(message.response_metadata)) == message.response_metadata


def test_an_unsure_small_model_asks_the_large_one(chat: ChatSGL) -> None:
    message = chat.invoke(UNSURE)
    assert message.content == OVERRULED.answer
    sgl = message.response_metadata["sgl"]
    alone = chat.invoke(UNSURE, escalate="never").content
    assert (sgl["route"], sgl["small_answer"], sgl["large_agreed"]) == ("large", alone, False)
    assert alone != OVERRULED.answer
    assert 0 < sgl["kept_visual_tokens"] < sgl["visual_tokens"] == 864
    assert message.response_metadata["model_name"] == "sgl-demo-large"


@pytest.mark.filterwarnings("ignore:.*is in beta:langchain_core._api.LangChainBetaWarning")
@pytest.mark.parametrize("question", [SURE, UNSURE])
async def test_every_way_to_call_gives_the_same_answer_and_report(
    chat: ChatSGL, question: list[BaseMessage]
) -> None:
    chat.invoke(question)  # the picture is known from here on, which reports say
    expected = chat.invoke(question)
    answers: list[BaseMessage] = [
        await chat.ainvoke(question),
        *chat.batch([question, question]),
        *(await chat.abatch([question])),
        joined(chat.stream(question)),
        chat.bind(stop=["never"]).invoke(question),
        (ChatPromptTemplate.from_messages([("placeholder", "{q}")]) | chat).invoke({"q": question}),
        chat.stream_events(question, version="v3").output,
        await (await chat.astream_events(question, version="v3")).output,
    ]
    events = [event async for event in chat.astream_events(question, version="v2")]
    answers.extend(event["data"]["output"] for event in events if event["event"] == "on_chat_model_end")
    streamed = [chunk async for chunk in chat.astream(question)]
    answers.append(joined(iter(streamed)))
    assert len(answers) == 11
    for answer in answers:
        assert answer.text == expected.text
        # Two of them ran side by side, which rounds otherwise.
        assert report(answer) == {
            name: pytest.approx(value, rel=1e-4)
            if isinstance(value, float) or name == "score_parts"
            else value
            for name, value in report(expected).items()
        }
        assert isinstance(answer, AIMessage)
        assert answer.usage_metadata == expected.usage_metadata


def test_metadata_comes_once_on_the_last_chunk(chat: ChatSGL) -> None:
    *chunks, last = chat.stream(UNSURE)
    assert all(not chunk.response_metadata.get("sgl") and not chunk.usage_metadata for chunk in chunks)
    assert last.chunk_position == "last"
    assert last.response_metadata["sgl"]["route"] == "large"
    assert last.content == ""


def test_overrides_per_call(chat: ChatSGL) -> None:
    def sgl(**overrides: Any) -> dict[str, Any]:
        chat.invoke(UNSURE, **overrides)  # the picture is known from here on, which reports say
        bound = chat.bind(**overrides).invoke(UNSURE)
        assert report(chat.invoke(UNSURE, **overrides)) == report(bound)
        return report(bound)

    assert sgl(escalate="never")["route"] == "small"
    always = sgl(escalate="always")
    assert (always["route"], always["forced"]) == ("large", True)
    low = sgl(exit_threshold=0.1)
    assert low | {"threshold": 0} == sgl(exit_threshold=0.2) | {"threshold": 0}
    assert (low["route"], low["threshold"]) == ("small", 0.1)
    assert sgl(retention="64%")["keep_ratio"] == 0.4
    assert sgl(retention="100%")["kept_visual_tokens"] == 864
    assert sgl(tiles=5, retention="64%")["keep_ratio"] == 0.4
    changed = chat._options(tiles=5, neutral=True).configure(chat.engine).config.pruning
    assert (changed.tiles, changed.neutral) == (5, True)
    assert sgl(model="sgl-demo-small")["route"] == "small"
    assert sgl(model="sgl-demo-large")["route"] == "large"
    assert sgl(scorer="mean_product")["scorer"] == "mean_product"
    assert sgl() == report(ChatSGL().invoke(UNSURE))  # nothing of all this stays


def test_instances_take_the_same_options() -> None:
    assert report(ChatSGL(escalate="never").invoke(UNSURE))["route"] == "small"
    assert report(ChatSGL(escalate="never").invoke(UNSURE, escalate="always"))["route"] == "large"
    assert report(ChatSGL(retention="9%", exit_threshold=1.0).invoke(SURE))["keep_ratio"] == 0.05
    assert len(ChatSGL(max_tokens=2).invoke("transcribe the picture").content) > 0
    assert ChatSGL(max_tokens=1).invoke(SURE).response_metadata["finish_reason"] == "length"
    assert ChatSGL(stop=["7"]).invoke(SURE).content == "3."
    assert ChatSGL(stop=["7"]).invoke(SURE, stop=["."]).content == "3"


def test_sampling_is_repeatable(chat: ChatSGL) -> None:
    hot = chat.bind(temperature=5.0, top_p=0.95, max_tokens=12, escalate="always")
    assert hot.invoke(SURE, seed=1).content == hot.invoke(SURE, seed=1).content
    assert len({hot.invoke(SURE, seed=seed).content for seed in range(4)}) > 1


def test_logprobs(chat: ChatSGL) -> None:
    assert "logprobs" not in chat.invoke(SURE).response_metadata
    for message in (chat.invoke(SURE, logprobs=True), joined(chat.bind(logprobs=True).stream(SURE))):
        tokens = message.response_metadata["logprobs"]["content"]
        assert "".join(token["token"] for token in tokens) == message.content
        assert all(token["logprob"] <= 0 for token in tokens)


def test_evidence_is_there_when_asked_for(chat: ChatSGL) -> None:
    assert "sgl_evidence" not in chat.invoke(SURE).response_metadata
    message = chat.invoke(SURE, evidence=True)
    assert json.dumps(message.response_metadata["sgl_evidence"])
    assert "sgl_evidence" not in chat.invoke("hello", evidence=True).response_metadata


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"escalate": "sometimes"}, "escalate='sometimes'"),
        ({"exit_threshold": 1.5}, "exit_threshold=1.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"exit_treshold": 0.5}, "exit_treshold"),
        ({"retention": "50%"}, "'50%'"),
        ({"scorer": "gut"}, "gut"),
        ({"model": "gpt-5"}, "'gpt-5'"),
        ({"tool_choice": "missing"}, "'missing'"),
        ({"response_format": {"type": "json_schema"}}, "holds no schema"),
        ({"response_format": 3}, "JSON schema"),
    ],
)
def test_bad_options_are_named(chat: ChatSGL, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(core.ModelInvalidRequestError, match=words) as caught:
        chat.invoke(SURE, **overrides)
    assert isinstance(caught.value, SGLError)


def test_bad_settings_are_refused_when_written() -> None:
    for settings in (
        {"exit_treshold": 0.5},
        {"escalate": "sometimes"},
        {"temperature": -1},
        {"exit_threshold": 2},
        {"seed": 2**64},
    ):
        with pytest.raises(ValidationError):
            ChatSGL(**settings)
    with pytest.raises(ConfigError, match="Only one model"):
        ChatSGL(small="somewhere")
    with pytest.raises(ConfigError, match="Give one of them"):
        ChatSGL(small="a", large="b", engine=object())


def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGL_EXIT_THRESHOLD", "0.9")
    assert ChatSGL().exit_threshold == 0.9
    for name in ("SGL_SMALL", "SGL_DTYPE", "SGL_DEVICE", "SGL_EXIT_THRESHOLD", "SGL_RETENTION"):
        monkeypatch.setenv(name, "")
    assert ChatSGL() == ChatSGL(small=None, large=None, dtype=None, device=None)
    assert ChatSGL().exit_threshold is None
    assert ChatSGL().invoke(SURE).content == "3.73"


def test_errors_belong_to_both_trees(chat: ChatSGL) -> None:
    cases: list[tuple[Any, type[Exception], type[Exception], bool]] = [
        ([{"type": "image", "base64": "AAAA"}], core.ModelInvalidRequestError, CorruptImageError, False),
        ("word " * 5000, core.ContextOverflowError, SGLError, False),
        ([{"type": "image", "file_id": "x"}], core.ModelInvalidRequestError, InvalidRequestError, False),
    ]
    for content, counterpart, ours, retryable in cases:
        for call in (chat.invoke, lambda messages: list(chat.stream(messages))):
            with pytest.raises(counterpart) as caught:
                call([HumanMessage(content)])
            assert isinstance(caught.value, ours)
            assert isinstance(caught.value, core.ModelError)
            assert caught.value.is_retryable is retryable
            again = pickle.loads(pickle.dumps(caught.value))
            assert type(again) is type(caught.value)
            assert str(again) == str(caught.value)
    with pytest.raises(core.ModelTimeoutError) as late:
        chat.invoke(SURE, timeout=1e-9)
    assert isinstance(late.value, DeadlineError)
    assert late.value.is_retryable
    with pytest.raises(core.ModelNotFoundError) as missing:
        ChatSGL(small="./nowhere", large="./nowhere-either").invoke(SURE)
    assert isinstance(missing.value, ModelNotFoundError)


def test_one_bad_request_of_a_batch_fails_alone(chat: ChatSGL) -> None:
    bad = [HumanMessage([{"type": "image", "base64": "AAAA"}])]
    first, second, third = chat.batch([SURE, bad, UNSURE], return_exceptions=True)
    assert isinstance(second, CorruptImageError)
    assert (first.content, third.content) == ("3.73", OVERRULED.answer)


def test_limits(chat: ChatSGL) -> None:
    strict = ChatSGL(limits=LimitsConfig(max_images=0))
    with pytest.raises(ImageLimitError):
        strict.invoke(SURE)
    assert chat.invoke(SURE).content == "3.73"


def test_images_by_path_need_a_root() -> None:
    question = [HumanMessage([{"type": "image", "path": "receipt.png"}, "How much is the total?"])]
    with pytest.raises(core.ModelInvalidRequestError, match="image_root"):
        ChatSGL().invoke(question)
    assert ChatSGL(image_root=PICTURES).invoke(question).content == "3.73"


def test_several_turns(chat: ChatSGL) -> None:
    conversation = [
        SystemMessage("answer in a word"),
        *UNSURE,
        AIMessage(OVERRULED.answer),
        HumanMessage(EXITS.question),
    ]
    message = chat.invoke(conversation)
    assert message.response_metadata["sgl"]["visual_tokens"] == 864
    assert message.content
    assert chat.invoke("hello").response_metadata["sgl"]["visual_tokens"] == 0


def test_weights_are_loaded_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_engines()
    loads, asking = [], []

    def load(pair: Pair) -> SGLEngine:
        loads.append(pair)
        while len(asking) < 9:  # until everybody has asked
            time.sleep(0.001)
        return original(pair)

    from langchain_sgl.chat import pair as engines

    def ask(chat: ChatSGL) -> None:
        asking.append(chat)
        chat.invoke(SURE)

    original = engines._load
    monkeypatch.setattr(engines, "_load", load)
    chats = [ChatSGL(), ChatSGL(escalate="never"), ChatSGL(retention="9%", temperature=0.5)]
    threads = [threading.Thread(target=ask, args=(chat,)) for chat in chats for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    configurable = ChatSGL().configurable_fields(
        exit_threshold=ConfigurableField(id="threshold"), retention=ConfigurableField(id="retention")
    )
    message = configurable.with_config(configurable={"threshold": 0.1}).invoke(UNSURE)
    assert message.response_metadata["sgl"]["threshold"] == 0.1
    streamed = list(configurable.with_config(configurable={"retention": "64%"}).stream(UNSURE))
    assert streamed[-1].response_metadata["sgl"]["keep_ratio"] == 0.4
    assert len(streamed) > 1
    assert len(loads) == 1
    assert len({id(chat.engine.small) for chat in chats}) == 1


def test_a_failed_load_is_tried_again(tmp_path: Path) -> None:
    pair = Pair(small=str(tmp_path / "small"), large=str(WEIGHTS / "large"), settings={"dtype": "float32"})
    with pytest.raises(ModelNotFoundError):
        shared_engine(pair)
    (tmp_path / "small").symlink_to(WEIGHTS / "small", target_is_directory=True)
    assert shared_engine(pair) is shared_engine(pair)
    chat = ChatSGL(small=pair.small, large=pair.large, dtype="float32")
    assert chat.invoke(SURE).content == "3.73"
    assert report(chat.invoke(SURE))["scorer"] == "mean_product"  # any pair but the bundled one


def test_a_ready_engine_keeps_its_own_configuration(chat: ChatSGL) -> None:
    engine = chat.engine.with_config(chat.engine.config.escalating("always"))
    mine = ChatSGL(engine=engine)
    assert report(mine.invoke(SURE))["route"] == "large"
    assert report(mine.invoke(SURE, escalate="auto"))["route"] == "small"
    assert mine.engine is engine
    assert mine.profile is not None
    assert mine.profile["max_input_tokens"] == 4096
    assert copy.copy(mine).engine is engine
    assert copy.deepcopy(mine).engine is engine
    assert mine.model_copy(deep=True).engine is engine


def test_a_ready_engine_is_not_pickled(chat: ChatSGL) -> None:
    assert pickle.loads(pickle.dumps(ChatSGL(max_tokens=3))).max_tokens == 3
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(ChatSGL(engine=chat.engine))


def test_caching(chat: ChatSGL) -> None:
    cached = ChatSGL(cache=InMemoryCache())
    first = cached.invoke(UNSURE)
    second = cached.invoke(UNSURE)
    assert second.response_metadata["sgl"] == first.response_metadata["sgl"]  # the very run, times included
    small = first.response_metadata["sgl"]["small_answer"]
    assert small != first.content
    assert cached.invoke(UNSURE, escalate="never").content == small
    assert cached.bind(exit_threshold=0.1).invoke(UNSURE).content == small
    assert chat.invoke(UNSURE).response_metadata["sgl"] != first.response_metadata["sgl"]
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    for picture in (red, blue):
        cached.invoke([HumanMessage([{"type": "image", "image": picture}, "what"])], max_tokens=4)
    assert len(cached.cache._cache) == 5  # type: ignore[union-attr]


def test_the_cache_key_knows_the_models() -> None:
    def key(**settings: Any) -> str:
        return ChatSGL(**settings)._get_llm_string()

    keys = [
        key(),
        key(small="a", large="b"),
        key(small="a", large="c"),
        key(exit_threshold=0.5),
        key(retention="9%"),
        key(escalate="always"),
        key(temperature=0.5),
        key(engine=ChatSGL().engine.with_config(ChatSGL().engine.config.escalating("never"))),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(streaming=True) == key(timeout=5)


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.tokens: list[str] = []
        self.ended: list[LLMResult] = []

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data))

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.ended.append(response)


async def test_custom_events_tell_the_decision(chat: ChatSGL) -> None:
    async def events(question: list[BaseMessage]) -> list[list[tuple[str, Any]]]:
        listeners = [Listener() for _ in range(6)]
        configs: list[Any] = [{"callbacks": [listener]} for listener in listeners]
        chain = ChatPromptTemplate.from_messages([("placeholder", "{q}")]) | chat
        chat.invoke(question, configs[0])
        list(chat.stream(question, configs[1]))
        await chat.ainvoke(question, configs[2])
        assert [chunk async for chunk in chat.astream(question, configs[3])]
        assert list(chain.stream({"q": question}, configs[4]))
        chat.batch([question], configs[5])
        return [listener.events for listener in listeners]

    for found in await events(SURE):
        ((name, data),) = found
        assert name == "sgl_exit"
        assert data["score"] >= data["threshold"]
        assert data["forced"] is False
    for found in await events(UNSURE):
        ((name, data),) = found
        assert name == "sgl_escalated"
        assert json.dumps(data)


def test_custom_events_come_before_the_answer(chat: ChatSGL) -> None:
    order: list[str] = []

    class Order(BaseCallbackHandler):
        def on_custom_event(self, name: str, *_: Any, **__: Any) -> None:
            order.append(name)

        def on_llm_new_token(self, *_: Any, **__: Any) -> None:
            order.append("token")

        def on_llm_end(self, *_: Any, **__: Any) -> None:
            order.append("end")

    assert list(chat.stream(UNSURE, {"callbacks": [Order()]}))
    assert order[0] == "sgl_escalated"
    assert order.count("sgl_escalated") == 1
    assert order[-1] == "end"
    list(chat.stream(UNSURE))  # nobody listens: nothing is raised


async def test_astream_events_show_the_decision(chat: ChatSGL) -> None:
    names = [event["name"] async for event in chat.astream_events(UNSURE, version="v2")]
    assert names.count("sgl_escalated") == 1


async def test_rate_limiter(chat: ChatSGL) -> None:
    asked = []

    class Counting(InMemoryRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            asked.append("invoke")
            return super().acquire(blocking=blocking)

        async def aacquire(self, *, blocking: bool = True) -> bool:
            asked.append("ainvoke")
            return await super().aacquire(blocking=blocking)

    limited = ChatSGL(rate_limiter=Counting(requests_per_second=1000, max_bucket_size=1))
    limited.batch([SURE, SURE])
    assert list(limited.stream(SURE))
    await limited.ainvoke(SURE)
    assert asked == ["invoke"] * 3 + ["ainvoke"]


def test_token_counts(chat: ChatSGL) -> None:
    message = chat.invoke(UNSURE)
    assert message.usage_metadata is not None
    assert chat.get_num_tokens_from_messages(UNSURE) == message.usage_metadata["input_tokens"]
    picture = {"type": "image", "image": Image.open(PICTURES / "page.png")}
    pil = [HumanMessage([picture, OVERRULED.question])]
    assert chat.get_num_tokens_from_messages(pil) == chat.get_num_tokens_from_messages(UNSURE)
    assert chat.get_num_tokens("How many?") == len(chat.get_token_ids("How many?")) > 0

    def look(at: str) -> str:
        """Looks at something that has a long description."""
        return at

    assert chat.get_num_tokens_from_messages(UNSURE, tools=[look]) > chat.get_num_tokens_from_messages(UNSURE)


def test_what_cannot_be_answered_can_be_counted(chat: ChatSGL) -> None:
    call = {"name": "look", "args": {"at": "roof"}, "id": "c1", "type": "tool_call"}
    assert chat.get_num_tokens_from_messages([]) == 0
    assert chat.get_num_tokens_from_messages([AIMessage("", tool_calls=[call])]) > 10
    conversation = [
        SystemMessage("Be brief."),
        *SURE,
        AIMessage("3.73"),
        HumanMessage("How much is the tax?"),
    ]
    few, many = (
        trim_messages(
            conversation, token_counter=chat, max_tokens=limit, include_system=True, start_on="human"
        )
        for limit in (60, 400)
    )
    assert [message.type for message in few] == ["system", "human"]
    assert many == conversation
    assert trim_messages(conversation, token_counter=chat, max_tokens=1, allow_partial=True) == []


def test_ls_params_and_profile(chat: ChatSGL) -> None:
    params = ChatSGL(small="a", large="b", temperature=0.1, max_tokens=5, stop=["x"])._get_ls_params()
    assert params == {
        "ls_provider": "sgl",
        "ls_model_type": "chat",
        "ls_model_name": "a+b",
        "ls_temperature": 0.1,
        "ls_max_tokens": 5,
        "ls_stop": ["x"],
    }
    assert chat._get_ls_params(temperature=0.7)["ls_temperature"] == 0.7
    assert chat.profile is not None
    assert chat.profile["image_inputs"] is True
    assert chat.profile["max_input_tokens"] == 4096
    assert "max_input_tokens" not in (ChatSGL(small="o/a", large="o/b").profile or {})


def test_the_constructor_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_sgl.chat import pair as engines

    forget_engines()
    loads: list[Pair] = []
    monkeypatch.setattr(engines, "_load", loads.append)
    chat = ChatSGL(small="owner/there-is-no-such", large="owner/model")
    assert chat.bind(escalate="never")
    ChatSGL()
    assert not loads


def test_standard_arguments_that_have_no_meaning_here_are_accepted() -> None:
    chat = ChatSGL(api_key="secret", max_retries=2, streaming=True)
    assert "secret" not in repr(chat)
    assert "secret" not in str(chat._identifying_params)
    assert chat.invoke(SURE).content == "3.73"
    assert len(list(ChatSGL(streaming=False).stream(SURE))) == 1


def test_a_cancelled_request_is_not_a_model_error(chat: ChatSGL) -> None:
    cancel = threading.Event()
    cancel.set()
    options, events = chat._start(SURE, None, {}, run=None, cancel=cancel)
    assert options.evidence is False
    with pytest.raises(RequestCancelledError) as caught:
        list(events)
    assert not isinstance(caught.value, core.ModelError)


OPTIONS: dict[str, Any] = {
    "model": "sgl-demo-large",
    "escalate": "never",
    "exit_threshold": 0.3,
    "retention": "9%",
    "tiles": 3,
    "neutral": True,
    "scorer": "entropy",
    "temperature": 0.5,
    "max_tokens": 3,
    "max_completion_tokens": 4,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {3: 1.0},
    "seed": 7,
    "stop": ["."],
    "timeout": 2.5,
    "logprobs": True,
    "top_logprobs": 2,
    "max_reasoning_tokens": 9,
    "skip_special_tokens": False,
    "chat_template_kwargs": {"enable_thinking": False},
    "evidence": True,
    "cache_salt": "tenant",
    "unknown_options": "warn",
}


@pytest.mark.parametrize("name", CallFields.model_fields)  # an option that is new needs a line in OPTIONS
def test_every_option_is_set_on_the_model_or_by_the_call(name: str) -> None:
    value = OPTIONS[name]
    assert getattr(ChatSGL()._options(), name) != value
    assert getattr(ChatSGL(**{name: value})._options(), name) == value
    assert getattr(ChatSGL()._options(**{name: value}), name) == value
    other = [*OPTIONS["stop"], "!"] if name == "stop" else CallFields.model_fields[name].default
    if other is not None:  # None is "not set", and leaves the model's own
        assert getattr(ChatSGL(**{name: value})._options(**{name: other}), name) == other
