"""A packed row equals as many separate conversations: training must teach what inference asks."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from sgl_engine.demo import WEIGHTS
from sgl_engine.demo.pages import draw_page
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.demo.pages.generator import TRANSCRIPTION
from training import models
from training.attention import packed, use_packed_attention
from training.models import answer_logits, deepen, visual_tokens
from training.packing import LAYOUTS, PAGES, SHORT, THIN, WHOLE, Batch, Packer
from training.tokenizer import ASSISTANT, END, USER, build_processor, with_names
from training.vocabulary import WORDS, extend, widen_embedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pair") / "tokenizer"
    extend(WEIGHTS / "small", path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


@pytest.fixture(scope="module")
def packer(tokenizer: PreTrainedTokenizerFast) -> Packer:
    return Packer(tokenizer)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    loaded = InternVLForConditionalGeneration.from_pretrained(WEIGHTS / "small", dtype=torch.float32).eval()
    if len(tokenizer) > loaded.config.text_config.vocab_size:
        widen_embedding(loaded, PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "small"), tokenizer)
    return loaded


def alone(batch: Batch, slot: int) -> slice:
    """A slot's tokens within what stands behind the page."""
    length = batch.labels.shape[1] // batch.slots
    return slice(slot * length, (slot + 1) * length)


@pytest.mark.parametrize("thin", [False, True])
@torch.no_grad()
def test_packed_rows_equal_separate_conversations(
    thin: bool, packer: Packer, model: InternVLForConditionalGeneration
) -> None:
    """Also where visual tokens are missing: positions stay, and the rest is attended to as before."""
    batch = packer.batch(3, tiles=2, layout=SHORT, thin=thin)
    rows = model.get_input_embeddings()(batch.ids)
    rows[:, 2 : batch.prefix - 1] = visual_tokens(model, batch).take_along_dim(batch.kept[..., None], dim=1)
    decoder = model.model.language_model
    plain = decoder.config._attn_implementation
    expected = []
    for slot in (0, batch.slots - 1):
        own = alone(batch, slot)
        row = torch.cat([rows[:, : batch.prefix], rows[:, batch.prefix :][:, own]], dim=1)
        places = batch.positions
        places = torch.cat([places[:, : batch.prefix], places[:, batch.prefix :][:, own]], dim=1)
        # A mask, or transformers takes the gaps in the positions for borders between texts.
        seen = torch.ones(row.shape[:2], dtype=torch.long)
        states = decoder(
            inputs_embeds=row, position_ids=places, attention_mask=seen, use_cache=False
        ).last_hidden_state
        expected.append((own, states[:, batch.prefix :]))
    use_packed_attention(model)
    with packed(batch.prefix, batch.slots):
        together = decoder(inputs_embeds=rows, position_ids=batch.positions, use_cache=False)
    decoder.config._attn_implementation = plain
    behind = together.last_hidden_state[:, batch.prefix :]
    for own, states in expected:
        torch.testing.assert_close(behind[:, own], states, rtol=1e-3, atol=1e-3)
        # The control: another page's answers are others.
        assert not torch.allclose(behind[:, own].roll(1, dims=0), states, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_tokens_that_go_missing_behind_a_layer_are_not_looked_at_any_more(
    packer: Packer, model: InternVLForConditionalGeneration
) -> None:
    """The slow way: one conversation at a time, with masks over what later layers may not see."""
    batch = packer.batch(3, tiles=2, layout=SHORT, thin=True, late=True)
    assert batch.left is not None
    batch = replace(batch, after=1)  # of 3
    decoder, kept = model.model.language_model, batch.kept.shape[1]
    assert 0 < batch.left.shape[1] < kept == 2 * TOKENS
    rows = model.get_input_embeddings()(batch.ids)
    features = visual_tokens(model, batch)
    rows[:, 2 : batch.prefix - 1] = features

    def slow(row: int, slot: int, left: torch.Tensor) -> torch.Tensor:
        columns = torch.cat(
            [torch.arange(batch.prefix), batch.prefix + torch.arange(10_000)[alone(batch, slot)]]
        )
        states, places = rows[row : row + 1, columns], batch.positions[row : row + 1, columns]
        seen = torch.ones(len(columns), len(columns)).tril().bool()
        there = torch.ones(len(columns), dtype=torch.bool)
        there[2 : 2 + kept] = torch.isin(torch.arange(kept), left)
        for index, layer in enumerate(decoder.layers):
            states = layer(
                states,
                attention_mask=(seen & there if index >= batch.after else seen)[None, None],
                position_embeddings=decoder.rotary_emb(states, places),
                position_ids=places,
            )
        labels = batch.labels[row, alone(batch, slot)]
        return model.lm_head(decoder.norm(states)[0, batch.prefix :][labels >= 0])

    cases = [(0, 0), (1, batch.slots - 1)]
    expected = [slow(row, slot, batch.left[row]) for row, slot in cases]
    control = [slow(row, slot, batch.left[row][::2]) for row, slot in cases]
    use_packed_attention(model)
    logits, _ = answer_logits(model, batch, features)
    asked = torch.cumsum((batch.labels >= 0).flatten(), 0).view_as(batch.labels)
    for (row, slot), right, wrong in zip(cases, expected, control, strict=True):
        own = asked[row, alone(batch, slot)][batch.labels[row, alone(batch, slot)] >= 0] - 1
        torch.testing.assert_close(logits[own], right, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(logits[own], wrong, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("after", [1, 3])
@torch.no_grad()
def test_a_layer_is_asked_about_the_tokens_that_reach_it(
    after: int, packer: Packer, model: InternVLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "BOUND", 2)  # of 3
    use_packed_attention(model)
    batch = replace(packer.batch(3, tiles=2, layout=SHORT, thin=True, late=True), after=after)
    assert batch.left is not None
    made = models.read(model, batch, visual_tokens(model, batch))
    reached = batch.left if after < 2 else batch.kept
    assert made.bound.shape[:2] == made.facts.shape[:2] == reached.shape
    for row, tokens in enumerate(reached):
        assert torch.equal(made.facts[row], batch.bound[row, tokens])
    assert (made.facts > 0).any()


@pytest.mark.parametrize("layout", [*LAYOUTS, THIN])
def test_every_answer_is_asked_for_once_and_ends(
    layout: object, packer: Packer, tokenizer: PreTrainedTokenizerFast
) -> None:
    end, user, assistant = tokenizer.convert_tokens_to_ids([END, USER, ASSISTANT])
    batch = packer.batch(11, layout=layout, thin=layout is THIN)  # type: ignore[arg-type]
    asked = torch.zeros_like(batch.labels, dtype=torch.bool)
    for row, first, stop in batch.answers:
        assert batch.ids[row, batch.prefix + first] == assistant
        assert batch.labels[row, stop - 1] == end
        # What should come next is what stands next in the row, up to the end of the answer.
        following = batch.ids[row, batch.prefix + first + 1 : batch.prefix + stop]
        assert torch.equal(batch.labels[row, first : stop - 1], following)
        asked[row, first:stop] = True
    assert torch.equal(asked, batch.labels >= 0)
    assert len(batch.answers) == len(batch.kinds) >= len(batch.ids)
    assert (batch.ids == user).sum() == len(batch.ids)


@pytest.mark.parametrize("tiles", PAGES)
def test_training_sees_what_the_processor_makes(tiles: int, packer: Packer, folder: Path) -> None:
    batch = packer.batch(7, split="heldout", tiles=tiles)
    page = draw_page(7 * 16, tiles=tiles)
    processor = build_processor(with_names(folder))
    inputs = processor(images=Image.fromarray(page.pixels), text="<IMG_CONTEXT>", return_tensors="pt")
    assert torch.equal(inputs["input_ids"][0], batch.ids[0, 1 : batch.prefix])
    torch.testing.assert_close(inputs["pixel_values"], batch.pixels[:tiles], rtol=0, atol=1e-5)
    assert len(batch.pixels) == tiles * len(batch.ids)


def test_missing_tokens_are_never_evidence(packer: Packer) -> None:
    shares = []
    for seed in range(12):
        batch = packer.batch(seed, thin=True, tiles=4)
        whole = packer.batch(seed, layout=THIN, tiles=4)
        assert torch.equal(batch.labels, whole.labels)  # the same questions, of fewer tokens
        shares.append(batch.kept.shape[1] / (4 * TOKENS))
        for row in range(len(batch.kept)):
            page = draw_page(seed * 16 + row, split="train", tiles=4)
            texts = {
                packer.tokenizer.decode(batch.ids[row, batch.prefix + first - 20 : batch.prefix + first])
                for owner, first, _ in batch.answers
                if owner == row
            }
            asked = [q for q in page.questions if any(text.endswith(q.text.lower()) for text in texts)]
            assert asked
            boxes = [box for question in asked for box in question.evidence]
            kept = set(batch.kept[row].tolist())
            assert set(evidence_tokens(boxes, 2, 2).tolist()) <= kept
        places = batch.positions[:, 2 : batch.prefix - 1] - 2
        assert torch.equal(places, batch.kept)
        assert batch.positions[0, batch.prefix] == whole.positions[0, whole.prefix]
    assert min(shares) < 0.3
    assert max(shares) < 0.9
    assert np.std(shares) > 0.02


def test_deepening_changes_nothing(packer: Packer, model: InternVLForConditionalGeneration) -> None:
    """And the copies are behind the layers that work."""
    deeper = deepen(model).eval()
    layers, before = deeper.model.language_model.layers, model.model.language_model.layers
    assert len(layers) == 2 * len(before)
    assert not layers[0].mlp.down_proj.weight.eq(0).all()
    assert layers[1].mlp.down_proj.weight.eq(0).all()
    batch = packer.batch(1, tiles=1, layout=SHORT)
    use_packed_attention(model)
    use_packed_attention(deeper)
    with torch.no_grad():
        features = visual_tokens(model, batch)
        expected, _ = answer_logits(model, batch, features)
        found, _ = answer_logits(deeper, batch, visual_tokens(deeper, batch))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # The control: with one copy no longer silent, the function changes.
        layers[1].mlp.down_proj.weight.copy_(layers[0].mlp.down_proj.weight)
        changed, _ = answer_logits(deeper, batch, features)
    assert not torch.allclose(changed, expected, rtol=1e-2, atol=1e-2)


def test_new_words_are_one_token_and_old_ones_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    old = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "small")
    assert all(len(tokenizer(word).input_ids) == 1 for word in WORDS)
    for text in ("what is the price of milk", "4.97", "red star", "none", "yes", "how high is jan?"):
        assert tokenizer(text).input_ids == old(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_new_words_start_as_the_mean_of_their_pieces(tmp_path: Path) -> None:
    old = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "small")
    new = extend(WEIGHTS / "small", tmp_path, words=("zebra",))
    model = InternVLForConditionalGeneration.from_pretrained(WEIGHTS / "small", dtype=torch.float32)
    before = model.get_input_embeddings().weight.detach().clone()
    widen_embedding(model, old, new)
    after = model.get_input_embeddings().weight
    (token,) = new("zebra").input_ids
    torch.testing.assert_close(after[token], before[old("zebra").input_ids].mean(0))
    torch.testing.assert_close(after[: len(old)], before[: len(old)])


def test_processes_take_batches_of_one_size_with_other_pages(packer: Packer) -> None:
    first, other = packer.batch(5), packer.batch(5, part=1)
    assert torch.equal(first.pixels, packer.batch(5, part=0).pixels)
    assert first.pixels.shape == other.pixels.shape
    assert first.kept.shape == other.kept.shape
    same = (first.pixels.unsqueeze(1) == other.pixels.unsqueeze(0)).flatten(2).all(-1)
    assert not same.any()


def test_hard_batches_ask_what_is_learnt_slowly(packer: Packer) -> None:
    kinds = [Counter(packer.batch(seed, layout=SHORT, hard=True).kinds) for seed in range(12)]
    assert sum(each["table cell"] > 0 for each in kinds) >= 3
    assert sum(each["which document"] > 0 for each in kinds) >= 2
    assert not any(each["form field"] or each["chart bar"] for each in kinds)
    plain = [Counter(packer.batch(seed, layout=SHORT).kinds) for seed in range(12)]
    assert any(each["form field"] or each["chart bar"] for each in plain)  # the control


def test_every_page_is_asked_for_all_that_it_says(packer: Packer) -> None:
    for seed in range(8):
        page = draw_page(seed, tiles=2)
        first, *parts = packer._turns(page, np.random.default_rng(seed), WHOLE)
        assert first.asked.text == "transcribe the picture"  # what an index asks
        said = [q.answer for q in page.questions if q.kind == TRANSCRIPTION]
        assert sorted(first.asked.answer.split(", ")) == sorted(", ".join(said).split(", "))
        assert {turn.asked.answer for turn in parts} <= set(said)
        others = packer._turns(page, np.random.default_rng(seed), SHORT)
        assert all(turn.asked.kind != TRANSCRIPTION for turn in others)
