import json
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from sgl_engine import ImagePart, InvalidRequestError, Message, Request, ToolCall
from sgl_engine.decisions import (
    BareForm,
    BoxQuestion,
    ChoiceQuestion,
    InstructedForm,
    ScoreQuestion,
    YesNoQuestion,
    as_content,
    as_request,
)

PICTURE = ImagePart(Image.new("RGB", (4, 4)))
OTHER = ImagePart(Image.new("RGB", (5, 4)))


def content(state: Any) -> tuple[Any, ...]:
    [message] = as_request(state).messages
    assert message.role == "user"
    return message.content


def test_plain_states_stay_as_they_are() -> None:
    assert content("Hello.") == ("Hello.",)
    assert content(PICTURE) == (PICTURE,)
    assert content(["Look:", PICTURE]) == ("Look:", PICTURE)
    assert content(Message("user", (PICTURE, "What?"))) == (PICTURE, "What?")
    both = [Message("user", ("One.",)), Message("user", (PICTURE, "Two."))]
    assert content(both) == ("One.", "\n\n", PICTURE, "Two.")


def test_a_conversation_is_judged_and_not_continued() -> None:
    calls = (ToolCall("1", "delete", {"path": "/"}),)
    said = [Message("user", ("Delete it.", PICTURE)), Message("assistant", ("Yes.",), tool_calls=calls)]
    before, picture, after = content(said)
    assert picture is PICTURE
    read = json.loads(f'{before}"P"{after}')
    assert read[0] == {"role": "user", "content": ["Delete it.", "P"]}
    assert read[1]["tool_calls"] == [{"name": "delete", "arguments": {"path": "/"}}]


def test_a_message_may_be_empty() -> None:
    read = json.loads(content({"said": [Message("assistant", ()), Message("user", ("Hi",))]})[0])
    assert [message["content"] for message in read["said"]] == [[], "Hi"]


def test_pictures_at_any_depth_stay_in_place() -> None:
    state = {"a": [{"page": PICTURE, "n": 1}], "b": {"deep": {"page": OTHER}}, "c": None}
    first, one, second, two, third = content(state)
    assert (one, two) == (PICTURE, OTHER)
    read = json.loads(f'{first}"P"{second}"Q"{third}')
    assert read == {"a": [{"page": "P", "n": 1}], "b": {"deep": {"page": "Q"}}, "c": None}


def test_a_text_cannot_spell_a_picture() -> None:
    parts = content({"a": PICTURE, "b": "picture-0"})
    assert [part for part in parts if isinstance(part, ImagePart)] == [PICTURE]
    assert "picture-0" in parts[-1]


def test_a_mapping_of_ones_own_is_an_object() -> None:
    class Own(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return {"x": 1}[key]

        def __iter__(self) -> Any:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    assert json.loads(content({"own": Own()})[0]) == {"own": {"x": 1}}


@pytest.mark.parametrize("state", [{"a": object()}, [b"bytes"], {("a", "b"): 1}])
def test_what_is_no_state(state: Any) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
        as_request(state)


def test_a_request_keeps_its_settings() -> None:
    given = Request((Message("user", (PICTURE,)),), cache_salt="mine", deadline=5.0)
    made = as_request(given)
    assert (made.cache_salt, made.deadline, made.messages[0].content) == ("mine", 5.0, (PICTURE,))


def test_content() -> None:
    assert as_content("text") == "text"
    assert as_content({"a": PICTURE})[1] is PICTURE


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: YesNoQuestion(" "), "empty"),
        (lambda: BoxQuestion(()), "empty"),
        (lambda: ChoiceQuestion("Which?", []), "0 for labels"),
        (lambda: ChoiceQuestion("Which?", "ab"), "a text"),
        (lambda: ChoiceQuestion("Which?", [str(n) for n in range(256)]), "256"),
        (lambda: ChoiceQuestion("Which?", ["a", "a"]), "not all different"),
        (lambda: ChoiceQuestion("Which?", ["a", " "]), "empty"),
        (lambda: ChoiceQuestion("Which?", ["a", "b"], ["only one"]), "1 descriptions for 2"),
        (lambda: ScoreQuestion("How much?", ["one"]), "1 for levels"),
        (lambda: ScoreQuestion("How much?", ["a little", "much", "a little "]), "'a little' is there twice"),
    ],
)
def test_questions_that_cannot_be_asked(make: Any, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        make()


def texts(parts: tuple[Any, ...]) -> str:
    return "".join(part if isinstance(part, str) else "[picture]" for part in parts)


def test_an_instructed_form_lists_what_can_be_answered() -> None:
    form, choice = InstructedForm(), ChoiceQuestion("Which?", ["cat", "dog"], ["It meows.", PICTURE])
    put = form.put(choice, (1, 0), "mean")
    assert texts(put.content).splitlines()[:3] == ["Which?", "- dog: [picture]", "- cat: It meows."]
    assert [option.texts for option in put.options] == [("cat",), ("dog",)]
    assert not put.whole
    letters = form.put(choice, (1, 0), "letters")
    assert texts(letters.content).splitlines()[:3] == ["Which?", "A. dog: [picture]", "B. cat: It meows."]
    assert [option.texts for option in letters.options] == [("B",), ("A",)]  # in the question's order
    assert letters.whole
    score = form.put(ScoreQuestion("How much?", ["little", "much"]), (1, 0), "mean")
    assert texts(score.content).splitlines()[2:4] == ["1: much", "0: little"]
    yes = form.put(YesNoQuestion("Is it?", no="It is not."), (1, 0), "mean")
    assert texts(yes.content) == "Is it?\nNo: It is not.\nAnswer No or Yes."
    assert "Yes" in yes.options[0].says


def test_more_labels_than_letters() -> None:
    choice = ChoiceQuestion("Which?", [str(n) for n in range(255)])
    put = InstructedForm().put(choice, tuple(range(255)), "letters")
    named = [option.says[0] for option in put.options]
    assert len(set(named)) == 255
    assert {len(name) for name in named} == {2}  # none is the beginning of another


def test_a_bare_form_adds_nothing() -> None:
    form = BareForm()
    assert form.put(ChoiceQuestion("Which?", ["cat", "dog"], ["x", "y"]), (1, 0), "mean").content == (
        "Which?",
    )
    assert form.put(BoxQuestion("Where?"), (0,), "mean").content == ("Where?",)
    with pytest.raises(InvalidRequestError, match="is a picture"):
        form.put(ScoreQuestion("How much?", ["little", (PICTURE,)]), (0, 1), "mean")


def test_a_message_of_calls_alone_is_evidence_too() -> None:
    call = ToolCall("c1", "look", {"at": "it"})
    [message] = as_request(
        [Message("user", ("Look.",)), Message("assistant", (), tool_calls=(call,))]
    ).messages
    said = json.loads(str(message.content[0]))[1]
    assert said == {
        "role": "assistant",
        "content": [],
        "tool_calls": [{"name": "look", "arguments": {"at": "it"}}],
    }
