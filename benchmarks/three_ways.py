"""Six tasks of the paper scored three ways: `.venv-lmms/bin/python -m benchmarks.three_ways DIR [--rows 50]`.

1. ``lmms-eval --model sgl``: the plug-in. 2. ``sgl bench --suite paper``. 3. ``lmms-eval --model openai``
against ``sgl serve``. The rows are drawn pages in each task's own columns (``paper_tasks``), the tasks are
lmms-eval's own YAML files, of which only the data's place is changed, and the pair is the bundled one, at
35 % and 0.8. Prints one line for each score; they are the same, or something is wrong. DIR keeps samples and
logs.

The bundled pair has never seen the last lines of these prompts, and answers nonsense to them. So its chat
template, in a copy, leaves them out again: all three programs still ask the whole prompt. It cannot write
boxes either; what is shown is that three programs agree, not how good it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.paper_tasks import TASKS, write
from sgl_engine.demo import WEIGHTS

PORT = 8417
KEY = "three-ways"
SCORES: Mapping[str, tuple[str, str]] = {
    "textvqa_val": ("textvqa", "exact_match"),
    "chartqa": ("chartqa", "relaxed_overall"),
    "docvqa_val": ("docvqa", "anls"),
    "gqa": ("gqa", "exact_match"),
    "mme": ("mme", "mme_perception_score + mme_cognition_score"),
    "refcoco_bbox_rec_val": ("refcoco", "refcoco_ACC@0.5"),
}
"""Task -> benchmark of ours, and the task's metric that it is."""
_JOIN = """
import datasets

def join(rows):
    pictures = datasets.load_dataset("parquet", data_files={path!r}, split="train")
    by_id = {{row["id"]: row["image"].convert("RGB") for row in pictures}}
    return rows.map(lambda row: {{"image": by_id[row["imageId"]]}})
"""


_LAST_LINES = (
    "\nAnswer the question using a single word or phrase.",
    "\nAnswer the question with a single word.",
)


def write_pair(folder: Path) -> dict[str, str]:
    """Copies the bundled pair, with a template that leaves out what it does not know; size -> folder."""
    found = {}
    for size in ("small", "large"):
        place = folder / "pair" / size
        shutil.copytree(WEIGHTS / size, place, dirs_exist_ok=True)
        template = (WEIGHTS / size / "chat_template.jinja").read_text()
        left = "".join(f" | replace({line!r}, '')" for line in _LAST_LINES)
        known = template.replace("{{ part['text'] }}", f"{{{{ part['text']{left} }}}}")
        assert known != template, "the template writes texts otherwise"
        (place / "chat_template.jinja").write_text(known)
        found[size] = str(place)
    return found


def write_tasks(folder: Path, rows: int) -> Path:
    """Writes data and tasks; returns the folder of the tasks."""
    from lmms_eval import tasks as real

    write(folder / "data", rows)
    own = folder / "tasks"
    own.mkdir(exist_ok=True)
    for name, (task, _) in TASKS.items():
        path = folder / "data" / f"{name}-00000-of-00001.parquet"
        if "images" in name:
            (own / "joined.py").write_text(_JOIN.format(path=str(path)))
            continue
        [yaml] = Path(real.__file__).parent.rglob(f"{task}.yaml")
        split = path.name.partition("-")[0]
        lines = [f"include: {yaml}", f"task: drawn_{task}", "dataset_path: parquet", "dataset_name: null"]
        lines += ["dataset_kwargs:", "  data_files:", f"    {split}: {path}"]
        if task == "gqa":  # its own function fetches the pictures from the hub
            lines.append("process_docs: !function joined.join")
        (own / f"drawn_{task}.yaml").write_text("\n".join(lines) + "\n")
    return own


def through_lmms(folder: Path, tasks: Path, name: str, *arguments: str) -> dict[str, float]:
    """Runs lmms-eval; returns task -> score."""
    out = folder / name
    names = ",".join(f"drawn_{task}" for task in SCORES)
    command = [str(Path(sys.executable).with_name("lmms-eval")), *arguments, "--tasks", names]
    command += ["--include_path", str(tasks), "--log_samples", "--output_path", str(out), "--batch_size", "8"]
    _run(command, folder / f"{name}.log")
    [path] = sorted(out.rglob("*_results.json"))[-1:]
    results = json.loads(path.read_text())["results"]
    return {task: _score(results[f"drawn_{task}"], metric) for task, (_, metric) in SCORES.items()}


def _score(result: Mapping[str, Any], metric: str) -> float:
    found = sum(float(result[f"{name},none"]) for name in metric.split(" + "))
    return found if metric.startswith("mme") else 100 * found


def through_bench(folder: Path) -> dict[str, float]:
    """Runs ``sgl bench``; returns task -> score."""
    out = folder / "bench"
    benchmarks = ",".join(benchmark for benchmark, _ in SCORES.values())
    command = [str(Path(sys.executable).with_name("sgl")), "bench", "--suite", "paper"]
    command += ["--from", str(folder / "data"), "--tasks", benchmarks, "--out", str(out), "--overwrite"]
    _run([*command, "--retention", "35%", *_models(folder)], folder / "bench.log")
    systems = json.loads((out / "paper.json").read_text())["systems"]
    [name] = [name for name in systems if name.startswith("cascade")]
    return {task: systems[name][benchmark]["value"] for task, (benchmark, _) in SCORES.items()}


def _models(folder: Path) -> list[str]:
    return [text for size, place in write_pair(folder).items() for text in (f"--{size}", place)] + [
        "--dtype",
        "float32",
    ]


def through_server(folder: Path, tasks: Path) -> dict[str, float]:
    """Runs lmms-eval against ``sgl serve``."""
    with _server(folder) as url:
        arguments = f"model=sgl,base_url={url},api_key={KEY},num_concurrent=4,timeout=120"
        return through_lmms(folder, tasks, "openai", "--model", "openai", "--model_args", arguments)


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{PORT}/v1"
    command = [str(Path(sys.executable).with_name("sgl")), "serve", "--port", str(PORT), "--api-key", KEY]
    command += _models(folder)
    log = folder / "serve.log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:  # noqa: S603
        try:
            for _ in range(120):
                try:
                    httpx.get(f"{url}/models", headers={"authorization": f"Bearer {KEY}"}).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(1)
            yield url
        finally:
            process.terminate()


def _run(command: list[str], log: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(log.parent / "cache")}
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}; see {log}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--ways", default="lmms,bench,server")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    tasks = write_tasks(folder, arguments.rows)
    pair = write_pair(folder)
    of_pair = f"small={pair['small']},large={pair['large']},dtype=float32,retention=35%,threshold=0.8"
    ways = {
        "lmms": lambda: through_lmms(folder, tasks, "sgl", "--model", "sgl", "--model_args", of_pair),
        "bench": lambda: through_bench(folder),
        "server": lambda: through_server(folder, tasks),
    }
    found = {way: ways[way]() for way in arguments.ways.split(",")}
    print("| task, metric | rows |", " | ".join(found), "|")
    print("| --- | ---: |", " | ".join(["---:"] * len(found)), "|")
    for task, (_, metric) in SCORES.items():
        scores = [scores[task] for scores in found.values()]
        shown = " | ".join(f"{score:.4f}" for score in scores)
        print(f"| {task}, {metric} | {arguments.rows} | {shown} |")
        if max(scores) - min(scores) > 1e-6:
            print(f"  {task}: not the same")


if __name__ == "__main__":
    main()
