"""``sgl``: ask a picture, see what the answer cost and where the models looked, and whether it pays.

Exit codes: 0 done; 1 the engine failed; 2 wrong usage or bad input (a picture, a model, a setting); 3 a
calibration does not hold on new data; 130 interrupted. Bad input is one line on stderr that says what to do,
never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from sgl_engine import ConfigError, ModelError, RequestError, __version__
from sgl_engine.cli import ask, batch, bench, calibrate, check, demo, explain, playground, serve
from sgl_engine.cli.decide import command as decide

OK: Final = 0
ENGINE_FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "ask": ask,
    "explain": explain,
    "decide": decide,
    "batch": batch,
    "check": check,
    "bench": bench,
    "calibrate": calibrate,
    "serve": serve,
    "playground": playground,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: The arguments after the program's name; None takes them from ``sys.argv``.

    Raises:
        SystemExit: The arguments do not parse (code 2), or help or version was asked for (code 0).
    """
    arguments = _parser().parse_args(argv)
    try:
        code = _COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (RequestError, ModelError, ConfigError) as error:
        return _fail(str(error), BAD_INPUT)
    except Exception as error:
        if arguments.debug:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return _fail(
            f"The engine failed ({reason}). Run again with --debug for the traceback.", ENGINE_FAILED
        )
    return code or OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sgl",
        description="Two vision-language models answer as one: the small one first, the large if need be.",
    )
    parser.add_argument("--version", action="version", version=f"sgl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        if examples := getattr(command, "EXAMPLES", None):
            subparser.epilog = examples
            subparser.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_arguments(subparser)
    return parser


def _fail(message: str, code: int) -> int:
    print("sgl:", *message.split(), file=sys.stderr)  # one line, whatever a library put into it
    return code
