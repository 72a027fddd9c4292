"""Standard tests for decision models of any provider; needs pytest and langchain-core, and nothing of ours.

    class TestMyDecisionModel(DecisionModelTests):
        decision_model_class = MyDecisionModel
        decision_model_params = {"model": "my-model"}
        supports_box = False

Whether answers are right is not tested, only that they are what the interface promises.
"""
# ruff: noqa: D102  # these are tests, named for what they hold

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any, ClassVar

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.decisions import (
    BaseDecisionModel,
    Box,
    Choice,
    ChoiceAnswer,
    ClassifierResponse,
    Noul,
    NoulCriteria,
    Question,
    Score,
    ScoreAnswer,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda

NOUL = Noul(instructions="Does the message ask for help?")
CHOICE = Choice(
    instructions="Which team should answer?",
    criteria={"billing": "Payments and invoices.", "technical": "Faults of the product.", "other": None},
)
SCORE = Score(instructions="How urgent is it?", criteria=["Not at all.", "Soon.", "At once."])
BOX = Box(instructions="The dark square.")
STATE = "Nothing works since this morning. Please help!"
CONVERSATION = [
    SystemMessage("You answer customers."),
    HumanMessage(STATE),
    AIMessage("What does it say?"),
    HumanMessage("Error 12."),
]


def png() -> str:
    """A grey picture with a dark square in it, 32 by 32, as base64."""
    rows = b"".join(
        b"\0" + bytes(20 if 8 <= x < 16 and 8 <= y < 16 else 200 for x in range(32)) for y in range(32)
    )
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def picture() -> dict[str, str]:
    """LangChain's standard block of it."""
    return {"type": "image", "base64": png(), "mime_type": "image/png"}


class Recorder(BaseCallbackHandler):
    """Keeps the metadata of every run that begins."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []

    def on_chain_start(self, *args: Any, metadata: dict[str, Any] | None = None, **_: Any) -> None:
        """Notes a run's metadata."""
        del args
        self.metadata.append(metadata or {})

    on_llm_start = on_chain_start


def check_distribution(probabilities: Any, confidence: float) -> None:
    """Checks that probabilities are a distribution, and that a confidence is in [0, 1]."""
    assert all(0 <= probability <= 1 for probability in probabilities)
    assert math.fsum(probabilities) == pytest.approx(1, abs=1e-3)
    assert 0 <= confidence <= 1


class DecisionModelTests:
    """Subclass it, name the model, and say what it does not support.

    Attributes:
        decision_model_class: The model's class.
        decision_model_params: What it is made with.
        supports_box: Whether it locates things; else it has to raise.
        supports_images: Whether it reads pictures; else it has to raise.
        supports_criteria: Whether it takes descriptions of yes and no.
        returns_usage: Whether it counts tokens.
        max_questions: So many questions of one call are tried.
    """

    decision_model_class: ClassVar[type[BaseDecisionModel]]
    decision_model_params: ClassVar[dict[str, Any]] = {}
    supports_box: ClassVar[bool] = True
    supports_images: ClassVar[bool] = True
    supports_criteria: ClassVar[bool] = True
    returns_usage: ClassVar[bool] = True
    max_questions: ClassVar[int] = 12

    @pytest.fixture
    def model(self) -> BaseDecisionModel:
        """The model."""
        return self.decision_model_class(**self.decision_model_params)

    def ask(
        self, model: BaseDecisionModel, state: Any, questions: dict[str, Question], **config: Any
    ) -> ClassifierResponse:
        """Asks, and checks what holds for every response."""
        response = model.invoke({"state": state, "questions": questions}, config or None)  # type: ignore[arg-type]
        assert isinstance(response, ClassifierResponse)
        assert list(response.answers) == list(questions)
        assert [answer.type for answer in response.answers.values()] == [q.type for q in questions.values()]
        return response

    def test_it_has_a_name(self, model: BaseDecisionModel) -> None:
        assert isinstance(model, BaseDecisionModel)
        assert model.model
        assert self.ask(model, STATE, {"help": NOUL}).model

    def test_noul(self, model: BaseDecisionModel) -> None:
        assert 0 <= self.ask(model, STATE, {"help": NOUL}).nouls["help"].noul <= 1

    def test_noul_with_criteria(self, model: BaseDecisionModel) -> None:
        if not self.supports_criteria:
            pytest.skip("takes no criteria")
        criteria = NoulCriteria(true="Somebody is stuck.", false={"examples": ["Thanks!"]})
        asked = Noul(instructions="Does the message ask for help?", criteria=criteria)
        assert 0 <= self.ask(model, STATE, {"help": asked}).nouls["help"].noul <= 1

    def test_choice(self, model: BaseDecisionModel) -> None:
        answer = self.ask(model, STATE, {"team": CHOICE}).choices["team"]
        assert isinstance(answer, ChoiceAnswer)
        assert set(answer.probabilities) == set(CHOICE.criteria)
        check_distribution(answer.probabilities.values(), answer.confidence)
        assert answer.probabilities[answer.choice] == max(answer.probabilities.values())

    def test_choice_of_one_label(self, model: BaseDecisionModel) -> None:
        asked = Choice(instructions="Which team?", criteria={"support": None})
        answer = self.ask(model, STATE, {"team": asked}).choices["team"]
        assert answer.choice == "support"
        assert answer.probabilities == pytest.approx({"support": 1.0})

    def test_score(self, model: BaseDecisionModel) -> None:
        answer = self.ask(model, STATE, {"urgent": SCORE}).scores["urgent"]
        assert isinstance(answer, ScoreAnswer)
        assert answer.legend == dict(enumerate(SCORE.criteria))
        assert set(answer.probabilities) == {0, 1, 2}
        check_distribution(answer.probabilities.values(), answer.confidence)
        expected = math.fsum(level * share for level, share in answer.probabilities.items())
        assert answer.score == pytest.approx(expected, abs=1e-2)

    def test_box(self, model: BaseDecisionModel) -> None:
        state = {"picture": picture()}
        if not (self.supports_box and self.supports_images):
            with pytest.raises(Exception):  # noqa: B017, PT011  # whichever the provider has
                model.invoke({"state": state, "questions": {"where": BOX}})
            return
        answer = self.ask(model, state, {"where": BOX}).boxes["where"]
        box = answer.box
        assert 0 <= box.top < box.bottom <= 1
        assert 0 <= box.left < box.right <= 1
        assert answer.confidence is None or 0 <= answer.confidence <= 1

    def test_questions_of_all_types_keep_their_names(self, model: BaseDecisionModel) -> None:
        response = self.ask(model, STATE, {"z": SCORE, "a": NOUL, "a question": CHOICE, "1": NOUL})
        assert list(response.nouls) == ["a", "1"]
        assert list(response.choices) == ["a question"]
        assert list(response.scores) == ["z"]

    def test_many_questions(self, model: BaseDecisionModel) -> None:
        kinds: list[Question] = [NOUL, CHOICE, SCORE]
        self.ask(model, STATE, {f"q{n}": kinds[n % 3] for n in range(self.max_questions)})

    @pytest.mark.parametrize(
        "state",
        [
            STATE,
            HumanMessage(STATE),
            CONVERSATION,
            {"ticket": {"text": STATE, "tags": ["a", 1, None, True]}},
            [{"id": 1}, "text", 2.5],
            {"messages": CONVERSATION, "tool_call": {"name": "close", "args": {"id": 3}}},
        ],
        ids=["text", "message", "conversation", "object", "array", "messages in an object"],
    )
    def test_states(self, model: BaseDecisionModel, state: Any) -> None:
        self.ask(model, state, {"help": NOUL, "team": CHOICE})

    @pytest.mark.parametrize("where", ["message", "object", "array"])
    def test_pictures_anywhere(self, model: BaseDecisionModel, where: str) -> None:
        message = HumanMessage([{"type": "text", "text": "Look."}, picture()])
        state: Any = {"message": message, "object": {"page": {"scan": picture()}}, "array": [picture()]}[
            where
        ]
        if self.supports_images:
            self.ask(model, state, {"help": NOUL})
            return
        with pytest.raises(Exception):  # noqa: B017, PT011  # whichever the provider has
            model.invoke({"state": state, "questions": {"help": NOUL}})

    def test_structured_instructions(self, model: BaseDecisionModel) -> None:
        asked = Noul(instructions={"task": "Does it ask for help?", "examples": [{"text": "Help!"}]})
        self.ask(model, STATE, {"help": asked})

    def test_the_state_and_questions_are_left_as_they_are(self, model: BaseDecisionModel) -> None:
        state: dict[str, Any] = {"messages": [HumanMessage(STATE)], "n": [1]}
        questions: dict[str, Question] = {"team": CHOICE.model_copy(deep=True)}
        self.ask(model, state, questions)
        assert state == {"messages": [HumanMessage(STATE)], "n": [1]}
        assert questions == {"team": CHOICE}

    async def test_ainvoke(self, model: BaseDecisionModel) -> None:
        response = await model.ainvoke({"state": STATE, "questions": {"help": NOUL, "team": CHOICE}})
        assert list(response.answers) == ["help", "team"]

    def test_batch(self, model: BaseDecisionModel) -> None:
        requests: list[Any] = [{"state": f"{STATE} {n}", "questions": {f"q{n}": NOUL}} for n in range(3)]
        assert [list(response.answers) for response in model.batch(requests)] == [["q0"], ["q1"], ["q2"]]

    async def test_abatch(self, model: BaseDecisionModel) -> None:
        requests: list[Any] = [{"state": STATE, "questions": {f"q{n}": SCORE}} for n in range(2)]
        assert [list(response.answers) for response in await model.abatch(requests)] == [["q0"], ["q1"]]

    def test_in_a_chain(self, model: BaseDecisionModel) -> None:
        request: Any = RunnableLambda(lambda text: {"state": text, "questions": {"team": CHOICE}})
        chain = request | model | RunnableLambda(lambda response: response.choices["team"].choice)
        assert chain.invoke(STATE) in CHOICE.criteria

    def test_usage(self, model: BaseDecisionModel) -> None:
        usage = self.ask(model, STATE, {"help": NOUL}).usage
        if not self.returns_usage:
            assert usage is None
            return
        assert usage is not None
        assert all(isinstance(usage[name], int) for name in ("input_tokens", "output_tokens", "total_tokens"))
        assert usage["input_tokens"] > 0
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    def test_traces_name_provider_and_model(self, model: BaseDecisionModel) -> None:
        recorder = Recorder()
        self.ask(model, STATE, {"help": NOUL}, callbacks=[recorder], metadata={"mine": 1})
        metadata, *inner = recorder.metadata  # of the decision; then of what it asks, if that is told
        assert all(each["mine"] == 1 for each in inner)
        assert metadata["ls_provider"] == model._provider  # noqa: SLF001  # what the interface names it
        assert metadata["ls_model_name"] == model.model
        assert metadata["mine"] == 1

    def test_a_response_survives_json(self, model: BaseDecisionModel) -> None:
        response = self.ask(model, STATE, {"help": NOUL, "team": CHOICE, "urgent": SCORE})
        again = type(response).model_validate_json(response.model_dump_json())
        assert again.answers == response.answers
