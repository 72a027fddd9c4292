"""Decisions of the bundled pair and of scripted engines: who answers, what it says, and what it costs."""

import math
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from samples import noise

from sgl_engine import (
    AnswerScores,
    ConfigError,
    DeadlineError,
    EngineConfig,
    ExitConfig,
    ImagePart,
    InvalidRequestError,
    Message,
    Request,
    RequestCancelledError,
    SGLEngine,
)
from sgl_engine.config import ReuseConfig
from sgl_engine.decisions import (
    BoxAnswer,
    BoxQuestion,
    ChoiceAnswer,
    ChoiceQuestion,
    DecisionConfig,
    DecisionQuestion,
    RefusedAnswer,
    ScoreAnswer,
    ScoreQuestion,
    YesNoAnswer,
    YesNoQuestion,
    decide,
)
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.testing import FakeEngine, tiny_vlm

BARE = DecisionConfig(form="bare")
SCENE = [ImagePart(PICTURES / "scene.png")]
COLOR = ChoiceQuestion("What color is the shape with number 18?", ["red", "orange", "blue"])
COUNT = ScoreQuestion("How many stars are there?", ["0", "1", "2", "3"])
HIGHER = YesNoQuestion("is dec higher than may")
TWO: dict[str, DecisionQuestion] = {"color": COLOR, "count": COUNT}


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return demo_engine()


def small_only(engine: SGLEngine) -> SGLEngine:
    return engine.with_config(engine.config.escalating("never"))


def test_every_type_is_answered(engine: SGLEngine) -> None:
    where = BoxQuestion("What color is the shape with number 18?")
    made = decide(engine, SCENE, {"color": COLOR, "count": COUNT, "where": where, "higher": HIGHER}, BARE)
    assert list(made.answers) == list(made.reports) == ["color", "count", "where", "higher"]
    color, count, box, higher = made.answers.values()
    assert isinstance(color, ChoiceAnswer)
    assert color.choice == "orange"
    assert list(color.probabilities) == ["red", "orange", "blue"]
    assert sum(color.probabilities.values()) == pytest.approx(1)
    assert isinstance(count, ScoreAnswer)
    assert count.score == pytest.approx(sum(n * p for n, p in enumerate(count.probabilities)))
    assert isinstance(box, BoxAnswer)
    left, top, right, bottom = box.box
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    assert 0 < box.confidence < 1
    assert isinstance(higher, YesNoAnswer)
    assert made.reports["where"].policy == "map"
    assert made.input_tokens > made.known_tokens > 0
    assert made.output_tokens > 0


def test_probabilities_are_those_of_the_scores(engine: SGLEngine) -> None:
    """The oracle: ``score_answers`` of the same question, and the definition."""
    never = small_only(engine)
    answer = decide(never, SCENE, {"color": COLOR}, BARE).answers["color"]
    asked = Request.ask(COLOR.instructions, PICTURES / "scene.png")
    assert isinstance(answer, ChoiceAnswer)
    scores = never.score_answers(asked, list(COLOR.labels))
    assert list(answer.probabilities.values()) == pytest.approx(scores.shares, abs=1e-4)
    by_mean = DecisionConfig(form="bare", labels="mean")
    by_token = decide(never, SCENE, {"color": COLOR}, by_mean).answers["color"]
    assert isinstance(by_token, ChoiceAnswer)
    means = [math.exp(sum(tokens) / len(tokens)) for tokens in scores.token_logprobs]
    expected = [value / sum(means) for value in means]
    assert list(by_token.probabilities.values()) == pytest.approx(expected, abs=1e-4)
    assert list(answer.probabilities.values()) != pytest.approx(expected, abs=1e-2)  # the control


@pytest.fixture(scope="module")
def torn(engine: SGLEngine) -> tuple[SGLEngine, str, str]:
    """An engine that is sure enough of one of the two questions, and which; then the other."""
    reports = decide(small_only(engine), SCENE, TWO, BARE).reports
    unsure, sure = sorted(reports, key=lambda name: reports[name].score)
    assert reports[sure].score - reports[unsure].score > 0.01
    between = (reports[sure].score + reports[unsure].score) / 2
    leaving = engine.config.exit.model_copy(update={"threshold": between})
    return engine.with_config(engine.config.model_copy(update={"exit": leaving})), sure, unsure


def test_questions_escalate_alone(torn: tuple[SGLEngine, str, str]) -> None:
    engine, sure, unsure = torn
    made = decide(engine, SCENE, TWO, BARE)
    kept, asked = made.reports[sure], made.reports[unsure]
    assert (kept.route, kept.escalated, kept.large_tflops) == ("small", False, 0)
    assert (asked.route, asked.escalated) == ("large", True)
    assert asked.score < asked.threshold <= kept.score
    assert asked.small_best is not None
    assert asked.large_tflops > 0
    alone = decide(engine, SCENE, {unsure: TWO[unsure]}, BARE)
    assert alone.answers[unsure].probabilities == pytest.approx(  # type: ignore[union-attr]
        made.answers[unsure].probabilities,  # type: ignore[union-attr]
        abs=1e-4,
    )


@pytest.mark.parametrize(("escalate", "route"), [("never", "small"), ("always", "large")])
def test_routes_can_be_forced(engine: SGLEngine, escalate: Any, route: str) -> None:
    forced = engine.with_config(engine.config.escalating(escalate))
    report = decide(forced, SCENE, {"color": COLOR, "count": COUNT}, BARE).reports["color"]
    assert (report.route, report.policy) == (route, "forced")


def test_a_budget_keeps_the_small_answer(torn: tuple[SGLEngine, str, str]) -> None:
    engine, _, unsure = torn
    state = Request((Message("user", tuple(SCENE)),), may_escalate=lambda: False)
    asked = {unsure: TWO[unsure]}
    made = decide(engine, state, asked, BARE)
    assert (made.reports[unsure].route, made.reports[unsure].policy) == ("small", "forced")
    never = decide(small_only(engine), SCENE, asked, BARE)
    assert made.answers[unsure] == never.answers[unsure]


def test_questions_that_cannot_be_put_are_refused_alone(engine: SGLEngine) -> None:
    picture = ScoreQuestion("How much?", ["little", SCENE])
    made = decide(engine, "only text", {"bad": picture, "box": BoxQuestion("it"), "good": HIGHER}, BARE)
    bad, box, good = made.answers.values()
    assert isinstance(bad, RefusedAnswer)
    assert isinstance(box, RefusedAnswer)
    assert "no picture" in box.reason
    assert isinstance(good, YesNoAnswer)
    assert list(made.reports) == ["good"]


def test_a_broken_picture_is_every_questions_reason(engine: SGLEngine) -> None:
    made = decide(engine, [ImagePart(b"no picture")], {"a": COLOR, "b": BoxQuestion("it")}, BARE)
    assert all(isinstance(answer, RefusedAnswer) for answer in made.answers.values())


def test_what_is_too_late_or_not_wanted_is_no_refusal(engine: SGLEngine) -> None:
    late = Request((Message("user", tuple(SCENE)),), deadline=time.monotonic() - 1)
    with pytest.raises(DeadlineError):
        decide(engine, late, {"color": COLOR}, BARE)
    cancel = threading.Event()
    cancel.set()
    unwanted = Request((Message("user", tuple(SCENE)),), cancel=cancel)
    with pytest.raises(RequestCancelledError):
        decide(engine, unwanted, {"where": BoxQuestion("it")}, BARE)


@pytest.mark.parametrize("count", [0, 401])
def test_how_many_questions(engine: SGLEngine, count: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{count} questions"):
        decide(engine, "x", {str(n): HIGHER for n in range(count)}, BARE)


def test_as_many_questions_as_there_may_be() -> None:
    """One prefix for all, each answered as it would be alone, in order."""
    config = EngineConfig(reuse=ReuseConfig(min_prefix_tokens=1))  # so short a prefix is kept, too
    tiny = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config)
    never, picture = small_only(tiny), ImagePart(noise(40, 30))
    asked = {f"q{n}": YesNoQuestion(f"Are there {n} of them?") for n in range(400)}
    made = decide(never, picture, asked, BARE)
    assert list(made.answers) == list(made.reports) == list(asked)
    seen = tiny.cache_info()["small"]
    assert (seen.pixel_misses, seen.pixel_hits) == (1, 1)  # 256 and 144 questions: each part reads it once
    assert (seen.feature_misses, seen.prefix_misses) == (1, 1)
    known = [report.small_known_tokens for report in made.reports.values()]
    assert sum(each < 16 for each in known) == 1  # the picture has 16 tokens: one question paid for it
    assert made.input_tokens == sum(report.small_input_tokens for report in made.reports.values())
    probabilities = []
    for name in ("q0", "q7", "q399"):
        alone = decide(never, picture, {"q": asked[name]}, BARE)
        assert made.answers[name].probability == pytest.approx(alone.answers["q"].probability, abs=1e-4)  # type: ignore[union-attr]
        assert made.reports[name].small_input_tokens == alone.reports["q"].small_input_tokens
        probabilities.append(alone.answers["q"].probability)  # type: ignore[union-attr]
    assert len({round(each, 4) for each in probabilities}) == 3  # the control: answers differ


POINTING = DecisionConfig(boxes="generated")


def pointed(text: str, score: float = 0.9, *pictures: ImagePart) -> Any:
    """What becomes of a text that the small model, or the large one, writes where a box is asked for."""
    scripted = FakeEngine(lambda request: text, score=score)
    scripted = scripted.with_config(scripted.config.escalating("never"))  # type: ignore[assignment]
    made = decide(scripted, pictures or (ImagePart(noise(40, 30)),), {"q": BoxQuestion("the fox")}, POINTING)
    return made.answers["q"], made.reports.get("q")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[100, 200, 300, 400]", (0.1, 0.2, 0.3, 0.4)),
        ("[0,0,1000,1000]", (0, 0, 1, 1)),
        (" [100.0, 200, 300, 2000]", (0.1, 0.2, 0.3, 1)),
    ],
)
def test_boxes_that_a_model_writes(text: str, box: Any) -> None:
    answer, report = pointed(text, 0.75)
    assert isinstance(answer, BoxAnswer)
    assert answer.box == pytest.approx(box)
    assert (answer.confidence, answer.image) == (pytest.approx(0.75, abs=1e-3), 0)
    assert (report.route, report.policy) == ("small", "forced")
    assert report.small_output_tokens > 0


@pytest.mark.parametrize(
    "text",
    [
        "[300, 200, 100, 400]",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        '{"left": 1, "top": 2, "right": 3, "bottom": 4}',
        '["1", "2", "3", "4"]',
        "[false, false, true, true]",
        "[NaN, 0, 1000, 1000]",
        "[" * 20,
        "there",
    ],
)
def test_what_is_no_box_is_refused(text: str) -> None:
    answer, report = pointed(text)
    assert isinstance(answer, RefusedAnswer)
    assert "is no box" in answer.reason
    assert text in answer.reason
    assert report is None


def test_a_tiny_model_points_and_escalates() -> None:
    """Coordinates by constrained decoding: whatever it writes is four numbers, a box or none."""
    tiny = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))
    asked = {f"q{n}": BoxQuestion(f"the {n}th fox") for n in range(3)}
    forced = tiny.with_config(tiny.config.escalating("always"))
    made = decide(forced, ImagePart(noise(40, 30)), asked, POINTING)
    for name, answer in made.answers.items():
        assert isinstance(answer, (BoxAnswer, RefusedAnswer))
        if isinstance(answer, RefusedAnswer):
            assert re.search(r"answered '\[\d+, ?\d+, ?\d+, ?\d+\]', which is no box", answer.reason)
        else:
            assert made.reports[name].route == "large"


def test_coordinates_do_not_say_of_which_picture_they_are() -> None:
    answer, _ = pointed("[1, 2, 3, 4]", 0.9, ImagePart(noise(40, 30)), ImagePart(noise(40, 30, 1)))
    assert isinstance(answer, RefusedAnswer)
    assert "2 pictures" in answer.reason


def test_there_is_no_such_form(engine: SGLEngine) -> None:
    with pytest.raises(ConfigError, match="no form 'loud'"):
        decide(engine, "x", {"a": HIGHER}, DecisionConfig(form="loud"))


class Scripted:
    """An engine that prefers whatever the prompt lists first, by a known amount."""

    def __init__(self) -> None:
        self.config = EngineConfig().escalating("never")
        self.asked: list[str] = []
        self.inner = demo_engine()

    def score_batch(
        self, requests: Sequence[Request], answers: Sequence[Sequence[str]], *, model: str
    ) -> list[AnswerScores]:
        report = self.inner.score_answers(Request.ask("x"), ["y"], model=model).report  # type: ignore[arg-type]
        found = []
        for request, texts in zip(requests, answers, strict=True):
            prompt = "".join(part for part in request.messages[0].content if isinstance(part, str))
            self.asked.append(prompt)
            first = min(texts, key=lambda text: prompt.index(f"- {text}"))
            logs = tuple((math.log(0.7 if text == first else 0.1),) for text in texts)
            found.append(AnswerScores(tuple(texts), tuple(log for (log,) in logs), report, logs))
        return found


def distribution(permutations: int) -> list[float]:
    labels: DecisionQuestion = ChoiceQuestion("Which?", ["a1", "b2"])
    settings = DecisionConfig(permutations=permutations)
    answer = decide(Scripted(), "x", {"q": labels}, settings).answers["q"]  # type: ignore[arg-type]
    assert isinstance(answer, ChoiceAnswer)
    return list(answer.probabilities.values())


def test_permutations_average_a_bias_away() -> None:
    assert distribution(1) == pytest.approx([0.875, 0.125])  # the control: the first one is preferred
    assert distribution(2) == pytest.approx([0.5, 0.5])


def test_a_form_that_lists_nothing_asks_once(engine: SGLEngine) -> None:
    made = decide(engine, SCENE, {"color": COLOR}, DecisionConfig(form="bare", permutations=6))
    assert made.reports["color"].orders == 1
    assert decide(engine, "x", {"h": HIGHER}, DecisionConfig(permutations=6)).reports["h"].orders == 2


def test_a_calibration_of_generated_answers_says_nothing_about_decisions() -> None:
    scripted = Scripted()
    scripted.config = EngineConfig(exit=ExitConfig(calibration=Path("of-answers.json"), threshold=0.0))
    labels = ChoiceQuestion("Which?", ["a1", "b2"])
    report = decide(scripted, "x", {"q": labels}).reports["q"]  # type: ignore[arg-type]
    assert (report.policy, report.route) == ("uncovered", "large")
