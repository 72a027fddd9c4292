import pytest
import torch

from sgl_engine import Request
from sgl_engine.errors import ConfigError
from sgl_engine.testing import tiny_vlm


def test_tiny_models_are_small_seeded_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    models = [tiny_vlm(seed=seed) for seed in (0, 0, 1)]
    assert sum(weight.numel() for weight in models[0].model.parameters()) < 200_000
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (vlm.model.lm_head.weight for vlm in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_tiny_models_read_any_text() -> None:
    vlm = tiny_vlm()
    ids = vlm.encode(Request.ask("Grüße, 世界!")).input_ids[0].tolist()
    assert "Grüße, 世界!" in vlm.text(ids)


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gpt2'.*internvl"):
        tiny_vlm("gpt2")
