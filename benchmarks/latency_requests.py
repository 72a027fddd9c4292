"""Comparisons of whole requests: exits, escalations, second questions, batches (``benchmarks.latency``)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count as numbers
from itertools import islice
from statistics import median
from typing import Any, Literal

import torch
from PIL import Image

from benchmarks.bench_pair import QUESTIONS, DraftedEngine, Timed, Weights, plain_generate
from benchmarks.timing import Comparison, take_turns
from sgl_engine import Request, Response
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages import heldout_pages
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.pruning import keep_everything

BATCH = 32
_MOST_CHECKS = 10
_TOP_TOKENS = 5
_TINY_TOKENS = 64


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
            1.08,
            "<=",
            *seconds,
            note="both from a PIL picture to a text; ours with map, consistency pass and report",
        )
    ]


def accepted_draft(timed: Timed) -> list[Comparison]:
    """An escalation whose small answer is what the large model says anyway."""
    return [_accepted_draft(timed, timed.engine(escalate=True), 0.60)]


def accepted_draft_tiles(timed: Timed) -> list[Comparison]:
    """The same, where only tiles of the five most important tokens are encoded."""
    return [_accepted_draft(timed, timed.engine(escalate=True, tiles=_TOP_TOKENS), 0.50)]


def _accepted_draft(timed: Timed, engine: DraftedEngine, target: float) -> Comparison:
    accepted, shown = list[float](), list[float]()
    by = engine.config.pruning.tiles

    def whole(_: int) -> Callable[[], object]:
        request = timed.request()
        engine.draft = _large_answer(timed.cold(), request, by)

        def work() -> None:
            report = _check_route(engine.run(request), "large", timed.answer_tokens).report
            accepted.append((report.accepted_tokens or 0) / max(1, report.drafted_tokens or 0))
            shown.append((report.kept_tiles or 0) / (report.tiles or 1))

        return work

    def plain(_: int) -> Callable[[], object]:
        return plain_generate(timed.large, QUESTIONS[0], timed.picture(), timed.answer_tokens)

    seconds = timed.take_turns(whole, plain)
    skipping = "" if by == "all" else f", tiles of the top {by} tokens"
    return Comparison(
        f"escalated request, draft fully accepted{skipping} / large alone, plain generate",
        target,
        "<=",
        *seconds,
        note="the small pass is run and counted, then its answer is replaced with the large model's own; "
        f"{median(shown):.0%} of the tiles shown; accepted: {min(accepted):.0%} at least",
    )


def second_question(timed: Timed) -> list[Comparison]:
    """Another question about a picture that was just asked about; and, to compare, about a new one."""
    outcomes = []
    for route, target in (("early exit", 0.30), ("escalated", 0.45)):
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


def python_step(repeats: int, clock: Callable[[], float], tokens: int = 64) -> list[Comparison]:
    """What a token costs beside its products: on a model whose products cost next to nothing."""
    timed = Timed(Weights("tiny", torch.float32, "cpu"), _TINY_TOKENS, tokens, repeats, clock)
    vlm, prompt = timed.large, timed.large.encode(timed.request())
    plan, task = keep_everything(prompt), AnswerTask(prompt, tokens, stop_at_eos=False)
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def ours(_: int) -> Callable[[], object]:
        return lambda: run_large_pass(vlm, task, plan)

    def plain(_: int) -> Callable[[], object]:
        def work() -> None:
            with torch.inference_mode():
                vlm.model.generate(**prompt.inputs, **settings)

        return work

    seconds = timed.take_turns(ours, plain)
    per_step = [tuple(each / tokens for each in side) for side in seconds]
    name = "a tiny model's decode step, prompt read / plain generate's"
    return [Comparison(name, 1.0, "<=", per_step[0], per_step[1], note="nearly all of it is Python")]


def _check_route(response: Response, route: str, tokens: int) -> Response:
    """The response, if it took the route that is timed, and is as long as it should be."""
    report = response.report
    written = report.small_output_tokens if route == "small" else report.large_output_tokens
    if (report.route, written) != (route, tokens):
        raise RuntimeError(f"A {route} answer of {tokens} tokens became {report.route}, {written}.")
    return response


def _large_answer(timed: Timed, request: Request, tiles: int | Literal["all"]) -> torch.Tensor:
    """What the large model will say to it under the small one's guidance, int64 (T,).

    Random models hardly prefer one token to the next, and in half precision a token that is checked may come
    out otherwise than one that is written: so what it says is checked until it agrees with itself.
    """
    engine = timed.engine(escalate=True, tiles=tiles)
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
