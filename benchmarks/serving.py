"""The server under load, and against the large model alone behind a plain server.

    python -m benchmarks.serving load --clients 200 --seconds 60
    python -m benchmarks.serving compare --questions 60 --clients 1 8

"load": `sgl serve` on the bundled pair in a process of its own. A tenth of the clients send broken pictures,
a tenth leave after the first piece, a tenth read slowly, a tenth rank four pictures, a tenth ask three typed
questions, the others stream or wait. Every request has to have one outcome; memory, file descriptors and
threads of the server are read before, halfway, after, and once its threads have been idle for longer than it
keeps them.

"compare": the same held-out questions to `sgl serve`, and to transformers' `generate` of the same large model
alone behind FastAPI, one after the other, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import cycle, islice
from statistics import median, quantiles
from typing import Annotated, Any

import httpx
import psutil
from fastapi import Body, FastAPI
from PIL import Image
from rich.console import Console
from rich.table import Table

from sgl_engine.demo.pages import heldout_pages

BROKEN = "data:image/png;base64,aGVsbG8="
KINDS = ("broken", "leaves", "slow", "ranks", "decides", *["streams", "waits"] * 2, "streams")
SLOW_S = 0.2
IDLE_S = 12.0
"""Threads of the server that were idle for ten seconds end when another one is used."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load")
    load.add_argument("--clients", type=int, default=200)
    load.add_argument("--seconds", type=float, default=60)
    compare = commands.add_parser("compare")
    compare.add_argument("--questions", type=int, default=60)
    compare.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    serve = commands.add_parser("plain", help="the plain server, by itself")
    serve.add_argument("port", type=int)
    return parser.parse_args()


@cache
def questions(count: int) -> tuple[tuple[str, str, str], ...]:
    """Picture as a data: URL, question, right answer."""
    asked = []
    for page, question in heldout_pages(count):
        buffer = io.BytesIO()
        Image.fromarray(page.pixels).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        asked.append((url, question.text, question.answer))
    return tuple(asked)


def body(url: str, text: str, **fields: Any) -> dict[str, Any]:
    """A question about a picture."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"model": "sgl", "messages": [{"role": "user", "content": parts}], "max_tokens": 32, **fields}


@contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own, once it is ready."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603  # ours
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    if httpx.get(f"{url}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, "the server has ended"
                time.sleep(0.2)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def sgl_command(port: int) -> list[str]:
    """`sgl serve` on the bundled pair."""
    start = f"from sgl_engine.cli import main; raise SystemExit(main(['serve', '--port', '{port}']))"
    return [sys.executable, "-c", start]


def ranked(url: str, text: str) -> dict[str, Any]:
    """A list of four pictures, of which the first is the question's."""
    others = [each for each, _, _ in questions(40) if each != url][:3]
    return {"query": text, "documents": [{"image": each} for each in (url, *others)]}


def decided(url: str, text: str, answer: str) -> dict[str, Any]:
    """Three typed questions about a picture."""
    picture = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    choices = [{"value": answer}, {"value": "none of these"}]
    asked = {"type": "choice", "instructions": text, "choices": choices}
    return {"model": "sgl", "input": picture, "questions": [{**asked, "name": str(n)} for n in range(3)]}


async def ask(client: httpx.AsyncClient, kind: str, question: tuple[str, str, str]) -> str:
    """One request of one kind of client; returns its outcome."""
    url, text, right = question
    whole = {
        "broken": ("broken picture", "/v1/chat/completions", body(BROKEN, text)),
        "waits": ("waited", "/v1/chat/completions", body(url, text)),
        "ranks": ("ranked", "/rerank", ranked(url, text)),
        "decides": ("decided", "/v1/decisions", decided(url, text, right)),
    }
    if kind in whole:
        name, path, sent = whole[kind]
        return f"{name}: {(await client.post(path, json=sent)).status_code}"
    pieces = body(url, text, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=pieces) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return f"streamed: {answer.status_code}"
        last = ""
        async for line in answer.aiter_lines():
            if kind == "leaves":
                return "left: 200"
            if kind == "slow":
                await asyncio.sleep(SLOW_S)
            last = line or last
        return "streamed: 200" if last == "data: [DONE]" else f"streamed: broken off at {last[:60]!r}"


def usage(process: psutil.Process) -> dict[str, float]:
    """What a process holds."""
    return {
        "MiB": round(process.memory_info().rss / 2**20),
        "file descriptors": process.num_fds(),
        "threads": process.num_threads(),
    }


async def load(url: str, process: psutil.Process, options: argparse.Namespace) -> dict[str, Any]:
    """Clients of all kinds at once, until the time is over."""
    asked, outcomes = questions(40), Counter[str]()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await ask(client, "waits", asked[0])
        held = {"before": usage(process)}
        end, started = time.monotonic() + options.seconds, 0

        async def one(number: int) -> None:
            nonlocal started
            for question in islice(cycle(asked), number, None):
                if time.monotonic() > end:
                    return
                started += 1
                kind = KINDS[number % len(KINDS)]
                try:
                    outcomes[await ask(client, kind, question)] += 1
                except httpx.HTTPError as error:
                    outcomes[f"{kind}, and no answer: {type(error).__name__} {error.__cause__!r}"] += 1

        tasks = [asyncio.create_task(one(number)) for number in range(options.clients)]
        await asyncio.sleep(options.seconds / 2)
        held["halfway"] = usage(process)
        await asyncio.gather(*tasks)
    await asyncio.sleep(2)  # connections that are closed are let go of
    held["after"] = usage(process)
    await asyncio.sleep(IDLE_S)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await ask(client, "waits", asked[0])
    held["idle"] = usage(process)
    return {"requests": started, "outcomes": dict(sorted(outcomes.items())), "server": held}


async def timed(
    url: str, clients: int, asked: tuple[tuple[str, str, str], ...]
) -> tuple[list[float], float, float]:
    """Seconds of each question, seconds of all, and the share that was answered rightly."""
    seconds, right, left = [], 0, iter(asked)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one() -> None:
            nonlocal right
            for picture, text, answer in left:
                begun = time.perf_counter()
                reply = await client.post("/v1/chat/completions", json=body(picture, text))
                seconds.append(time.perf_counter() - begun)
                right += reply.json()["choices"][0]["message"]["content"].strip().lower() == answer.lower()

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return seconds, time.perf_counter() - begun, right / len(asked)


def compare(options: argparse.Namespace, console: Console) -> None:
    """Both servers, one after the other, for each number of clients."""
    table = Table("server", "clients", "p50 s", "p95 s", "questions / s", "right %")
    asked = questions(options.questions)
    ports = {"sgl serve": free_port(), "large alone, generate": free_port()}
    commands = {
        "sgl serve": sgl_command(ports["sgl serve"]),
        "large alone, generate": [sys.executable, "-m", "benchmarks.serving", "plain"],
    }
    commands["large alone, generate"].append(str(ports["large alone, generate"]))
    for clients in options.clients:
        for name, command in commands.items():
            # A new process each time: nothing is known of these pictures.
            with running(command, ports[name]) as (url, _):
                seconds, total, right = asyncio.run(timed(url, clients, asked))
            p95 = quantiles(seconds, n=20)[-1]
            cells = [
                f"{median(seconds):.3f}",
                f"{p95:.3f}",
                f"{len(asked) / total:.2f}",
                f"{100 * right:.1f}",
            ]
            table.add_row(name, str(clients), *cells)
            console.print(name, clients, *cells)
    console.print(table)


def plain(port: int) -> None:
    """The large model alone behind FastAPI: what one would write in an afternoon."""
    import torch
    import uvicorn

    from sgl_engine.demo import demo_model

    large = demo_model("large")
    model, processor = large.model, large.processor
    app, one_at_a_time = FastAPI(), threading.Lock()

    @app.get("/ready")
    def ready() -> str:
        return "ready"

    @app.post("/v1/chat/completions")
    def chat(asked: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        picture, text = asked["messages"][0]["content"]
        data = picture["image_url"]["url"].partition(",")[2]
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        parts = [{"type": "image", "image": image}, {"type": "text", "text": text["text"]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with one_at_a_time, torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=asked["max_tokens"], do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"choices": [{"message": {"role": "assistant", "content": answer}}]}

    uvicorn.run(app, port=port, log_level="warning")


def main() -> None:
    """Run and print."""
    options, console = parse(), Console(width=110)
    if options.command == "plain":
        plain(options.port)
    elif options.command == "compare":
        console.print({"cores": os.cpu_count()})
        compare(options, console)
    else:
        port = free_port()
        with running(sgl_command(port), port) as (url, process):
            console.print_json(json.dumps(asyncio.run(load(url, process, options))))


if __name__ == "__main__":
    main()
