"""What a server can be told."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from sgl_engine.decisions import DecisionConfig
from sgl_engine.errors import ConfigError

OPEN = frozenset({"/health", "/ready", "/metrics"})
"""Paths that ask for no key: what a cluster and a monitor look at."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ENDINGS = ("small", "large")
"""What follows the pair's name and a colon in the names of its models."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        model: The pair's name in ``/v1/models``; ``model:small`` and ``model:large`` are its models.
        api_key: What clients have to send as ``Authorization: Bearer ...``; None asks for none. Spaces and
            line feeds around it, as secrets that are mounted as files have, are no part of it.
        max_body_bytes: Longest body of a request, which is looked at before anything is parsed.
        body_timeout_s: Seconds in which a body has to come.
        timeout_s: Seconds for an answer, waiting included, where the request says nothing; None is no limit.
        max_documents: Documents of one list that is ranked or scored.
        decisions: How questions of ``/v1/decisions`` are put; None is the form that the pair knows.
        drain_s: Seconds in which what is under way may end, once the server is asked to stop.
        vllm_metric_names: Whether ``/metrics`` also has what dashboards for vLLM read, and answers the
            ``metrics`` that its clients read.
        open_paths: Paths that ask for no key and get no line in the log.

    Raises:
        ConfigError: There is a key, and nothing in it.
    """

    model: str = "sgl"
    api_key: SecretStr | None = None
    max_body_bytes: int = 64 * 2**20
    body_timeout_s: float = 60.0
    timeout_s: float | None = None
    max_documents: int = 1000
    decisions: DecisionConfig | None = None
    drain_s: float = 60.0
    vllm_metric_names: bool = False
    open_paths: frozenset[str] = OPEN

    def __post_init__(self) -> None:
        if self.api_key is None:
            return
        key = self.api_key.get_secret_value().strip()
        if not key:  # None would let everybody in, which whoever sets a key does not want
            raise ConfigError(
                "The server's key is empty.", remedy="Set --api-key or SGL_API_KEY to what clients send."
            )
        object.__setattr__(self, "api_key", SecretStr(key))

    @property
    def models(self) -> tuple[str, ...]:
        """Every name that a request may give."""
        return (self.model, *(f"{self.model}:{ending}" for ending in ENDINGS))

    def check_host(self, host: str) -> None:
        """Raises ConfigError where others could reach a server that asks for no key."""
        if self.api_key is None and host not in LOOPBACK:
            raise ConfigError(
                f"The server would listen on {host} without a key, for everybody who can reach it.",
                remedy=f"Set --api-key or SGL_API_KEY, or listen on {LOOPBACK[0]}.",
            )
