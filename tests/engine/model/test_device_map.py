"""A model that accelerate spreads: some of its weights, or all, lie on a disk until they are used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.utils import is_accelerate_available

from sgl_engine import SGLEngine
from sgl_engine.config import EngineConfig, ExitConfig, GenerationConfig
from sgl_engine.demo import WEIGHTS
from sgl_engine.request import Request

pytestmark = [
    pytest.mark.skipif(not is_accelerate_available(), reason="needs accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # accelerate's own, of what it keeps in shared memory
]
SMALL = WEIGHTS / "small"
PARTS = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")


def answer(**large: Any) -> tuple[SGLEngine, str, float]:
    config = EngineConfig(
        exit=ExitConfig(escalate="always"), generation=GenerationConfig(max_new_tokens=6)
    ).without_reuse()
    engine = SGLEngine.from_pretrained(SMALL, SMALL, config, dtype="float32", large_settings=large)
    response = engine.run(Request.ask("What is the total?", Image.linear_gradient("L").convert("RGB")))
    return engine, response.text, response.report.large_tflops


@pytest.mark.parametrize(
    "on_disk",
    [("model.vision_tower",), ("model.language_model.layers.1",), PARTS],
    ids=lambda names: names[0],
)
def test_answers_do_not_depend_on_where_weights_lie(on_disk: tuple[str, ...], tmp_path: Path) -> None:
    layers = [f"model.language_model.layers.{layer}" for layer in range(3)]
    rest = [f"model.language_model.{part}" for part in ("embed_tokens", "norm", "rotary_emb")]
    names = PARTS if on_disk == PARTS else (*PARTS[:2], *rest, *layers, "lm_head")
    device_map = {name: "disk" if name in on_disk else "cpu" for name in names}
    _, expected, flops = answer()
    engine, found, as_many = answer(device_map=device_map, model_kwargs={"offload_folder": str(tmp_path)})
    assert any(part.is_meta for part in engine.large.model.parameters())  # the control: not all is here
    assert engine.large.device == torch.device("cpu")
    assert (found, as_many) == (expected, flops)
