"""The gateway: the server's app on an engine without weights."""

from __future__ import annotations

import os
from typing import Any

import ray
from pydantic import SecretStr
from ray import serve
from ray.serve.handle import DeploymentHandle

from sgl_engine import SGLEngine
from sgl_engine.cluster.engine import ClusterEngine, Links
from sgl_engine.cluster.link import Link
from sgl_engine.cluster.models import Size, engine_config, sketch
from sgl_engine.cluster.settings import ClusterSettings
from sgl_engine.server import ServerSettings, create_app

KEY = "SGL_API_KEY"


@serve.ingress()
class Gateway:
    """The server's app on an engine without weights.

    Args:
        settings: The cluster's.
        small: Handle of the small model's deployment.
        large: Handle of the large model's.
    """

    def __init__(
        self, settings: ClusterSettings, small: DeploymentHandle[Any], large: DeploymentHandle[Any]
    ) -> None:
        self._settings = settings
        self._engine = engine_on(settings, small, large)

    def __serve_build_asgi_app__(self) -> Any:
        settings = self._settings
        return create_app(
            self._engine,
            ServerSettings(
                model=settings.model,
                api_key=api_key(settings),
                max_body_bytes=settings.max_body_bytes,
                timeout_s=settings.timeout_s,
                vllm_metric_names=settings.vllm_metric_names,
            ),
        )


def api_key(settings: ClusterSettings) -> SecretStr | None:
    """What clients have to send."""
    key = os.environ.get(KEY)
    return settings.api_key or (SecretStr(key) if key else None)


def connect(settings: ClusterSettings, name: str = "sgl") -> SGLEngine:
    """An engine on an application that runs already, for a program that has joined its cluster.

    Args:
        settings: Those that it was started with.
        name: The application's.

    Raises:
        ModelError: A model's configuration or processor cannot be used here.
    """
    return engine_on(settings, *(serve.get_deployment_handle(side, name) for side in ("small", "large")))


def engine_on(
    settings: ClusterSettings, small: DeploymentHandle[Any], large: DeploymentHandle[Any]
) -> ClusterEngine:
    """An engine that calls these deployments."""

    def link(side: Size, handle: DeploymentHandle[Any]) -> Link:
        def remote(method: str, *given: Any) -> Any:
            return handle.options(method_name=method, stream=True).remote(*given)

        return Link(side, remote, start_s=settings.start_s, tries=settings.tries)

    models = sketch(settings.small, "small"), sketch(settings.large, "large")
    links = Links(link("small", small), link("large", large), ray.put)
    return ClusterEngine(*models, engine_config(settings), links)
