"""What every command is told: the picture and the question, which models, at which operating point."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from sgl_engine import (
    PRESETS,
    ConfigError,
    EngineConfig,
    Escalate,
    ExitConfig,
    LimitsConfig,
    PruningConfig,
    pruning_preset,
)
from sgl_engine.prompt import at_home, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgl_engine import SGLEngine
    from sgl_engine.cluster import ModelSource

DTYPES = ("auto", "float32", "bfloat16", "float16")


GENERATED = "generated"
"""What names drawn pages where a file of questions may be named."""


def path(text: str) -> Path:
    """A path; shells leave the ~ of --out=~/x as it is."""
    try:
        return at_home(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_request(parser: argparse.ArgumentParser) -> None:
    """PICTURE, QUESTION and how long the answer may be."""
    parser.add_argument(
        "picture", metavar="PICTURE", help="a file, a https: or data: URL, or - for bytes on standard input"
    )
    parser.add_argument("question", metavar="QUESTION", type=_text, help="what to ask, in quotes")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=count, help="longest answer, in tokens (default: the engine's)"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Models, operating point and escalation."""
    add_models(parser)
    add_pruning(parser)
    _add_leaving(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback when the engine fails")


def add_models(parser: argparse.ArgumentParser) -> None:
    """Which models, where, and in which type."""
    models = parser.add_argument_group("models (default: the pair that comes with the package)")
    models.add_argument(
        "--small", metavar="MODEL", help="folder or hub id of the small model; goes with --large"
    )
    models.add_argument(
        "--large", metavar="MODEL", help="folder or hub id of the large model; goes with --small"
    )
    models.add_argument("--device", metavar="DEVICE", help="where both run, such as cpu or cuda:0")
    models.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="(default: that of the weights; float32 for the bundled pair)",
    )


def add_pruning(parser: argparse.ArgumentParser) -> None:
    """What the large model sees."""
    pruning = parser.add_argument_group("what the large model sees of the picture")
    pruning.add_argument(
        "--retention",
        choices=(*PRESETS, "auto"),
        default="35%",
        help="named after the visual tokens that an average layer sees; auto: a calibration chooses for each "
        "question (default: %(default)s)",
    )
    pruning.add_argument(
        "--keep-ratio",
        metavar="R",
        type=_positive_fraction,
        help="visual tokens kept after pruning, in (0, 1]; 1 prunes nothing (default: as --retention says)",
    )
    pruning.add_argument(
        "--tiles",
        metavar="N",
        type=tiles,
        default="all",
        help="tiles that it is given: those with one of the N most important tokens; all (default) "
        "leaves none out",
    )
    pruning.add_argument(
        "--neutral",
        action="store_true",
        help="take what the small model looks at whatever is asked off its map, by a neutral question",
    )


def _add_leaving(parser: argparse.ArgumentParser) -> None:
    leaving = parser.add_argument_group("when the small answer is kept")
    by = leaving.add_mutually_exclusive_group()
    by.add_argument(
        "--threshold",
        metavar="S",
        type=fraction,
        default=ExitConfig().threshold,
        help="at this score or above, in [0, 1] (default: %(default)s)",
    )
    by.add_argument(
        "--calibration",
        metavar="JSON",
        type=path,
        help="from the probability on that this file of sgl calibrate certifies",
    )
    leaving.add_argument(
        "--risk",
        metavar="R",
        type=_positive_fraction,
        help="which of the calibration's target risks (default: the smallest that is certified)",
    )
    leaving.add_argument(
        "--share",
        metavar="S",
        type=_positive_fraction,
        help="instead of a risk: which of the calibration's shares of questions may go to the large model",
    )
    leaving.add_argument(
        "--escalate",
        choices=get_args(Escalate),
        default="auto",
        help="auto: the score decides; never: the small answer is final; always: the large model answers",
    )


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    """The engine's configuration.

    Raises:
        ConfigError: A risk or a share is named without a calibration, or both are; or what --retention
            leaves to one is named as well.
    """
    for name in ("risk", "share"):
        if getattr(arguments, name) is not None and arguments.calibration is None:
            raise ConfigError(
                f"--{name} is given without --calibration.", remedy="Name the file that it is in."
            )
    if arguments.risk is not None and arguments.share is not None:
        raise ConfigError("--risk and --share are both given.", remedy="Give one: each names a threshold.")
    leaving = ExitConfig(
        threshold=arguments.threshold,
        escalate=arguments.escalate,
        calibration=arguments.calibration,
        risk=arguments.risk,
        share=arguments.share,
    )
    pruning = pruning_config(arguments)
    named = f"--tiles {arguments.tiles}" if arguments.tiles != "all" else "--neutral"
    if pruning.auto and (arguments.tiles != "all" or arguments.neutral):
        raise ConfigError(
            f"{named} is given with --retention auto, which leaves that to a calibration.",
            remedy="Give it to sgl calibrate --retention auto, which certifies it, and leave it out here.",
        )
    return EngineConfig(pruning=pruning, exit=leaving)


def pruning_config(arguments: argparse.Namespace) -> PruningConfig:
    """The operating point of the pruning.

    Raises:
        ConfigError: A ratio is named, and --retention leaves it to a calibration.
    """
    pruning = pruning_preset(arguments.retention)
    if pruning.auto and arguments.keep_ratio is not None:
        raise ConfigError(
            f"--keep-ratio {arguments.keep_ratio:g} is given with --retention auto, which leaves that to a "
            "calibration.",
            remedy="Give one of them.",
        )
    if pruning.auto:
        return pruning
    ratio = pruning.keep_ratio if arguments.keep_ratio is None else arguments.keep_ratio
    return PruningConfig(
        layer_fraction=pruning.layer_fraction,
        keep_ratio=ratio,
        tiles=arguments.tiles,
        neutral=arguments.neutral,
    )


def load_picture(source: str, limits: LimitsConfig) -> Image:
    """The picture, RGB and upright. Done before any weights load, so that a wrong path fails at once.

    Args:
        source: A path, a URL, or "-" for standard input.
        limits: Bytes and pixels that are accepted, and URLs that may be fetched.

    Raises:
        ImageError: It is missing, corrupt, too large, or refused by the URL policy.
    """
    if source == "-":
        # One byte too many is enough to be refused, however much is piped in.
        return load_image(sys.stdin.buffer.read(limits.max_image_bytes + 1), limits)
    if "://" in source or source.startswith("data:"):
        return load_image(source, limits)
    return load_image(at_home(source), limits)


def check_pair(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where only one of the two models is named."""
    if (arguments.small is None) != (arguments.large is None):
        given, other = ("--small", "--large") if arguments.small else ("--large", "--small")
        raise ConfigError(
            f"{given} is given without {other}.", remedy="Name both models, or neither for the bundled pair."
        )


def model_sources(arguments: argparse.Namespace) -> tuple[ModelSource, ModelSource]:
    """The small and the large model that were named, as a cluster loads them."""
    from sgl_engine.cluster import ModelSource

    given = {"device": arguments.device, "dtype": arguments.dtype}
    settings = {name: value for name, value in given.items() if value is not None}
    small, large = arguments.small, arguments.large
    return ModelSource(path=small, settings=settings), ModelSource(path=large, settings=settings)


def load_engine(arguments: argparse.Namespace, config: EngineConfig) -> SGLEngine:
    """The engine with the models that were named, or with the bundled pair.

    Raises:
        ConfigError: Only one of the two models is named, or there is no such device.
        ModelError: A model cannot be used.
    """
    check_pair(arguments)
    _check_device(arguments.device)
    load_quietly()
    from sgl_engine import SGLEngine
    from sgl_engine.demo import demo_engine

    settings = {"device": arguments.device, "dtype": arguments.dtype}
    if arguments.small is None:
        return demo_engine(config, **settings)
    return SGLEngine.from_pretrained(arguments.small, arguments.large, config, **settings)


def load_quietly() -> None:
    """One line of ours instead of two bars of theirs, while models load."""
    # transformers imports torchao where it is installed, which warns of every kernel that is for other CPUs.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()


def _check_device(device: str | None) -> None:
    """Refuse a device that does not exist, before anything is loaded onto it."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ConfigError(
            f"The device {device!r} cannot be used ({str(error).partition('.')[0]}).",
            remedy="Name one that this machine has, such as cpu.",
        ) from error


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty; write what to ask, in quotes")
    return value


def count(value: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def tiles(value: str) -> int | Literal["all"]:
    """How many tokens tiles are chosen by, for argparse."""
    return "all" if value == "all" else count(value)


def fraction(value: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:  # also refuses nan
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 0 to 1")
    return number


def _positive_fraction(value: str) -> float:
    number = fraction(value)
    if number == 0.0:
        raise argparse.ArgumentTypeError("0 would keep nothing; give a number above 0, up to 1")
    return number


def points(text: str) -> dict[str, PruningConfig]:
    """Operating points by name, for argparse."""
    return {name.strip(): _point(name.strip()) for name in text.split(",")}


_NEUTRAL = "-neutral"
"""Behind the name of an operating point: with ``PruningConfig.neutral``."""


def _point(name: str) -> PruningConfig:
    numbers, plus, tiles = name.removesuffix(_NEUTRAL).partition("+")
    layer, colon, kept = numbers.partition(":")
    try:
        point = PRESETS.get(numbers)
        if colon:
            point = PruningConfig(layer_fraction=float(layer), keep_ratio=float(kept))
        if point is not None:
            given = {"tiles": int(tiles)} if plus else {}
            return PruningConfig(**{**point.model_dump(), **given, "neutral": name.endswith(_NEUTRAL)})
    except ValueError:  # pydantic's errors are such
        pass
    raise argparse.ArgumentTypeError(
        f"{name!r} is neither one of {', '.join(PRESETS)} nor two numbers such as 0.2:0.2, perhaps with the "
        f"number of tokens that tiles are chosen by behind it, as in 35%+5, and {_NEUTRAL} behind that"
    )


def whole(value: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 0")
    return int(value)
