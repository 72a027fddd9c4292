"""The bundled pair on Ray Serve, against the same pair in one process.

    python -m benchmarks.cluster equal --questions 200     answers and reports, and kB of each escalation
    python -m benchmarks.cluster faults                    what becomes of requests while replicas are killed
    python -m benchmarks.cluster price --questions 60      processor time and questions per second

"equal": each held-out question goes to both, one after the other, with nothing known of other questions; all
of the answer is compared, and all of the report but its times. What the large model's replica is sent is
pickled as Ray pickles it, and counted; and the map is rounded to float16, to see what that would change.

"faults": questions go on from several clients while replicas of either kind are killed in the middle of
answers; then with a large model that no machine can hold, and with a queue that is full.

"price": the same questions in turns to both, all at once; a cluster of as many processors as are here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import psutil
import ray
from ray import cloudpickle, serve
from rich.console import Console
from rich.table import Table

from benchmarks.heldout import questions
from benchmarks.serving import free_port
from sgl_engine import EngineConfig, Request, SGLEngine, SGLError
from sgl_engine.attention import ImportanceMap
from sgl_engine.cluster import ClusterSettings, Replicas, build_app, connect
from sgl_engine.demo import demo_engine

CONFIG = EngineConfig().without_reuse()
NO_CPU = Replicas(cpus=0)
out = Console(width=110)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("equal", "faults", "price"))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


@contextmanager
def machine() -> Iterator[None]:
    """A Ray cluster of this machine, with a token of its own, that leaves nothing behind."""
    place = tempfile.mkdtemp(prefix="sgl-ray-")
    os.environ.update(RAY_AUTH_TOKEN="0" * 64, RAY_USAGE_STATS_ENABLED="0")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=place,
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def running(settings: ClusterSettings) -> SGLEngine:
    """An engine on an application that has taken the last one's place."""
    serve.delete("sgl")  # updated in place, it would begin with as many replicas as there were
    serve.run(build_app(settings), name="sgl", route_prefix="/")
    return connect(settings)


def equal(count: int) -> None:
    """Compares both, question by question."""
    found: Counter[str] = Counter()
    sizes: list[int] = []
    with machine():
        cluster = running(ClusterSettings(engine=CONFIG, small_replicas=NO_CPU, large_replicas=NO_CPU))
        alone = demo_engine(CONFIG)
        for asked, _ in questions(count):
            request = replace(asked, logprobs=True)
            apart, expected = cluster.run(request), alone.run(request)
            reports = [each.report.model_dump(exclude={"stage_ms"}) for each in (apart, expected)]
            found["questions"] += 1
            found["escalated"] += expected.report.escalated
            found["other text"] += apart.text != expected.text
            found["other log-probabilities"] += apart.tokens != expected.tokens
            found["other report"] += reports[0] != reports[1]
            if expected.plan is not None and expected.importance is not None and apart.plan is not None:
                kept = [each.plan.keep.tolist() for each in (apart, expected) if each.plan is not None]
                found["other tokens kept"] += kept[0] != kept[1]
                half = expected.importance.mass.half().float()
                rounded = ImportanceMap(half, expected.importance.spans, expected.importance.num_queries)
                prompt = alone.large.encode(request, CONFIG.limits)
                found["other tokens kept, were the map float16"] += (
                    alone.plan(prompt, rounded).keep.tolist() != kept[1]
                )
                sizes += [sent_bytes(alone, request)]
    table = Table("of the same questions", "")
    for name, number in found.items():
        table.add_row(name, str(number))
    out.print(table)
    middle, most = median(sizes) / 1e3, max(sizes) / 1e3
    out.print(f"sent to the large model, picture apart: median {middle:.1f} kB, most {most:.1f} kB")


def sent_bytes(engine: SGLEngine, request: Request) -> int:
    """Bytes of what goes to the large model's replica for a request, its picture apart."""
    from sgl_engine.cluster.deployments import HalfEngine
    from sgl_engine.cluster.parcels import pack

    half = HalfEngine(engine.small, engine.large, engine.config.escalating("always"))
    *_, outcome = half.begin(request, None)
    return len(cloudpickle.dumps((pack(request, lambda _: b"0" * 28), outcome.handed)))


def faults(count: int) -> None:
    """Kills replicas under way, and prints one outcome for each request."""

    def tell(what: str, requests: int, outcomes: str) -> None:
        """At once: a run that hangs later has said what came before."""
        out.print(f"{what}: {requests} requests, {outcomes}")

    keep = CONFIG.model_copy(update={"on_large_error": "keep"}).escalating("always")
    asked = [replace(request, max_new_tokens=16) for request, _ in questions(count)]
    with machine():
        for side in ("small", "large"):
            settings = ClusterSettings(
                engine=CONFIG.escalating("always"), small_replicas=NO_CPU, large_replicas=NO_CPU
            )
            engine = running(settings)
            expected = [
                outcome(demo, request) for demo in [demo_engine(settings.engine)] for request in asked
            ]
            ended = threading.Event()
            killer = threading.Thread(target=kill, args=(side, ended, engine), daemon=True)
            killer.start()
            found = together(engine, asked)
            ended.set()
            killer.join()
            same = sum(one == other for one, other in zip(found, expected, strict=True))
            tell(f"the {side} model's replica killed, twice", len(asked), f"{same} as alone; {told(found)}")
        nowhere = Replicas(least=0, cpus=1000)
        for name, config in (("raise", keep.model_copy(update={"on_large_error": "raise"})), ("keep", keep)):
            settings = ClusterSettings(
                engine=config, small_replicas=NO_CPU, large_replicas=nowhere, start_s=3.0
            )
            found = together(running(settings), asked[:8])
            tell(f'large model never up, on_large_error="{name}"', 8, told(found))
        full = Replicas(cpus=0, slots=1, queue=1)
        settings = ClusterSettings(engine=keep, small_replicas=NO_CPU, large_replicas=full)
        tell('queue of 1 full, "keep"', len(asked), told(together(running(settings), asked)))


def outcome(engine: SGLEngine, request: Request) -> str:
    """An answer, or the name of an error."""
    try:
        response = engine.run(request)
    except SGLError as error:
        return type(error).__name__
    return f"{response.report.route}: {response.text}"


def together(engine: SGLEngine, asked: Sequence[Request]) -> list[str]:
    """Outcomes of requests that are asked side by side."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda request: outcome(engine, request), asked))


def told(found: Sequence[str]) -> str:
    """Counts outcomes by kind."""
    kinds = Counter(each.partition(":")[0] for each in found)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))


def kill(side: str, ended: threading.Event, engine: SGLEngine) -> None:
    """Kills the model's replicas twice, each time in the middle of answers."""
    for _ in range(2):
        while not links(engine)[side].load()[0]:
            if ended.wait(0.05):
                return
        for each in ray.util.list_named_actors(all_namespaces=True):
            if each["name"].startswith(f"SERVE_REPLICA::sgl#{side}#"):
                ray.kill(ray.get_actor(each["name"], namespace=each["namespace"]))
        if ended.wait(2.0):  # until its calls have noticed
            return


def links(engine: SGLEngine) -> dict[str, Any]:
    """The engine's way to each deployment."""
    found = engine._links  # type: ignore[attr-defined]  # noqa: SLF001  # nobody else asks for one side
    return {"small": found.small, "large": found.large}


def price(count: int, rounds: int) -> None:
    """Asks both in turns, and compares what it took."""
    asked = [request for request, _ in questions(count)]
    with machine():
        settings = ClusterSettings(engine=CONFIG, small_replicas=NO_CPU, large_replicas=NO_CPU)
        engines = {"one process": demo_engine(CONFIG), "cluster": running(settings)}
        for engine in engines.values():
            together(engine, asked[:8])
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, engine in engines.items():
                all_of_it = name == "cluster"
                cpu, since = processor_s(all_of_it), time.perf_counter()
                together(engine, asked)
                took[name].append((processor_s(all_of_it) - cpu, time.perf_counter() - since))
    table = Table("", "processor ms a question", "questions a second")
    for name, rows in took.items():
        cpu_s, wall_s = (median(column) for column in zip(*rows, strict=True))
        table.add_row(name, f"{1e3 * cpu_s / count:.0f}", f"{count / wall_s:.2f}")
    out.print(table)
    ratios = [
        [theirs[at] / ours[at] for ours, theirs in zip(took["one process"], took["cluster"], strict=True)]
        for at in range(2)
    ]
    out.print(f"cluster / one process: processor time {median(ratios[0]):.2f}, time {median(ratios[1]):.2f}")


def processor_s(all_of_it: bool) -> float:  # noqa: FBT001  # of this file
    """Processor time of this process, or also of all that it has started, Ray's own included."""
    root = psutil.Process()
    total = 0.0
    for process in [root, *(root.children(recursive=True) if all_of_it else ())]:
        try:
            times: Any = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


if __name__ == "__main__":
    arguments = parse()
    if arguments.what == "equal":
        equal(arguments.questions)
    elif arguments.what == "faults":
        faults(min(arguments.questions, 40))
    else:
        price(arguments.questions, arguments.rounds)
