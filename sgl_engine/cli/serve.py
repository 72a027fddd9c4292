"""``sgl serve``: the pair behind an HTTP server that OpenAI's clients know."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from pydantic import SecretStr

from sgl_engine import ConfigError
from sgl_engine.cli import options

if TYPE_CHECKING:
    from sgl_engine import EngineConfig, SGLEngine

HELP = "serve a pair over HTTP, as OpenAI's clients expect it"
DESCRIPTION = "Serves the pair at http://HOST:PORT/v1, until Ctrl-C: answers under way end first."
EXAMPLES = """examples:
  sgl serve
  sgl serve --small FOLDER --large FOLDER --host 0.0.0.0 --api-key SECRET
  sgl serve --ray --small-replicas 2 --large-replicas 0-4
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Hello"}]}'"""
KEY = "SGL_API_KEY"
HOSTED_KEY = "SGL_HOSTED_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    server = parser.add_argument_group("server")
    add_listening(server, port=8000, asked="clients have to send")
    server.add_argument(
        "--model-name",
        metavar="NAME",
        default="sgl",
        help="the pair's name for clients (default: %(default)s)",
    )
    server.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="seconds for an answer, waiting included (default: none)",
    )
    server.add_argument(
        "--max-body-mib", metavar="N", type=options.count, default=64, help="(default: %(default)s)"
    )
    server.add_argument(
        "--hosted",
        nargs=2,
        metavar=("URL", "MODEL"),
        help="a large model behind an OpenAI-compatible server, instead of --large; its key is "
        f"{HOSTED_KEY} of the environment",
    )
    server.add_argument(
        "--vllm-metric-names", action="store_true", help="/metrics also under the names that vLLM gives them"
    )
    _add_cluster(parser)
    options.add_engine(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("many machines (needs the extra cluster)")
    cluster.add_argument(
        "--ray",
        action="store_true",
        help="each model in processes of its own, which Ray Serve starts and ends",
    )
    cluster.add_argument(
        "--address", metavar="ADDRESS", help="of a Ray cluster, or auto (default: one on this machine)"
    )
    cluster.add_argument(
        "--small-replicas",
        metavar="N",
        type=_span,
        default="1",
        help="N, or LEAST-MOST (default: %(default)s)",
    )
    cluster.add_argument(
        "--large-replicas",
        metavar="N",
        type=_span,
        default="0-1",
        help="the same; with 0 there is none while nothing is escalated (default: %(default)s)",
    )


def add_listening(group: argparse._ArgumentGroup, *, port: int, asked: str) -> None:
    """Where it listens, and who may come in."""
    group.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    group.add_argument("--port", metavar="PORT", type=_port, default=port, help="(default: %(default)s)")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"what {asked} (default: {KEY} of the environment; without one, only this machine is "
        "listened to)",
    )


def api_key(arguments: argparse.Namespace) -> SecretStr | None:
    """The key that was given, or that the environment holds."""
    key = arguments.api_key or os.environ.get(KEY)
    return SecretStr(key) if key else None


def run(arguments: argparse.Namespace) -> None:
    """Serve.

    Raises:
        ConfigError: The extra is missing, or others could reach a server without a key.
    """
    config = options.engine_config(arguments)
    if arguments.hosted and arguments.large:
        raise ConfigError("--hosted and --large are given.", remedy="Name one large model.")
    if arguments.ray:
        _run_on_ray(arguments, config)
        return
    try:
        from sgl_engine.server import ServerSettings, serve
    except ImportError as error:
        raise ConfigError(
            f"The server needs {error.name}, which is not installed.",
            remedy='pip install "langchain-sgl[server]"',
        ) from error
    settings = ServerSettings(
        model=arguments.model_name,
        api_key=api_key(arguments),
        max_body_bytes=arguments.max_body_mib * 2**20,
        timeout_s=arguments.timeout,
        vllm_metric_names=arguments.vllm_metric_names,
    )
    settings.check_host(arguments.host)  # before models are loaded
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def load() -> SGLEngine:
        return _with_hosted(arguments, config) if arguments.hosted else options.load_engine(arguments, config)

    print(f"http://{arguments.host}:{arguments.port}/v1 (models: {', '.join(settings.models)})", flush=True)
    serve(load, settings, host=arguments.host, port=arguments.port)


def _run_on_ray(arguments: argparse.Namespace, config: EngineConfig) -> None:
    """Serves from a cluster.

    Raises:
        ConfigError: The extra is missing, or what was asked for is for one process alone.
    """
    if arguments.hosted or (arguments.small is None) != (arguments.large is None):
        raise ConfigError(
            "--ray takes a pair, whose models both run on the cluster.",
            remedy="Name --small and --large, or neither for the bundled pair, and no --hosted.",
        )
    try:
        from sgl_engine.cluster import ClusterSettings, Replicas, serve_cluster
    except ImportError as error:
        raise ConfigError(
            f"A cluster needs {error.name}, which is not installed.",
            remedy='pip install "langchain-sgl[cluster]"',
        ) from error
    gpus = 1.0 if str(arguments.device).startswith("cuda") else 0.0
    small, large = options.model_sources(arguments)
    small_replicas, large_replicas = (
        Replicas(least=least, most=most, gpus=gpus)
        for least, most in (arguments.small_replicas, arguments.large_replicas)
    )
    settings = ClusterSettings(
        small=small,
        large=large,
        engine=config,
        model=arguments.model_name,
        api_key=api_key(arguments),
        timeout_s=arguments.timeout,
        max_body_bytes=arguments.max_body_mib * 2**20,
        vllm_metric_names=arguments.vllm_metric_names,
        small_replicas=small_replicas,
        large_replicas=large_replicas,
    )
    print(f"http://{arguments.host}:{arguments.port}/v1 (on Ray)", flush=True)
    serve_cluster(settings, host=arguments.host, port=arguments.port, address=arguments.address)


def _with_hosted(arguments: argparse.Namespace, config: EngineConfig) -> SGLEngine:
    """The small model that was named, or the bundled one, and a large one on another machine."""
    options.load_quietly()
    from sgl_engine import VLM, OpenAIModel, SGLEngine
    from sgl_engine.demo import demo_model, with_scorer

    settings = {"device": arguments.device, "dtype": arguments.dtype}
    if arguments.small is None:
        small = demo_model("small", **settings)
        config = with_scorer(config)
    else:
        small = VLM.from_pretrained(arguments.small, **settings)
    url, model = arguments.hosted
    key = os.environ.get(HOSTED_KEY, "").strip()  # secrets that are mounted as files end in a line feed
    return SGLEngine(small, OpenAIModel(url, model, api_key=key), config)


def _port(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port, a whole number from 1 to 65535")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds above 0")
    return seconds


def _span(value: str) -> tuple[int, int]:
    """Reads "2" or "0-4"."""
    least, dash, most = value.partition("-")
    try:
        found = int(least), int(most if dash else least)
    except ValueError:
        found = 1, 0
    if not (0 <= found[0] <= found[1] and found[1] > 0):
        raise argparse.ArgumentTypeError(f"{value!r} is no number from 1 on, and no LEAST-MOST")
    return found
