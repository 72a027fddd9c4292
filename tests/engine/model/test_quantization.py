"""Weights of eight bits: how they are asked for, what they take, and that the engine answers with them."""

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, utils

from sgl_engine import SGLEngine
from sgl_engine.config import EngineConfig, ExitConfig
from sgl_engine.demo import WEIGHTS
from sgl_engine.errors import ConfigError
from sgl_engine.model.loading import load_config
from sgl_engine.model.quantization import int8_bytes, weight_bytes
from sgl_engine.model.settings import check_settings, of_the_weights, settings_of_each
from sgl_engine.request import Request

needs_torchao = pytest.mark.skipif(
    not utils.is_torchao_available(), reason='needs torchao (extra "quantized")'
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "int4"}, "'int4', which is not done here. Use int8"),
        ({"quantization": "int8", "quantization_config": {"bits": 8}}, "Both quantization='int8' and"),
    ],
)
def test_what_cannot_be_asked_for(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(settings, "The call")


def test_a_models_own_format_takes_the_place_of_the_common_one() -> None:
    common = {"quantization_config": {"bits": 8}}
    small, large = settings_of_each(common, {"quantization": "int8"}, None)
    assert (small, large) == ({"quantization": "int8"}, common)


def test_without_torchao_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.import_utils, "is_torchao_available", lambda: False)
    with pytest.raises(ConfigError, match=r'pip install "langchain-sgl\[quantized\]"'):
        of_the_weights({"quantization": "int8"})
    assert "quantization_config" not in of_the_weights({})  # the control: nobody asked for it


def skeleton(dtype: torch.dtype) -> Any:
    config = load_config(str(WEIGHTS / "small"), {})
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype)


def test_half_the_memory_of_half_precision() -> None:
    model = skeleton(torch.bfloat16)
    assert weight_bytes(model) == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert 0.5 < int8_bytes(model, torch.bfloat16) / weight_bytes(model) < 0.6


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_engine_in_eight_bits_takes_what_was_said_and_answers(dtype: torch.dtype) -> None:
    engine = SGLEngine.from_pretrained(
        WEIGHTS / "small",
        WEIGHTS / "large",
        EngineConfig(exit=ExitConfig(escalate="always")),
        dtype=dtype,
        small_settings={"quantization": "int8"},
    )
    assert weight_bytes(engine.small.model) == int8_bytes(skeleton(dtype), dtype)
    assert weight_bytes(engine.small.model) < 0.6 * weight_bytes(skeleton(dtype))  # the control
    assert engine.large.model.dtype == dtype
    report = engine.run(Request.ask("What?", Image.new("RGB", (96, 64)), max_new_tokens=3)).report
    assert report.escalated
    assert report.small_tflops > 0
