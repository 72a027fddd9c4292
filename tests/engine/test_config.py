import pytest
from pydantic import ValidationError

from sgl_engine import EngineConfig, ExitConfig, GenerationConfig, LimitsConfig, PruningConfig
from sgl_engine.config import PRESETS, UrlPolicy, pruning_preset
from sgl_engine.errors import ConfigError


def test_the_default_is_the_35_percent_point() -> None:
    assert EngineConfig().pruning == PRESETS["35%"]
    assert EngineConfig().exit.threshold == 0.8


@pytest.mark.parametrize(("preset", "layer"), [("64%", 19), ("35%", 9), ("9%", 2)])
def test_presets_are_the_papers(preset: str, layer: int) -> None:
    assert EngineConfig.preset(preset).pruning.layer(48) == layer


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ConfigError, match="'50%'.*64%, 35%, 9%"):
        pruning_preset("50%")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PruningConfig, {"keep_ratio": 0.0}),
        (PruningConfig, {"keep_ratio": 1.1}),
        (PruningConfig, {"layer_fraction": -0.1}),
        (PruningConfig, {"layer_fraction": 1.0}),
        (PruningConfig, {"prune_ratio": 0.5}),
        (ExitConfig, {"threshold": 2.0}),
        (ExitConfig, {"escalate": "sometimes"}),
        (GenerationConfig, {"temperature": float("inf")}),
        (UrlPolicy, {"timeout_s": float("inf")}),
        (LimitsConfig, {"max_images": -1}),
        (EngineConfig, {"exits": {}}),
    ],
)
def test_bad_values_and_unknown_names_are_refused(
    kind: type[EngineConfig], values: dict[str, object]
) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


def test_configurations_are_frozen_and_derived() -> None:
    config = EngineConfig.preset("9%")
    with pytest.raises(ValidationError):
        config.pruning = PRESETS["35%"]  # type: ignore[misc]
    forced = config.escalating("always")
    assert (forced.exit.escalate, forced.pruning) == ("always", config.pruning)
    assert config.exit.escalate == "auto"


def test_a_derived_configuration_is_validated() -> None:
    config = EngineConfig(exit=ExitConfig(threshold=0.3))
    with pytest.raises(ValidationError, match="nevr"):
        config.escalating("nevr")  # type: ignore[arg-type]
    assert config.escalating("never").exit == ExitConfig(threshold=0.3, escalate="never")
