"""Which image-text architectures are exact: `python -m benchmarks.coverage_families [NAME ...]` (minutes).

Every architecture of the installed transformers is built tiny, with random weights, and run through the
engine, in a process of its own. All of them together write the table of docs/families.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs what is asked for, prints an outcome per line, and writes the table where all were run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from benchmarks.coverage_families.table import summary, write

    known = sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; all where none is named")
    parser.add_argument("--found", type=Path, help="a file that keeps outcomes; what it has is not run again")
    parser.add_argument("--seconds", type=float, default=180, help="the most that one may take")
    parser.add_argument("--figures", action="store_true", help="print what was compared")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[2] / "docs/families.md")
    arguments = parser.parse_args()
    warm_up()
    found = _read(arguments.found)
    for name in arguments.names or known:
        if name in found:
            continue
        began = time.monotonic()
        found[name] = outcome = apart(name, arguments.seconds)
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{name}: {outcome.verdict} | {outcome.family} | {took} | {outcome.reason[:400]}", flush=True)
        if arguments.figures:
            print("   ", outcome.figures, flush=True)
        if arguments.found:
            _keep(arguments.found, found)
    print(summary(list(found.values())))
    if set(found) >= set(known):
        write(arguments.page, [found[name] for name in known])


def _read(path: Path | None) -> dict[str, Any]:
    """Outcomes of an earlier call, by name."""
    from benchmarks.coverage_families.checks import Outcome

    if path is None or not path.is_file():
        return {}
    return {each["name"]: Outcome(**each) for each in json.loads(path.read_text())}


def _keep(path: Path, found: dict[str, Any]) -> None:
    """Writes the outcomes so far; what is there is whole, whenever this process is ended."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps([asdict(each) for each in found.values()]))
    beside.replace(path)


def warm_up() -> None:
    """Imports what every process needs, once, before any of them is forked."""
    import torch
    import transformers

    import benchmarks.coverage_families.run  # noqa: F401
    from sgl_engine.testing import tiny_vlm

    tiny_vlm()  # loads most of what any model loads

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def apart(name: str, seconds: float) -> Any:
    """The outcome of one architecture, from a process that ends with it, or after so many seconds."""
    from benchmarks.coverage_families.checks import Outcome

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        found = Outcome(**json.loads(ours.recv())) if ours.poll(seconds) else None
    except EOFError:
        found = None
    if found is None:
        process.kill()
    process.join()
    return found or Outcome(name, "fails", reason=f"its process ended, or took over {seconds:.0f} s")


def _send(name: str, pipe: Any) -> None:
    """Runs in the other process."""
    import torch

    torch.manual_seed(0)
    from benchmarks.coverage_families.run import outcome_of

    pipe.send(json.dumps(asdict(outcome_of(name)), default=str))
    os._exit(0)  # nothing of the engine's threads is waited for


if __name__ == "__main__":
    main()
