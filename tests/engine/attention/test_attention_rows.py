"""Attention row by row, against eager attention with everything kept."""

import pytest
import torch
from oracles import attention_sum, traces
from tolerances import CONTROL, gap, of_hidden, of_logits, of_logprobs, relative_gap
from torch import Tensor
from transformers import DynamicCache

from sgl_engine import VLM
from sgl_engine.attention import capture_attention
from sgl_engine.attention import recorder as recording
from sgl_engine.attention.capture import capture_hidden, keep_rows
from sgl_engine.attention.importance import importance_map
from sgl_engine.attention.rows import AttentionRows
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt

Case = tuple[VLM, EncodedPrompt]
TOKENS = 6


def kept(vlm: VLM, prompt: EncodedPrompt) -> tuple[AttentionRows, list[int], Tensor]:
    """Rows of a small pass, its answer, and its plain map."""
    with keep_rows(vlm) as keeper:
        result = run_small_pass(vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False))
    assert result.importance is not None
    return keeper.rows(), result.generation.token_ids.tolist(), result.importance.mass


@torch.no_grad()
def eager(
    vlm: VLM, prompt: EncodedPrompt, answer: list[int]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each layer, on the whole sequence at once: probabilities (H, N, N), keys and values (H_kv, N, D)."""
    vlm.model.set_attn_implementation("eager")
    ids = torch.cat((prompt.input_ids, torch.tensor([answer[:-1]], dtype=torch.int64)), dim=1)
    cache = DynamicCache(config=vlm.text_model.config)
    output = vlm.model(
        input_ids=ids,
        pixel_values=prompt.inputs["pixel_values"],
        output_attentions=True,
        cache=cache,
    )
    vlm.model.set_attn_implementation("sdpa")
    layers = range(vlm.num_layers)
    return (
        [output.attentions[layer][0] for layer in layers],
        [cache.layers[layer].keys[0] for layer in layers],
        [cache.layers[layer].values[0] for layer in layers],
    )


def by_hand(probabilities: Tensor, values: Tensor, prompt: EncodedPrompt, norm: float) -> Tensor:
    """Probability times norm of the value, summed over heads, row by row, token by token: (R, V)."""
    visual = list(prompt.visual_positions)
    groups = len(probabilities) // len(values)
    found = torch.zeros(probabilities.shape[1] - visual[-1], len(visual))
    for head, paid in enumerate(probabilities):
        weights = values[head // groups, visual].norm(p=norm, dim=-1) if norm else torch.ones(len(visual))
        for row in range(len(found)):
            found[row] += paid[visual[-1] + row, visual] * weights
    return found


@pytest.mark.parametrize("chunk", [64, 3])
def test_rows_equal_eager_attention(case: Case, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_ROWS_AT_ONCE", chunk)
    vlm, prompt = case
    rows, answer, _ = kept(vlm, prompt)
    probabilities, keys, values = eager(vlm, prompt, answer)
    assert rows.prompt_rows == len(prompt) - prompt.visual_positions[-1]
    assert rows.plain.shape[1] == rows.prompt_rows + TOKENS - 1
    for layer in range(vlm.num_layers):
        expected = by_hand(probabilities[layer], values[layer], prompt, norm=0)
        assert relative_gap(rows.plain[layer], expected) < of_logprobs(vlm)
        weighted = by_hand(probabilities[layer], values[layer], prompt, norm=2)
        assert relative_gap(rows.by_value[layer], weighted) < of_logprobs(vlm)
        norms = keys[layer][:, : len(prompt)].abs().sum(dim=(0, 2))
        assert relative_gap(rows.key_norms[layer], norms) < of_logits(vlm)
        other = by_hand(probabilities[layer], values[layer], prompt, norm=1)
        # The control: another norm.
        assert relative_gap(rows.by_value[layer], other) > CONTROL * of_logprobs(vlm)


def test_rows_add_up_to_the_map(case: Case) -> None:
    vlm, prompt = case
    rows, answer, mass = kept(vlm, prompt)
    assert relative_gap(rows.plain.sum(dim=(0, 1)), mass) < of_logprobs(vlm)
    expected = attention_sum(vlm, prompt, answer)
    assert relative_gap(rows.plain.double().sum(dim=(0, 1)), expected) < of_logprobs(vlm)
    short = rows.plain[:, :-1].double().sum(dim=(0, 1))
    assert relative_gap(short, expected) > CONTROL * of_logprobs(vlm)  # the control: one row fewer


def test_keeping_rows_changes_no_bit_of_the_sums(case: Case) -> None:
    vlm, prompt = case
    alone = run_small_pass(vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False))
    _, _, mass = kept(vlm, prompt)
    assert alone.importance is not None
    assert torch.equal(alone.importance.mass, mass)


def test_nothing_is_kept_unless_it_is_asked_for(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, prompt = case
    calls = []
    monkeypatch.setattr(
        "sgl_engine.attention.rows.RowKeeper.add", lambda *_, **__: calls.append("add"), raising=True
    )
    run_small_pass(vlm, AnswerTask(prompt, 2, stop_at_eos=False))
    assert calls == []
    with keep_rows(vlm):
        run_small_pass(vlm, AnswerTask(prompt, 2, stop_at_eos=False))
    assert len(calls) == 2 * vlm.num_layers  # the control; the consistency pass is not captured


def test_only_captured_passes_are_kept(case: Case) -> None:
    vlm, prompt = case
    embeddings = vlm.embed(prompt)
    with keep_rows(vlm) as keeper:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
        with capture_attention(vlm, prompt) as recorder:
            vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    mass = importance_map(recorder.sums(), prompt.spans).mass
    assert relative_gap(keeper.rows().plain.sum(dim=(0, 1)), mass) < of_logprobs(vlm)


def test_hidden_states_are_what_layers_are_given(case: Case) -> None:
    vlm, prompt = case
    with torch.no_grad():
        inputs = {"input_ids": prompt.input_ids, "pixel_values": prompt.inputs["pixel_values"]}
        expected = vlm.model(**inputs, output_hidden_states=True).hidden_states
    before = traces(vlm)
    for layer in (0, 2):
        with capture_hidden(vlm, layer) as seen:
            vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)
        assert gap(seen[0], expected[layer]) < of_hidden(vlm, expected[layer])
    assert gap(expected[0], expected[2]) > CONTROL * of_hidden(vlm, expected[2])
    assert traces(vlm) == before
