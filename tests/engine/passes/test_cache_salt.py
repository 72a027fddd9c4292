"""Tenants share nothing: what is known under one salt is unknown under another, and answers are the same."""

import dataclasses
from typing import Any

import pytest
from samples import noise

from sgl_engine import EngineConfig, InvalidRequestError, Message, Request, SGLEngine
from sgl_engine.config import ReuseConfig
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.request import ImagePart
from sgl_engine.response import Response
from sgl_engine.testing import tiny_vlm

PICTURE = noise(60, 50)
SECRET = "The tenants' own rules stand before the picture, and are of some length, as rules are. " * 3


def make_engine(family: str = "internvl") -> SGLEngine:
    config = EngineConfig(reuse=ReuseConfig(min_prefix_tokens=1)).escalating("always")
    return SGLEngine(tiny_vlm(family), tiny_vlm(family, size="large"), config)


def ask(question: str, salt: str | None, picture: Any = PICTURE) -> Request:
    request = Request.ask(question, picture, max_new_tokens=4)
    return dataclasses.replace(request, cache_salt=salt)


def known(response: Response) -> tuple[int | None, ...]:
    report = response.report
    return (
        report.small_known_pictures,
        report.small_known_tokens,
        report.large_known_pictures,
        report.large_known_tokens,
    )


def said(response: Response) -> tuple[Any, ...]:
    report = response.report
    return response.text, report.small_answer, round(report.score, 5)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_only_requests_of_one_salt_share(family: str) -> None:
    engine = make_engine(family)
    first = engine.run(ask("What is it?", "tenant 1"))
    other = engine.run(ask("What is it?", "tenant 2"))
    nobodys = engine.run(ask("What is it?", None))
    again = engine.run(ask("What is it?", "tenant 1"))
    for response in (first, other, nobodys):
        assert not any(known(response))
    assert again.report.small_known_pictures == again.report.large_known_pictures == 1
    assert said(first) == said(other) == said(nobodys) == said(again)
    small, large = engine.cache_info().values()
    assert (small.pixel_hits, small.pixel_misses) == (1, 3)
    assert (large.pixel_hits, large.pixel_misses) == (4, 0)  # its image processor is the same
    for info in (small, large):
        assert (info.feature_hits, info.feature_misses) == (1, 3)


def test_what_stands_before_a_picture_is_not_shared_either() -> None:
    engine = make_engine()

    def conversation(salt: str | None, seed: int) -> Request:
        messages = (
            Message("system", (SECRET,)),
            Message("user", (ImagePart(noise(60, 50, seed=seed)), "What is it?")),
        )
        return Request(messages, max_new_tokens=2, cache_salt=salt)

    engine.run(conversation("tenant 1", 1))
    assert known(engine.run(conversation("tenant 2", 2))) == (0, 0, 0, 0)
    assert known(engine.run(conversation(None, 3))) == (0, 0, 0, 0)
    report = engine.run(conversation("tenant 1", 4)).report  # the control: the same words, another picture
    assert report.small_known_tokens > 20
    assert report.small_known_pictures == 0


def test_requests_side_by_side_share_within_their_salt_alone() -> None:
    salts = ("tenant 1", "tenant 1", "tenant 2", None)
    apart = [make_engine().run(ask(f"Question {n}?", salt)) for n, salt in enumerate(salts)]
    engine = make_engine()
    for _ in range(2):
        together = engine.run_batch([ask(f"Question {n}?", salt) for n, salt in enumerate(salts)])
        assert [said(each) for each in together] == [said(each) for each in apart]  # type: ignore[arg-type]
    small, large = engine.cache_info().values()
    assert (small.pixel_misses, small.feature_misses, large.feature_misses) == (3, 3, 3)  # of three tenants


def test_given_answers_are_scored_apart() -> None:
    engine = make_engine()
    scores = [engine.score_answers(ask("Yes?", salt), ["yes", "no"]) for salt in ("a", "b", "a")]
    assert [each.report.small_known_pictures for each in scores] == [0, 0, 1]
    assert scores[0].logprobs == pytest.approx(scores[1].logprobs, abs=1e-5)


@pytest.mark.parametrize("salt", ["", 5, b"salt", "\ud800"])
def test_a_salt_that_is_none_is_named(salt: Any) -> None:
    """An empty one would put all tenants whose name was lost into one group."""
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        make_engine().run(ask("What is it?", salt))
