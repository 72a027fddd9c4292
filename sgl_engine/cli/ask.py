"""``sgl ask``: the answer, then how it came about and what it cost."""

from __future__ import annotations

import argparse
import json
import sys

from sgl_engine import Request, Response, TextDelta
from sgl_engine.cli import options, output

HELP = "ask a picture"
DESCRIPTION = "Prints the answer, then how it came about and what it cost."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    options.add_request(parser)
    options.add_engine(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document instead: answer, finish_reason, report"
    )


def run(arguments: argparse.Namespace) -> None:
    """Answer, as it is generated, and report."""
    config = options.engine_config(arguments)
    picture = options.load_picture(arguments.picture, config.limits)
    with output.waiting("Loading the models"):
        engine = options.load_engine(arguments, config)
    request = Request.ask(arguments.question, picture, max_new_tokens=arguments.max_new_tokens)
    if arguments.json:
        print(as_json(engine.run(request)))
        return
    for event in engine.stream(request):
        if isinstance(event, TextDelta):
            sys.stdout.write(output.printable(event.text))
            sys.stdout.flush()
        elif isinstance(event, Response):
            sys.stdout.write("\n")
            output.print_report(event.report)


def as_json(response: Response) -> str:
    """The response as one JSON document."""
    document = {
        "answer": response.text,
        "finish_reason": response.finish_reason,
        # By way of pydantic's JSON, which writes null where a score is not a number; json would write NaN.
        "report": json.loads(response.report.model_dump_json()),
    }
    return json.dumps(document, ensure_ascii=False, indent=2)
