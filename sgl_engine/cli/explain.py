"""``sgl explain``: the picture, with where the small model looked and what the large one gets to see."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from sgl_engine import ConfigError, Request
from sgl_engine.cli import options, output

HELP = "draw where the models look"
DESCRIPTION = (
    "Writes the picture with the small model's attention over it, and with outlines around the visual tokens "
    "that the large model is given when the small answer does not hold up. Prints the answer."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    options.add_request(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT.png", type=options.path, required=True, help="the picture to write"
    )
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer, draw, write.

    Raises:
        ConfigError: The drawing cannot be written where it should go.
    """
    from sgl_engine.explain import draw_importance

    config = options.engine_config(arguments)
    check_output(arguments.output, arguments.picture)
    picture = options.load_picture(arguments.picture, config.limits)
    with output.waiting("Loading the models"):
        engine = options.load_engine(arguments, config)
    request = Request.ask(arguments.question, picture, max_new_tokens=arguments.max_new_tokens)
    response = engine.run(request)
    assert response.importance is not None  # the request holds a picture
    drawing = draw_importance(
        picture,
        response.importance,
        # The large prompt may word the turn differently; on the small one, plan and map share positions.
        engine.plan(engine.small.encode(request, config.limits), response.importance),
        question=arguments.question,
        answer=f"{response.text}   ({output.route(response.report)})",
    )
    try:
        drawing.save(arguments.output)
    except OSError as error:
        raise ConfigError(
            f"{arguments.output} cannot be written ({error.strerror or error}).",
            remedy="Name another file with --output.",
        ) from error
    print(output.printable(response.text))
    print(f"wrote {arguments.output}")


def check_output(path: Path, picture: str) -> None:
    """Refuse a file that cannot be written, before minutes are spent on what goes into it.

    Raises:
        ConfigError: The name is no picture's, its folder does not exist, or it is the input.
    """
    Image.init()
    if path.suffix.lower() not in {suffix for suffix, name in Image.EXTENSION.items() if name in Image.SAVE}:
        raise ConfigError(
            f"{path} does not end like a picture's name.", remedy="Write to a name such as out.png."
        )
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}.", remedy="Make it first, or write elsewhere.")
    if path.exists() and picture != "-" and Path(picture).exists() and path.samefile(picture):
        raise ConfigError(f"{path} is the picture itself.", remedy="Name another file with --output.")
