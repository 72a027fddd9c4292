"""Output that is special tokens: kept where repository or caller say so, and never lost in silence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repositories import write
from samples import noise

from sgl_engine import VLM, Request, SGLEngine
from sgl_engine.config import EngineConfig
from sgl_engine.decoding.answer import Answer, AnswerTask, Generation
from sgl_engine.decoding.loop import token_logprobs
from sgl_engine.request import Decoding

ASKED = Request.ask("Convert this page to docling.", noise(40, 30), max_new_tokens=24)
PAGE = "<doctag><title><loc_1><loc_2>The fox</title>\n<text>is blue</text></doctag>"
MARKS = ["<doctag>", "<title>", "<loc_1>", "<loc_2>", "</title>", "<text>", "</text>", "</doctag>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("idefics3 doctags", tmp_path_factory.mktemp("models") / "docling")


@pytest.fixture(scope="module")
def reader(folder: Path) -> VLM:
    return VLM.from_pretrained(folder)


def say(vlm: VLM, text: str, decoding: Decoding) -> tuple[Generation, str]:
    answer = Answer(vlm, AnswerTask(vlm.encode(ASKED), 40, decoding))
    streamed = ""
    for token in vlm.processor.tokenizer.encode(text, add_special_tokens=False):
        streamed += answer.take(torch.eye(vlm.vocab_size)[token] * 50)
    return answer.generation(), streamed


def test_the_caller_keeps_them(reader: VLM) -> None:
    said, streamed = say(reader, f"{PAGE}<|end_of_text|>", Decoding(skip_special_tokens=False))
    assert said.text == streamed == PAGE
    assert said.left_out == ()
    assert "".join(each.token for each in token_logprobs(reader, said)) == PAGE


@pytest.mark.parametrize("origin", [{}, {"_from_model_config": True}])
def test_the_repository_keeps_them(folder: Path, tmp_path: Path, origin: dict[str, bool]) -> None:
    """Also where its file says that transformers made it of another, which drops what it does not know."""
    shutil.copytree(folder, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    changed = json.dumps({**settings, "skip_special_tokens": False, **origin})
    (tmp_path / "model" / "generation_config.json").write_text(changed)
    vlm = VLM.from_pretrained(tmp_path / "model")
    assert say(vlm, f"{PAGE}<|end_of_text|>", Decoding())[0].text == PAGE
    assert "<doctag>" not in say(vlm, f"{PAGE}<|end_of_text|>", Decoding(skip_special_tokens=True))[0].text


def test_what_is_left_out_is_named(reader: VLM) -> None:
    said, streamed = say(reader, f"{PAGE}<|end_of_text|>", Decoding())
    assert said.text == streamed == "The fox\nis blue"
    assert list(said.left_out) == MARKS


@pytest.mark.parametrize("keep", [True, False])
def test_requests_and_reports_say_it(reader: VLM, keep: bool) -> None:
    """A bias has a random model write tags."""
    ids = reader.processor.tokenizer.convert_tokens_to_ids(["<doctag>", "<loc_1>"])
    bias = dict.fromkeys(ids, 100.0)
    engine = SGLEngine(reader, reader, EngineConfig().escalating("never").without_reuse())
    asked = replace(ASKED, logit_bias=bias, max_new_tokens=5, skip_special_tokens=not keep)
    got = engine.run(asked)
    written = set(got.text.replace(">", "> ").split())
    assert (written <= {"<doctag>", "<loc_1>"} and bool(written)) if keep else not got.text
    assert set(got.report.left_out_tokens) <= {"<doctag>", "<loc_1>"}
    assert bool(got.report.left_out_tokens) is not keep


@pytest.mark.parametrize("emoji", ["😀", "👩‍🔬", "你"])
def test_a_character_that_the_limit_cuts_is_no_text(reader: VLM, emoji: str) -> None:
    ids = reader.processor.tokenizer.encode(f"So {emoji}", add_special_tokens=False)
    for count in range(1, len(ids) + 1):
        answer = Answer(reader, AnswerTask(reader.encode(ASKED), count))
        streamed = "".join(answer.take(torch.eye(reader.vocab_size)[token] * 50) for token in ids[:count])
        said = answer.generation()
        assert said.text == streamed
        assert f"So {emoji}".startswith(said.text)
        assert "\N{REPLACEMENT CHARACTER}" not in said.text
        assert "".join(each.token for each in token_logprobs(reader, said)) == said.text
    assert said.text == f"So {emoji}"


def test_the_control_tokens_are_parts_of_characters(reader: VLM) -> None:
    ids = reader.processor.tokenizer.encode("So 😀", add_special_tokens=False)
    assert reader.text(ids[:-1]).endswith("\N{REPLACEMENT CHARACTER}")
