"""``sgl playground``: a page in the browser on which moving a slider shows what the method does."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from sgl_engine import ConfigError
from sgl_engine.cli import options
from sgl_engine.cli.serve import add_listening, api_key

if TYPE_CHECKING:
    from sgl_engine import SGLEngine

HELP = "see and try the method in the browser"
DESCRIPTION = (
    "Serves a page at http://HOST:PORT: ask about a picture, move sliders, and see where the small model "
    "looks, what the large one is given, both answers, and what they cost against the large model alone. The "
    "page loads nothing from elsewhere, and no picture is kept."
)
EXAMPLES = """examples:
  sgl playground
  sgl playground --small FOLDER --large FOLDER --device cuda"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    page = parser.add_argument_group("page")
    add_listening(page, port=7860, asked="a visitor has to type")
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve the page.

    Raises:
        ConfigError: The extra is missing, others could reach a page without a key, or something is set that
            the page's sliders set.
    """
    config = options.engine_config(arguments)
    pruning, leaving = config.pruning, config.exit
    if leaving.calibration is not None or pruning.auto or pruning.neutral or leaving.escalate != "auto":
        raise ConfigError(
            "The playground's sliders set the threshold and the retention, and its maps are the plain ones: "
            "it takes no --calibration, --retention auto, --neutral or --escalate.",
            remedy="Leave them out; sgl ask and sgl serve take them.",
        )
    try:
        from sgl_engine.playground import create_playground
        from sgl_engine.server import ServerSettings, serve
    except ImportError as error:
        raise ConfigError(
            f"The playground needs {error.name}, which is not installed.",
            remedy='pip install "langchain-sgl[playground]"',
        ) from error
    settings = ServerSettings(api_key=api_key(arguments))
    settings.check_host(arguments.host)  # before models are loaded
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def load() -> SGLEngine:
        return options.load_engine(arguments, config)

    print(f"Open http://{arguments.host}:{arguments.port} (Ctrl-C ends it)", flush=True)
    serve(load, settings, host=arguments.host, port=arguments.port, make_app=create_playground)
