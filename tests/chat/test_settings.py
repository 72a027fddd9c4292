"""What ChatSGL can be told, per model and per call, and what becomes of what it is told wrongly."""

import inspect
import math
import re
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core import exceptions as core
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError
from transformers.utils import logging

from langchain_sgl import ChatSGL, image_block
from langchain_sgl.chat import pair as pairs
from langchain_sgl.chat.call_options import CallFields, CallOptions
from langchain_sgl.chat.pair import Pair
from langchain_sgl.chat.settings import ChatSettings
from sgl_engine import (
    VLM,
    ConfigError,
    InvalidRequestError,
    PictureConfig,
    Request,
    ReuseConfig,
    SchedulerConfig,
    SGLEngine,
)
from sgl_engine.demo import PICTURES, WEIGHTS, demo_engine
from sgl_engine.model import loading
from sgl_engine.testing import FakeEngine

SURE = [HumanMessage([image_block(PICTURES / "receipt.png"), "How much is the total?"])]
LOADED = ("device", "device_map", "model_kwargs", "dtype")
SMALL, LARGE = WEIGHTS / "small", WEIGHTS / "large"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What transformers is told when models are loaded."""
    found: list[dict[str, Any]] = []
    original: Any = loading.AutoModelForImageTextToText.from_pretrained

    def from_pretrained(name: str, **settings: Any) -> Any:
        found.append(settings)
        passed = {
            key: value for key, value in settings.items() if key not in {"quantization_config", "extra"}
        }
        return original(name, **passed)

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    return found


def test_settings_reach_transformers(told: list[dict[str, Any]]) -> None:
    engine = SGLEngine.from_pretrained(
        SMALL,
        LARGE,
        dtype="float32",
        attn_implementation="sdpa",
        quantization_config={"bits": 8},
        model_kwargs={"extra": 1},
        small_settings={"dtype": "bfloat16", "attn_implementation": "eager"},
        large_settings={"device": "cpu", "quantization_config": None},
    )
    small, large = told
    assert (small["dtype"], small["attn_implementation"]) == ("bfloat16", "eager")
    assert (large["dtype"], large["attn_implementation"]) == ("float32", "sdpa")
    assert (small["quantization_config"], small["extra"]) == ({"bits": 8}, 1)
    assert "quantization_config" not in large
    assert all(each["use_safetensors"] for each in told)
    assert (engine.small.model.dtype, engine.large.model.dtype) == (torch.bfloat16, torch.float32)


def test_a_place_of_its_own_counts_before_the_common_one() -> None:
    def settings(**given: Any) -> Any:
        return pairs.settings_of_each(given, {"device": "cpu"}, {"device_map": "auto"})

    for common in ({"device": "cuda"}, {"device_map": "balanced"}, {}):
        assert settings(**common) == ({"device": "cpu"}, {"device_map": "auto"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"small_settings": {"revison": "x"}}, "'revison'"),
        ({"large_settings": {"device": "cpu", "device_map": "auto"}}, "device_map='auto'"),
        ({"device": "cpu", "device_map": "auto"}, "device_map='auto'"),
        ({"model_kwargs": {"use_safetensors": False}}, "'use_safetensors'"),
        ({"model_kwargs": {"trust_remote_code": True}}, "'trust_remote_code'"),
        ({"dtype": "flaot16"}, "'flaot16'"),
        ({"small_settings": {"dtype": "int8"}}, "'int8'"),
        ({"retention": "50%"}, "'50%'"),
        ({"retention": "auto"}, "leaves the choice to a calibration, and none is given"),
        ({"scorer": "gut"}, "gut"),
        ({"calibration": "nowhere.json"}, "'nowhere.json'"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens=4"),
    ],
)
def test_wrong_settings_fail_when_they_are_written(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, InvalidRequestError), match=words) as caught:
        ChatSGL(**settings)
    assert isinstance(caught.value, core.ModelInvalidRequestError)
    if settings.keys() <= {
        "small_settings",
        "large_settings",
        "device",
        "device_map",
        "model_kwargs",
        "dtype",
    }:
        with pytest.raises(ConfigError, match=words):
            SGLEngine.from_pretrained(SMALL, LARGE, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"reuse": {"max_byts": 1}},
        {"scheduler": {"max_queue": 0}},
        {"small_pictures": {"max_pixels": 0}},
        {"top_k": 0},
        {"min_p": 2},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {1: 101}},
        {"top_logprobs": 21},
        {"unknown_options": "maybe"},
        {"reasoning_effort": "low"},
    ],
)
def test_values_out_of_range_fail_when_they_are_written(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatSGL(**settings)


def test_parts_of_the_engine_can_be_set() -> None:
    parts: dict[str, Any] = {
        "reuse": ReuseConfig(max_bytes=0),
        "scheduler": SchedulerConfig(max_queue=7),
        "small_pictures": PictureConfig(max_pixels=10_000),
        "large_pictures": PictureConfig(max_pixels=20_000),
    }
    config = ChatSGL(engine=FakeEngine(lambda _: "x"), **parts).engine.config
    assert {name: getattr(config, name) for name in parts} == parts
    written = ChatSGL(engine=FakeEngine(lambda _: "x"), scheduler={}, reuse={"max_bytes": 0}).engine.config  # type: ignore[arg-type]
    assert (written.scheduler, written.reuse) == (SchedulerConfig(), parts["reuse"])


def test_paths_and_torch_types_are_taken_and_weights_shared() -> None:
    chat = ChatSGL(small=SMALL, large=LARGE, dtype=torch.float32, device=torch.device("cpu"))
    same = ChatSGL(small=str(SMALL), large=str(LARGE), dtype="float32", device="cpu", reuse=ReuseConfig())
    assert chat.engine.small is same.engine.small
    assert chat.invoke(SURE).content == "3.73"
    assert chat._get_llm_string() == same._get_llm_string()
    assert chat.profile == same.profile


def test_pairs_are_told_apart() -> None:
    class Quantization:
        def __init__(self, bits: int) -> None:
            self.bits = bits

        def to_dict(self) -> dict[str, int]:
            return {"bits": self.bits}

    def key(**settings: Any) -> str:
        return Pair("a", "b", **settings).key

    keys = [
        key(),
        key(settings={"quantization_config": Quantization(4)}),
        key(settings={"quantization_config": Quantization(8)}),
        key(small_settings={"device": "cuda:1"}),
        key(large_settings={"device": "cuda:1"}),
        key(settings={"model_kwargs": {"max_memory": {0: "1GB"}}}),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[1] == key(settings={"quantization_config": Quantization(4), "device": None})
    assert key(settings={"trust_remote_code": False}) == key()


def test_the_bundled_pair_takes_settings_per_model(told: list[dict[str, Any]]) -> None:
    engine = demo_engine(large_settings={"dtype": "bfloat16"}, attn_implementation="eager")
    assert (engine.small.model.dtype, engine.large.model.dtype) == (torch.float32, torch.bfloat16)
    assert [each["attn_implementation"] for each in told] == ["eager", "eager"]


def asked(**options: Any) -> Request:
    """The request that a call with these options makes of the engine."""
    seen = []

    def say(request: Request) -> str:
        seen.append(request)
        return "x"

    chat = ChatSGL(engine=FakeEngine(say))
    chat.invoke("?", **options)
    chat.bind(**options).invoke("?")
    ChatSGL(engine=FakeEngine(say), **options).invoke("?")
    first, *others = [
        {name: value for name, value in vars(request).items() if name not in {"messages", "cancel"}}
        for request in seen
    ]
    assert others == [first, first]
    return seen[0]


def test_every_option_reaches_the_request_by_every_way() -> None:
    options: dict[str, Any] = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "top_logprobs": 3,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    request = asked(**options)
    assert {name: getattr(request, name) for name in options} == options
    assert request.logprobs
    assert asked(max_completion_tokens=7).max_new_tokens == 7
    assert asked(logit_bias={"3": 1.5}).logit_bias == {3: 1.5}  # keys are text where JSON was in between
    assert not asked().logprobs


def test_a_call_counts_before_the_instance_whatever_the_limit_is_called() -> None:
    for own in ("max_tokens", "max_completion_tokens"):
        for given in ("max_tokens", "max_completion_tokens"):
            chat = ChatSGL(**{own: 50})  # type: ignore[arg-type]
            assert chat._options(**{given: 3}).request(()).max_new_tokens == 3
            assert chat._get_ls_params(**{given: 3})["ls_max_tokens"] == 3
            assert chat._get_ls_params()["ls_max_tokens"] == 50
    with pytest.raises(InvalidRequestError, match="mean the same"):
        ChatSGL()._options(max_tokens=3, max_completion_tokens=4)


def test_options_change_answers_of_both_models() -> None:
    for route in ("never", "always"):
        chat = ChatSGL(escalate=route, max_tokens=20)
        plain = chat.invoke("transcribe none").content
        assert chat.invoke("transcribe none", repetition_penalty=5.0).content != plain
        banned = chat.engine.large.processor.tokenizer.encode(str(plain), add_special_tokens=False)
        assert chat.invoke("transcribe none", logit_bias=dict.fromkeys(banned, -100)).content != plain
        hot = chat.bind(temperature=9.0, seed=1)
        assert hot.invoke("transcribe none", top_k=1).content == plain
        assert hot.invoke("transcribe none", min_p=1.0).content == plain
        assert hot.invoke("transcribe none").content != plain


@pytest.mark.parametrize("route", ["never", "always"])
def test_the_likeliest_tokens(route: Any) -> None:
    message = ChatSGL(escalate=route).invoke(SURE, top_logprobs=4)
    tokens = message.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == message.content
    for token in tokens:
        top = token["top_logprobs"]
        values = [other["logprob"] for other in top]
        assert len(top) == 4
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-4
        # Greedy: what was chosen is the likeliest.
        assert (token["token"], token["logprob"]) == pytest.approx((top[0]["token"], values[0]))
    assert all("top_logprobs" not in token for token in logprobs_of(route))


def logprobs_of(route: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        ChatSGL(escalate=route).invoke(SURE, logprobs=True).response_metadata["logprobs"]["content"]
    )
    return found


def test_unknown_options_are_refused_warned_of_or_ignored() -> None:
    engine = FakeEngine(lambda _: "x")
    with pytest.raises(core.ModelInvalidRequestError, match="reasoning_effort.*unknown_options"):
        ChatSGL(engine=engine).invoke("?", reasoning_effort="low")
    with pytest.warns(UserWarning, match="'reasoning_effort', 'verbosity'"):
        chat = ChatSGL(engine=engine, unknown_options="warn", reasoning_effort="low", verbosity=1)  # type: ignore[call-arg]
    with pytest.warns(UserWarning, match="'reasoning_effort'"):
        assert chat.invoke("?", reasoning_effort="low").content == "x"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ChatSGL(engine=engine, unknown_options="ignore").invoke("?", verbosity=1).content == "x"
        assert ChatSGL(engine=engine).invoke("?", verbosity=1, unknown_options="ignore").content == "x"
    # What exists is checked all the same.
    with pytest.raises(InvalidRequestError, match="top_k=0"):
        chat.invoke("?", top_k=0)


def test_help_describes_every_field() -> None:
    text = inspect.getdoc(ChatSGL) or ""
    described = set(re.findall(r"^    (\w+): ", text, flags=re.MULTILINE))
    fields = CallFields.model_fields.keys() | ChatSettings.__annotations__.keys() - {"model_config"}
    assert fields <= described
    assert len(fields) > 40
    assert "Operating point of the pruning" in text
    assert CallOptions.model_fields.keys() - CallFields.model_fields.keys() <= {
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "stream"),
    }


def test_a_calibration_that_is_there_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    assert ChatSGL(calibration=file).calibration == file


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    written = StringIO()
    monkeypatch.setattr(written, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr(logging, "_tqdm_active", True)  # other tests run the command line, which is quiet
    VLM.from_pretrained(SMALL)
    assert ("Loading weights" in written.getvalue()) is terminal
    assert logging.is_progress_bar_enabled()  # as it was


def test_no_key_of_the_hub_is_told() -> None:
    """Traces and caches get what an answer depends on, and what ``repr`` shows may be logged."""
    own = {"revision": "v2", "model_kwargs": {"token": "hf_SECRET", "max_memory": {0: "1GB"}}}
    chat = ChatSGL(
        small="a",
        large="b",
        model_kwargs={"token": "hf_SECRET", "local_files_only": True},
        large_settings=own,
    )
    told = chat._identifying_params
    assert told["model_kwargs"] == {}
    assert told["large_settings"] == {"revision": "v2", "model_kwargs": {"max_memory": {0: "1GB"}}}
    assert "SECRET" not in f"{told}{chat!r}{chat}{chat._get_llm_string()}"
    assert own["model_kwargs"] == {"token": "hf_SECRET", "max_memory": {0: "1GB"}}  # it is loaded with it


def test_of_threshold_and_calibration_the_one_that_is_given_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one that only the environment names; a model can be made anew from it."""
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    monkeypatch.setenv("SGL_EXIT_THRESHOLD", "0.5")
    calibrated = ChatSGL(calibration=file)
    assert calibrated.exit_threshold is None
    anew = calibrated.configurable_fields(temperature=ConfigurableField(id="temperature"))
    made, _ = anew.prepare({"configurable": {"temperature": 0.5}})
    assert (made.calibration, made.temperature) == (file, 0.5)  # type: ignore[attr-defined]
    monkeypatch.setenv("SGL_CALIBRATION", str(file))
    assert ChatSGL(exit_threshold=0.3).calibration is None
    assert ChatSGL().calibration == file


def test_a_calibration_that_was_made_anew_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    before = ChatSGL(calibration=file)._get_llm_string()
    assert ChatSGL(calibration=file)._get_llm_string() == before
    file.write_text('{"made": "anew"}')
    assert ChatSGL(calibration=file)._get_llm_string() != before
