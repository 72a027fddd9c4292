"""The two stages give the rows that one engine gives, and Ray Data takes rows through both in order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sgl_engine import ConfigError, EngineConfig, ExitConfig, GenerationConfig, PruningConfig, SGLEngine
from sgl_engine.batch.inputs import open_rows
from sgl_engine.batch.local import answer_rows
from sgl_engine.batch.plain import PlainForm
from sgl_engine.batch.ray_data import Actors, LargeStage, SmallStage, answer_on_ray
from sgl_engine.cluster import ClusterSettings, ModelSource
from sgl_engine.config import NO_REUSE
from sgl_engine.testing import tiny_vlm

FORM = PlainForm("run")
COUNT = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pair")
    for size in ("small", "large"):
        vlm = tiny_vlm(size=size)
        vlm.model.save_pretrained(folder / size)
        vlm.processor.save_pretrained(folder / size)
    return {size: folder / size for size in ("small", "large")}


def pair(models: dict[str, Path], config: EngineConfig) -> ClusterSettings:
    small, large = (ModelSource(path=str(models[size])) for size in ("small", "large"))
    return ClusterSettings(small=small, large=large, engine=config)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rows with pictures of their own; the third has none."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for n in range(COUNT):
        if n != 2:
            pixels = np.random.default_rng(n).integers(0, 255, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
        lines.append(json.dumps({"id": n, "question": f"What is {n}?", "image": f"{n}.png"}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return open_rows(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def expected(models: dict[str, Path], rows: Any) -> tuple[EngineConfig, list[dict[str, Any]]]:
    """What one engine answers, at a threshold that half of the rows reach."""
    config = EngineConfig(generation=GenerationConfig(max_new_tokens=3), reuse=NO_REUSE)
    with SGLEngine.from_pretrained(models["small"], models["large"], config) as engine:
        first = [json.loads(written.line) for written in answer_rows(engine, rows, FORM)]
        scores = sorted(row["score"] for row in first if row["score"] is not None)
        config = config.model_copy(update={"exit": ExitConfig(threshold=(scores[2] + scores[3]) / 2)})
        told = [json.loads(each.line) for each in answer_rows(engine.with_config(config), rows, FORM)]
    assert {row["route"] for row in told} == {"small", "large", None}
    return config, told


def check(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal, but for the rounding of a score, which depends on who else was in the batch."""
    for row, other in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
        assert row | {"score": 0, "cost": 0} == other | {"score": 0, "cost": 0}
        assert row["cost"] == pytest.approx(other["cost"])


def test_two_stages_are_one_engine(models: dict[str, Path], rows: Any, expected: Any) -> None:
    config, told = expected
    small, large = SmallStage(pair(models, config), rows, FORM), LargeStage(pair(models, config), FORM)
    halfway = small({"data": np.arange(1, COUNT)})
    passed_on = [bool(each) for each in halfway["carried"]]
    assert passed_on == [row["route"] == "large" for row in told[1:]]
    assert [not line for line in halfway["line"]] == passed_on
    whole = large(halfway)
    assert not any(whole["carried"])
    check([json.loads(line) for line in whole["line"]], told[1:])
    assert [json.loads(each)["route"] for each in whole["report"] if each] == [
        row["route"] for row in told[1:] if row["route"]
    ]


def test_a_neutral_question_needs_the_small_model_in_both_stages(
    models: dict[str, Path], rows: Any, expected: Any
) -> None:
    config, _ = expected
    wanted = config.escalating("always").model_copy(update={"pruning": PruningConfig(neutral=True)})
    halfway = SmallStage(pair(models, wanted), rows, FORM)({"data": np.arange(1)})
    answered = LargeStage(pair(models, wanted), FORM)(halfway)
    assert json.loads(answered["report"][0])["neutral"]
    refused = LargeStage(pair(models, config), FORM)(halfway)
    assert "--neutral" in json.loads(refused["line"][0])["error"]["message"]


def test_a_calibration_is_refused_before_anything_is_started(models: dict[str, Path], rows: Any) -> None:
    config = EngineConfig(exit=ExitConfig(calibration=Path("calibration.json"), risk=0.05))
    with pytest.raises(ConfigError, match="tied to the weights of both"):
        next(answer_on_ray(pair(models, config), rows, FORM, 0, Actors()))


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore")  # of Ray's own code
def test_ray_takes_rows_through_both_in_order(
    ray_here: None, models: dict[str, Path], rows: Any, expected: Any
) -> None:
    config, told = expected
    config = config.with_batch_size(2)
    written = list(answer_on_ray(pair(models, config), rows, FORM, 1, Actors(small=2, large=1)))
    check([json.loads(each.line) for each in written], told[1:])
    assert [(each.failed, each.escalated) for each in written] == [
        (row["error"] is not None, row["route"] == "large") for row in told[1:]
    ]
