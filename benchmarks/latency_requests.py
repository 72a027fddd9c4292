"""Comparisons of whole requests: exits, escalations, second questions, batches (``benchmarks.latency``)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count as numbers
from itertools import islice
from typing import Any

import torch
from PIL import Image

from benchmarks.bench_pair import QUESTIONS, Timed, plain_generate
from benchmarks.timing import Comparison, take_turns
from sgl_engine import Request, Response
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages import heldout_pages
from sgl_engine.passes import run_large_pass, run_small_pass

BATCH = 32
_MOST_CHECKS = 10


def early_exit(timed: Timed) -> list[Comparison]:
    """Everything between a picture with a question and the small model's answer."""
    engine = timed.engine(escalate=False)

    def whole(_: int) -> Callable[[], object]:
        request = timed.request()
        return lambda: _check_route(engine.run(request), "small", timed.answer_tokens)

    def plain(_: int) -> Callable[[], object]:
        return plain_generate(timed.small, QUESTIONS[0], timed.picture(), timed.answer_tokens)

    seconds = timed.take_turns(whole, plain)
    return [
        Comparison(
            "whole engine on an early exit / small model's plain generate",
            1.15,
            "<=",
            *seconds,
            note="both from a PIL picture to a text; ours with map, consistency pass and report",
        )
    ]


def accepted_draft(timed: Timed) -> list[Comparison]:
    """An escalation whose small answer is what the large model says anyway."""
    engine = timed.engine(escalate=True)
    accepted: list[float] = []

    def whole(_: int) -> Callable[[], object]:
        request = timed.request()
        engine.draft = _large_answer(timed.cold(), request)

        def work() -> None:
            report = _check_route(engine.run(request), "large", timed.answer_tokens).report
            accepted.append((report.accepted_tokens or 0) / max(1, report.drafted_tokens or 0))

        return work

    def plain(_: int) -> Callable[[], object]:
        return plain_generate(timed.large, QUESTIONS[0], timed.picture(), timed.answer_tokens)

    seconds = timed.take_turns(whole, plain)
    return [
        Comparison(
            "escalated request, draft fully accepted / large alone, plain generate",
            0.60,
            "<=",
            *seconds,
            note="the small pass is run and counted, then its answer is replaced with the large model's own; "
            f"accepted: {min(accepted):.0%} at least",
        )
    ]


def second_question(timed: Timed) -> list[Comparison]:
    """Another question about a picture that was just asked about; and, to compare, about a new one."""
    outcomes = []
    for route, target in (("early exit", 0.35), ("escalated", 0.60)):
        engine = timed.engine(escalate=route == "escalated")
        pictures: dict[int, Any] = {}

        def first(turn: int, pictures: dict[int, Any] = pictures, engine: Any = engine) -> Any:
            pictures[turn] = timed.picture()
            request = timed.request(turn % 2, pictures[turn])
            return lambda: engine.run(request)

        def again(turn: int, pictures: dict[int, Any] = pictures, engine: Any = engine) -> Any:
            request = timed.request(1 - turn % 2, pictures.pop(turn))
            return lambda: engine.run(request)

        cold, warm = timed.take_turns(first, again, swap=False)
        name = f"second question on the same picture / first, {route}"
        outcomes.append(Comparison(name, target, "<=", warm, cold))
        outcomes.append(_other_picture(timed, engine, route))
    return outcomes


def _other_picture(timed: Timed, engine: Any, route: str) -> Comparison:
    def ask(turn: int) -> Callable[[], object]:
        request = timed.request(turn % 2)
        return lambda: engine.run(request)

    seconds = timed.take_turns(ask, ask, repeats=max(1, timed.repeats // 2), warm_up=0)
    return Comparison(f"control: question on another picture / first, {route}", None, "<=", *seconds)


def batch(repeats: int, clock: Callable[[], float], count: int = BATCH) -> list[Comparison]:
    """The bundled pair, many requests: one after the other, and together."""
    engine = demo_engine()
    asked = list(islice(heldout_pages(count), count))
    marks = numbers()

    def marked() -> list[Request]:
        """The same questions about pictures that differ in two pixels, so that no cache knows them."""
        requests = []
        for page, question in asked:
            pixels, mark = page.pixels.copy(), next(marks)
            pixels[0, :2, 0] = mark % 256, mark // 256
            requests.append(Request.ask(question.text, Image.fromarray(pixels)))
        return requests

    def one_by_one(_: int) -> Callable[[], object]:
        given = marked()
        return lambda: [engine.run(request) for request in given]

    def together(_: int) -> Callable[[], object]:
        given = marked()
        return lambda: engine.run_batch(given)

    seconds = take_turns(one_by_one, together, repeats=repeats, now=clock)
    name = f"bundled pair, {count} requests: batched / one by one, requests per second"
    rates = f"{count / min(seconds[1]):.1f} and {count / min(seconds[0]):.1f} a second at best"
    return [Comparison(name, 2.0, ">=", *seconds, note=rates)]


def _check_route(response: Response, route: str, tokens: int) -> Response:
    """The response, if it took the route that is timed, and is as long as it should be."""
    report = response.report
    written = report.small_output_tokens if route == "small" else report.large_output_tokens
    if (report.route, written) != (route, tokens):
        raise RuntimeError(f"A {route} answer of {tokens} tokens became {report.route}, {written}.")
    return response


def _large_answer(timed: Timed, request: Request) -> torch.Tensor:
    """What the large model will say to it under the small one's guidance, int64 (T,).

    Random models hardly prefer one token to the next, and in half precision a token that is checked may come
    out otherwise than one that is written: so what it says is checked until it agrees with itself.
    """
    engine = timed.engine(escalate=True)
    reuse = engine.config.reuse
    small = run_small_pass(
        timed.small, AnswerTask(timed.small.encode(request), timed.answer_tokens), reuse=reuse
    )
    prompt = timed.large.encode(request)
    plan = engine.plan(prompt, small.importance)
    answer = torch.empty(0, dtype=torch.int64)
    for _ in range(_MOST_CHECKS):
        result = run_large_pass(
            timed.large,
            AnswerTask(prompt, timed.answer_tokens, draft=tuple(answer.tolist())),
            plan,
            reuse=reuse,
        )
        if torch.equal(result.generation.token_ids, answer):
            break
        answer = result.generation.token_ids
    return answer
