"""The text of tokens that come one by one is that of all of them, and takes no longer at the end."""

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_engine import VLM
from sgl_engine.chat.text_stream import RunningText
from sgl_engine.testing import tiny_vlm

TEXT = "Größe: 你好 😀 ﷽, and so on; <|im_end|> 12.5 %\n\n  two  spaces\t" * 12


@cache
def model(family: str) -> VLM:
    return tiny_vlm(family)


@pytest.mark.parametrize("family", ["internvl", "smolvlm", "gemma3"])
def test_it_is_the_text_of_all_tokens(family: str) -> None:
    vlm = model(family)
    ids = vlm.processor.tokenizer(TEXT)["input_ids"]
    running = RunningText(vlm.text)
    for count in range(1, len(ids) + 1):
        assert running(ids[:count]) == vlm.text(ids[:count])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_whatever_the_tokens_are(data: st.DataObject) -> None:
    vlm = model("internvl")
    tokens = st.integers(0, len(vlm.processor.tokenizer) - 1)
    ids = data.draw(st.lists(tokens, min_size=40, max_size=150))
    running = RunningText(vlm.text)
    for count in range(1, len(ids) + 1):
        assert running(ids[:count]) == vlm.text(ids[:count])


@pytest.mark.parametrize("size", [250, 2000])
def test_every_token_costs_the_same(size: int) -> None:
    decoded = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return bytes(ids).decode(errors="replace")

    ids = list(("é" * size).encode())[:size]
    running = RunningText(decode)
    for count in range(1, size + 1):
        assert running(ids[:count]) == bytes(ids[:count]).decode(errors="replace")
    assert decoded < 60 * size  # of all tokens every time: size / 2 * size


@pytest.mark.parametrize("turn", [5, 50, 100])
def test_a_tokenizer_that_thinks_again_is_asked_for_everything(turn: int) -> None:
    def decode(ids: Sequence[int]) -> str:
        text = "".join(map(chr, ids))
        return text.upper() if len(ids) > turn else text

    ids = [ord("a") + index % 26 for index in range(300)]
    running = RunningText(decode)
    for count in range(1, 301):
        got = running(ids[:count])
    assert got == decode(ids)
