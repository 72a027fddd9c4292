"""What a cluster is told, by Python, by YAML and by the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Sgl

pytest.importorskip("ray", reason="needs the extra cluster")

from ray.serve.schema import ServeDeploySchema  # after the check that it is installed

from sgl_engine import ConfigError
from sgl_engine.cluster import ClusterSettings, Replicas, build_app
from sgl_engine.cluster.scaling import scale

DEPLOY = Path(__file__).parents[2] / "deploy"


def applications() -> list[Any]:
    plain = yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())
    kuberay = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    return [plain, yaml.safe_load(kuberay["spec"]["serveConfigV2"])]


@pytest.mark.parametrize("config", applications(), ids=["ray-serve.yaml", "kuberay.yaml"])
def test_files_of_deploy_can_be_deployed(config: dict[str, Any]) -> None:
    [application] = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "sgl_engine.cluster:build_app"
    build_app(application.args)
    with pytest.raises(ConfigError, match=r"at larg: Extra inputs are not permitted"):  # the control
        build_app({**application.args, "larg": {}})


def test_one_that_may_end_is_scaled_by_those_who_wait() -> None:
    found = scale(Replicas(least=0, most=3, slots=16, waiting=5))["autoscaling_config"]
    assert (found["min_replicas"], found["max_replicas"]) == (0, 3)
    assert found["policy"]["policy_kwargs"] == {"slots": 16, "waiting": 5}
    assert scale(Replicas(least=2, most=2)) == {"num_replicas": 2}
    with pytest.raises(ValueError, match="least=2 is above most=1"):
        Replicas(least=2, most=1)


def test_a_key_is_not_printed() -> None:
    assert "secret" not in repr(ClusterSettings(api_key="secret"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ray", "--hosted", "http://127.0.0.1:1", "x"), "a pair, whose models both run on the cluster"),
        (("--ray", "--small", "x"), "a pair, whose models both run on the cluster"),
        (("--ray", "--large-replicas", "3-1"), "'3-1' is no number from 1 on, and no LEAST-MOST"),
        (("--ray", "--host", "0.0.0.0"), "without a key"),
    ],
)
def test_the_command_says_what_is_wrong(sgl: Sgl, arguments: tuple[str, ...], words: str) -> None:
    code, _, said = sgl("serve", *arguments)
    assert code == 2
    assert words in said.replace("\n", " ")
