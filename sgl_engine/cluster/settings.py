"""What a cluster can be told: which models, on how many machines, and how long anybody waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator

from sgl_engine import EngineConfig
from sgl_engine.errors import ConfigError


class ModelSource(BaseModel, frozen=True, extra="forbid"):
    """Where a model's files are; every machine that runs it, and every gateway, reads them.

    Attributes:
        path: Folder or hub id; None is the bundled model.
        name: What reports call it; None is ``path``.
        settings: ``sgl_engine.model.LoadSettings``: dtype, device, ...
    """

    path: str | None = None
    name: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Replicas(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How many processes hold a model, and what each of them takes.

    Attributes:
        least: So many are always there; 0 has none while nobody asks.
        most: So many at most.
        cpus: Of each, as Ray counts them.
        gpus: The same.
        slots: Requests that one of them has at once; as many prompts run side by side at most.
        queue: Requests that wait for a place at most, of each gateway; more are refused. -1 is no limit.
        waiting: So many requests that wait are worth one more replica. Those that are answered are not.
        up_s: Seconds that they have to wait before one is started.
        idle_s: Seconds without anything to do after which one ends.
    """

    least: Annotated[int, Field(ge=0)] = 1
    most: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(ge=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    slots: Annotated[int, Field(ge=1)] = 32
    queue: Annotated[int, Field(ge=-1)] = 1000
    waiting: Annotated[int, Field(ge=1)] = 4
    up_s: Annotated[float, Field(ge=0.0)] = 2.0
    idle_s: Annotated[float, Field(ge=0.0)] = 300.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least={self.least} is above most={self.most}")
        return self


class ClusterSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A pair on a cluster.

    Attributes:
        small: The small model.
        large: The large model.
        engine: The engine's settings, those of one process. Calibrations are not taken.
        small_replicas: Of the small model.
        large_replicas: Of the large model; the default has none while nothing is escalated.
        gateways: Processes that take requests in; they hold both processors, and no weights.
        gateway_cpus: Of each, as Ray counts them.
        start_s: Seconds until a replica has to have begun with a request: waiting for a place, and for a
            replica that is started, included. Then the request has failed.
        tries: How often a request is begun at most, where replicas end under way.
        model: The pair's name for clients.
        api_key: What clients have to send; None is ``SGL_API_KEY`` of the gateway's environment, if there
            is one.
        timeout_s: Seconds for an answer, where the request says nothing; None is no limit.
        max_body_bytes: Longest body of a request.
        vllm_metric_names: Whether ``/metrics`` also has what dashboards for vLLM read.
    """

    small: ModelSource = ModelSource()
    large: ModelSource = ModelSource()
    engine: EngineConfig = EngineConfig()
    small_replicas: Replicas = Replicas()
    large_replicas: Replicas = Replicas(least=0)
    gateways: Annotated[int, Field(ge=1)] = 1
    gateway_cpus: Annotated[float, Field(ge=0.0)] = 0.0
    start_s: Annotated[float, Field(gt=0.0)] = 300.0
    tries: Annotated[int, Field(ge=1)] = 3
    model: str = "sgl"
    api_key: SecretStr | None = None
    timeout_s: Annotated[float, Field(gt=0.0)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 * 2**20
    vllm_metric_names: bool = False


def check_engine(config: EngineConfig) -> None:
    """Refuses what takes the weights of both models in one process.

    Raises:
        ConfigError: A calibration is named.
    """
    if config.exit.calibration is not None or config.pruning.auto:
        raise ConfigError(
            f"The calibration {config.exit.calibration} is tied to the weights of both models, which no "
            "machine of a cluster holds.",
            remedy="Set ExitConfig(threshold=...) to the threshold that it names.",
        )


def read_settings(given: ClusterSettings | Mapping[str, Any]) -> ClusterSettings:
    """Settings of plain data.

    Raises:
        ConfigError: They are none.
    """
    if isinstance(given, ClusterSettings):
        return given
    try:
        return ClusterSettings.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"The cluster's settings cannot be used at {place or 'their top'}: {first['msg']}.",
            remedy="docs/cluster.md lists them.",
        ) from error
