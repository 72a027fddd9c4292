"""What a person reads: the report as a short table, and a sign of life while weights load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgl_engine import RunReport


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show a spinner on stderr while the body runs; only on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield


def say(message: str) -> None:
    """Tells a person something on stderr, in one line."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(printable(message))


def printable(text: str) -> str:
    """The text without control characters: no picture may steer the terminal by way of an answer."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def print_report(report: RunReport) -> None:
    """Print what ``rows`` says, as two columns, under an empty line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, value in rows(report):
        table.add_row(label, Text(value))
    console = Console(highlight=False)
    console.print()
    console.print(table)


def route(report: RunReport) -> str:
    """Whose answer it is, and why."""
    if report.uncovered is not None and report.route == "large":
        return f"large model: the calibration does not cover the request ({report.uncovered})"
    if report.forced:
        return f"{report.route} model, as --escalate says"
    return "small model, early exit" if report.route == "small" else "large model, guided by the small one"


def rows(report: RunReport) -> list[tuple[str, str]]:
    """Label and value, most important first; what an answer did not need is left out."""
    lines = [("answered by", route(report)), ("score", _score(report))]
    if report.small_answer is not None:
        verdict = "the large model agrees" if report.large_agreed else "overruled"
        lines.append(("small answer", f"{printable(report.small_answer)}  ({verdict})"))
    lines += [("visual tokens", _visual_tokens(report)), ("cost", _cost(report))]
    lines += [("time", f"{report.stage_ms['total']:.0f} ms"), *_stages(report.stage_ms)]
    tokens = f"small {report.small_input_tokens} in, {report.small_output_tokens} out"
    if report.large_input_tokens is not None:
        tokens += f"; large {report.large_input_tokens} in, {report.large_output_tokens} out"
    if report.drafted_tokens:
        tokens += f", {report.accepted_tokens} of {report.drafted_tokens} drafted ones accepted"
    return [*lines, ("tokens", tokens), ("models", f"{report.small_model.name}, {report.large_model.name}")]


def _score(report: RunReport) -> str:
    parts = f"confidence {report.confidence:.2f}"
    if report.consistency is not None:
        parts += f", consistency {report.consistency:.2f}"
    if report.forced:
        return f"{report.score:.2f} by {report.scorer}  ({parts})"
    relation = "at least" if report.score >= report.threshold else "below"
    if report.calibrated_probability is not None:
        return (
            f"{report.score:.4f} probable to do, {relation} {report.threshold:.4f} of calibration "
            f"{report.calibration}  ({parts})"
        )
    return f"{report.score:.2f} by {report.scorer}, {relation} {report.threshold:.2f}  ({parts})"


def _visual_tokens(report: RunReport) -> str:
    if report.kept_visual_tokens is None or report.average_retention is None:
        return f"{report.visual_tokens}, seen by the small model only"
    tiles = ""
    if report.kept_tiles is not None and report.kept_tiles != report.tiles:
        tiles = f"; {report.kept_tiles} of {report.tiles} tiles given to the large model"
    if report.neutral:
        tiles += "; chosen beyond what a neutral question looks at"
    return (
        f"{report.kept_visual_tokens} of {report.visual_tokens} kept from layer {report.prune_layer} on, "
        f"{report.average_retention:.0%} on average{tiles}"
    )


def _cost(report: RunReport) -> str:
    spent, alone = flops(report.small_tflops + report.large_tflops), flops(report.large_alone_tflops)
    change = f"{abs(report.saved_fraction):.0%} {'less' if report.saved_fraction >= 0 else 'more'}"
    return f"{spent}, {change} than the large model alone ({alone})"


def _stages(stage_ms: dict[str, float]) -> list[tuple[str, str]]:
    """One line per model; stages are called ``<stage>_<model>``."""
    lines: dict[str, list[str]] = {}
    for name, milliseconds in stage_ms.items():
        stage, _, model = name.rpartition("_")
        if stage:
            lines.setdefault(model, []).append(f"{stage.replace('_', ' ')} {milliseconds:.0f}")
    return [(f"  {model} model", ", ".join(stages)) for model, stages in lines.items()]


def flops(tera: float) -> str:
    """Floating-point operations, given in units of 1e12, in the unit that suits the amount."""
    for factor, unit in ((1.0, "TFLOP"), (1e3, "GFLOP")):
        if tera * factor >= 1:
            return f"{tera * factor:.3g} {unit}"
    return f"{tera * 1e6:.3g} MFLOP"
