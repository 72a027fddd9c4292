"""The plug-in: found by its entry point, and answering as the engine does; only where the extra `lmms` is."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from bundled import OVERRULED

models = pytest.importorskip("lmms_eval.models", reason="lmms-eval comes with the extra lmms")

from lmms_eval.api.instance import unwrap_generation_output  # noqa: E402
from lmms_eval.models.model_utils.usage_metrics import (  # noqa: E402
    reset_usage_metrics,
    summarize_usage_metrics,
)
from PIL import Image  # noqa: E402

from sgl_engine import ConfigError, Request, RunReport  # noqa: E402
from sgl_engine.demo import PICTURES  # noqa: E402
from sgl_engine.lmms.model import SGLChatModel, SGLScoringModel  # noqa: E402
from sgl_engine.lmms.requests import decoding  # noqa: E402

SETTINGS = {"max_new_tokens": 8, "until": ["ASSISTANT:"], "temperature": 0, "do_sample": False}
DOCS = [
    {"question": question, "image": Image.open(PICTURES / name).convert("RGB")}
    for question, name in (
        (OVERRULED.question, "page.png"),
        ("How much is the total?", "receipt.png"),
        ("Is there a purple star?", "scene.png"),
    )
]


def to_messages(doc: dict[str, Any], **rounds: Any) -> Any:
    """A task's messages; of a second round, where it is asked for one, and then an end."""
    if rounds:
        over = rounds["round_idx"] > 1
        again = f"{doc['question']} {rounds['previous_output'][-1]}"
        return None if over else _message(doc, again), over, rounds["previous_output"], {"n": 1}
    return _message(doc, doc["question"])


def _message(doc: dict[str, Any], text: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def instance(doc_id: int, messages: Any = to_messages) -> Any:
    return SimpleNamespace(args=("", messages, dict(SETTINGS), doc_id, "drawn", "test"))


@pytest.fixture(scope="module")
def model() -> Any:
    made = models.get_model("sgl").create_from_arg_string(
        "retention=35%,threshold=0.8,batch_size=2", {"device": None, "max_batch_size": 1}
    )
    made.task_dict = {"drawn": {"test": DOCS}}
    return made


def test_lmms_eval_finds_it() -> None:
    manifest = models.get_model_manifest("sgl-cascade")
    assert manifest.model_id == "sgl"
    assert models.get_model("sgl") is SGLChatModel
    assert models.get_model("sgl", force_simple=True) is SGLScoringModel
    assert "sgl" in models.list_available_models()


def test_answers_reports_and_usage_are_the_engines(model: Any) -> None:
    reset_usage_metrics()
    found = model.generate_until([instance(n) for n in range(3)])
    usage = summarize_usage_metrics()
    asked = [Request.ask(doc["question"], doc["image"], max_new_tokens=8) for doc in DOCS]
    responses = [model.engine.run(each) for each in asked]
    routes = set()
    for result, response in zip(found, responses, strict=True):
        text, tokens = unwrap_generation_output(result)
        assert text == response.text
        logged = json.loads(json.dumps(tokens.to_dict()))
        report = RunReport.model_validate(logged["sgl"])
        routes.add(report.route)
        assert (report.route, report.score) == (response.report.route, pytest.approx(response.report.score))
        assert logged["output_tokens"] == getattr(report, f"{report.route}_output_tokens")
    assert routes == {"small", "large"}
    reports = [each.report for each in responses]
    given = sum(each.small_input_tokens + (each.large_input_tokens or 0) for each in reports)
    assert usage["by_task"]["drawn"]["input_tokens"] == given


def test_a_request_that_fails_is_logged_and_the_others_answered(model: Any) -> None:
    def of_video(_: Any) -> Any:
        return [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]

    bad, good = model.generate_until([instance(0, of_video), instance(1)])
    assert bad.text == ""
    assert "asks about a video" in bad.token_counts.to_dict()["sgl"]["error"]
    assert good.text


def test_rounds_go_on_until_the_task_ends_them(model: Any) -> None:
    [texts] = model.generate_until_multi_round([instance(1)])
    assert len(texts) == 2
    again = Request.ask(f"{DOCS[1]['question']} {texts[0]}", DOCS[1]["image"], max_new_tokens=8)
    assert texts[1] == model.engine.run(again).text


def test_the_likeliest_answer_has_the_smallest_number(model: Any) -> None:
    answers = ["yes", "no", "7"]
    requests = [
        SimpleNamespace(
            args=(DOCS[2]["question"], f" {each}", lambda doc: [doc["image"]], 2, "drawn", "test")
        )
        for each in answers
    ]
    found = model.loglikelihood(requests)
    scores = model.engine.score_answers(Request.ask(DOCS[2]["question"], DOCS[2]["image"]), answers)
    assert [-loss for loss, _ in found] == pytest.approx(list(scores.logprobs))
    losses = [loss for loss, _ in found]
    assert answers[losses.index(min(losses))] == scores.best
    assert [greedy for _, greedy in found].count(True) == 1


def test_settings_of_a_task_are_read() -> None:
    assert decoding({"until": "\n", "temperature": 0.2, "do_sample": False}) == {
        "stop": ("\n",),
        "temperature": 0.0,
    }
    sampled = decoding({"temperature": 0.2, "do_sample": True, "top_p": 0.9, "max_new_tokens": 5})
    assert sampled == {"stop": (), "temperature": 0.2, "top_p": 0.9, "max_new_tokens": 5}
    with pytest.raises(ConfigError, match="num_beams is 4"):
        decoding({"num_beams": 4})


def test_one_model_of_two_is_refused() -> None:
    with pytest.raises(ConfigError, match="Only one of the two"):
        SGLChatModel(small="somewhere")
