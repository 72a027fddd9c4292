"""Many rows through ``sgl batch``, killed on their way: is each there once, in order, and how much memory?

python -m benchmarks.batch_rows               # 100,000 rows on a scripted engine, killed twice
python -m benchmarks.batch_rows --pair        # 60 rows on the bundled pair, killed at the first one written

A run is another process, which is killed with SIGKILL as soon as its file has so many rows; then half a line
is put behind what it wrote, and the same command goes on. The scripted engine answers the last row first.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from sgl_engine import EngineConfig, Request, Response, RunReport
from sgl_engine.batch.inputs import open_rows
from sgl_engine.batch.job import Job
from sgl_engine.batch.local import answer_rows
from sgl_engine.batch.output import RunFolder
from sgl_engine.batch.plain import PlainForm
from sgl_engine.demo.pages.generator import heldout_pages
from sgl_engine.report.run_report import ModelInfo

BATCH = 32
BROKEN_EVERY = 1000
KEPT = ("row", "id", "answer", "route", "error")


def main() -> None:
    """Runs, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--pair", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), Path(options.child[1]))
        return
    rows = options.rows or (60 if options.pair else 100_000)
    with tempfile.TemporaryDirectory() as name:
        result = pair_run(Path(name), rows) if options.pair else scripted_run(Path(name), rows)
    print(json.dumps(result, indent=1))


def scripted_run(folder: Path, count: int) -> dict[str, Any]:
    """Rows with one picture among them, of which one in a thousand is broken; killed at a third and two."""
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(count):
            row = {"id": n, "question": f"What is {n}?", "image": "red.png"}
            file.write("{broken\n" if n % BROKEN_EVERY == 0 else json.dumps(row) + "\n")
    out, began = folder / "out", time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.batch_rows", "--child", str(folder / "rows.jsonl"), str(out)]
    kills = killed_runs(command, out, [count // 3, 2 * count // 3])
    seconds = time.perf_counter() - began
    rows = right = failed = 0
    with (out / "rows.jsonl").open() as file:
        for rows, line in enumerate(file, start=1):
            row, n = json.loads(line), rows - 1
            broken = n % BROKEN_EVERY == 0
            failed += row["error"] is not None
            answer = None if broken else f"What is {n}?"
            right += (row["row"], row["answer"]) == (n, answer) and (row["error"] is not None) is broken
    with (out / "reports.jsonl").open() as file:
        reports = sum(1 for _ in file)
    return {
        "rows in": count,
        "rows out": rows,
        "in their place": right,
        "failed, as they should": failed,
        "reports": reports,
        "killed at row": kills,
        "seconds, all runs": round(seconds, 1),
        "peak memory of a run, MiB": peak_mib(),
        "this process with all modules and no rows, MiB": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
    }


def pair_run(folder: Path, count: int) -> dict[str, Any]:
    """Questions about held-out pages, each with its page, by the command line."""
    with (folder / "rows.jsonl").open("w") as file:
        for n, (page, question) in enumerate(heldout_pages(count)):
            Image.fromarray(page.pixels).save(folder / f"{n}.png")
            file.write(json.dumps({"id": n, "question": question.text, "image": f"{n}.png"}) + "\n")
    start = "from sgl_engine.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", start, "batch", str(folder / "rows.jsonl"), "--out"]
    whole, killed = folder / "whole", folder / "killed"
    subprocess.run([*command, str(whole)], check=True)  # noqa: S603  # our own
    kills = killed_runs([*command, str(killed)], killed, [1])
    rows = [[json.loads(line) for line in (out / "rows.jsonl").open()] for out in (whole, killed)]
    scores = [abs(a["score"] - b["score"]) for a, b in zip(*rows, strict=True)]
    same = sum({k: a[k] for k in KEPT} == {k: b[k] for k in KEPT} for a, b in zip(*rows, strict=True))
    return {
        "rows in": count,
        "rows out": [len(each) for each in rows],
        "killed at row": kills,
        "the same in both runs": same,
        "largest difference of a score": max(scores),
        "by the large model": sum(row["route"] == "large" for row in rows[0]),
        "peak memory of a run, MiB": peak_mib(),
    }


def peak_mib() -> int:
    """Of the largest process that was waited for."""
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def killed_runs(command: list[str], out: Path, at: list[int]) -> list[int]:
    """Runs a command, and kills it when it has so many rows; once more to its end. Returns where it was."""
    kills = []
    for rows in at:
        running = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603  # the same
        while lines_of(out) < rows and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        if running.wait() != -signal.SIGKILL:
            raise SystemExit("The run ended before it could be killed: give it more rows.")
        kills.append(lines_of(out))
        with (out / "rows.jsonl").open("ab") as file:
            file.write(b'{"row": 7, "torn')
    subprocess.run(command, check=False)  # noqa: S603  # the same
    return kills


def lines_of(out: Path) -> int:
    """Whole lines that are there."""
    path = out / "rows.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


class ScriptedEngine:
    """Says each question; of those that wait, the last is answered first."""

    def __init__(self) -> None:
        self.config = EngineConfig()
        self._waiting: SimpleQueue[tuple[Future[Response], str]] = SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()
        self._report = RunReport(
            engine_version="0",
            route="small",
            escalated=False,
            score=1.0,
            scorer="scripted",
            threshold=0.8,
            forced=False,
            confidence=1.0,
            consistency=None,
            visual_tokens=0,
            kept_visual_tokens=None,
            prune_layer=None,
            keep_ratio=None,
            average_retention=None,
            small_tflops=0.0,
            large_tflops=0.0,
            large_alone_tflops=0.0,
            saved_fraction=0.0,
            stage_ms={"total": 0.0},
            small_input_tokens=0,
            small_output_tokens=0,
            large_input_tokens=None,
            large_output_tokens=None,
            small_answer=None,
            large_agreed=None,
            small_model=ModelInfo(name="scripted"),
            large_model=ModelInfo(name="scripted"),
        )

    def submit(self, request: Request) -> Future[Response]:
        """Takes one in."""
        future: Future[Response] = Future()
        self._waiting.put((future, str(request.messages[0].content[-1])))
        return future

    def _answer(self) -> None:
        while True:
            waiting = [self._waiting.get()]
            while len(waiting) < BATCH and not self._waiting.empty():
                waiting.append(self._waiting.get())
            for future, text in reversed(waiting):
                future.set_result(Response(text, "stop", self._report))


def child(path: Path, out: Path) -> None:
    """A run on the scripted engine; it is what is killed."""
    rows, form = open_rows(path), PlainForm("dry")
    job: Job = {"rows": len(rows), "input": rows.identity}
    engine: Any = ScriptedEngine()
    with RunFolder(out, job, form) as folder:
        for written in answer_rows(engine, rows, form, folder.done):
            folder.add(written)


if __name__ == "__main__":
    main()
