"""What the tower is asked for stands where the page says it, and only what a tile shows is asked for."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sgl_engine.demo import WEIGHTS
from sgl_engine.demo.pages import Page, draw_page
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.demo.pages.documents import PageDocument
from training.dense import ALIGNED, CLASSES, DOCUMENT, WORDS, DenseHeads, dense_facts, shown
from training.vocabulary import extend

SORTS = list(WORDS)


def read(page: Page, token: int) -> dict[str, str]:
    """What a visual token holds, in words."""
    classes = dense_facts(page)[token]
    words = {sort: WORDS[sort][k - 1] for sort, k in zip(SORTS, classes, strict=True) if k}
    value = "".join(words[f"value{i}"] for i in range(4) if words.get(f"value{i}", "end") != "end")
    return {sort: word for sort, word in words.items() if "value" not in sort} | {"value": value}


def test_tokens_hold_the_words_of_documents() -> None:
    checked = 0
    for seed in range(30):
        page = draw_page(seed, tiles=1)
        for document in page.contents:
            if not isinstance(document, PageDocument):
                continue
            values = dict(document.lines)
            for question in page.questions:
                if question.kind == "document value" and question.answer in values.values():
                    label = next(key for key, value in values.items() if value == question.answer)
                    tokens = evidence_tokens(question.evidence[:1], 1, 1, least=0.3)
                    for token in (tokens[0], tokens[-1]):
                        held = {"label": label, "value": question.answer, "document": document.name}
                        assert read(page, int(token)) == held
                        checked += 1
    assert checked > 50


def test_every_sort_is_asked_for() -> None:
    seen = sum((dense_facts(draw_page(seed)) > 0).sum(axis=0) for seed in range(40))
    assert (np.asarray(seen) > 100).all()


def test_only_what_a_tile_shows_is_asked_for() -> None:
    """A value whose label is in the tile to its left is a value without a label."""
    alone = 0
    for seed in range(60):
        page = draw_page(seed, tiles=6)
        facts = dense_facts(page)
        for fact in page.facts:
            tokens = shown(fact.box, page)
            tiles = {int(token) // TOKENS for token in tokens}
            apart = [
                box for box in fact.needs if {int(t) // TOKENS for t in evidence_tokens([box], 2, 3)} - tiles
            ]
            if apart and "label" in fact.says and "value" in fact.says:
                alone += 1
                label, first = CLASSES["label"][fact.says["label"]], CLASSES["value0"][fact.says["value"][0]]
                both = (facts[tokens, 0] == label) & (facts[tokens, SORTS.index("value0")] == first)
                assert not both.all()
    assert alone > 10


def test_across_tiles_all_is_asked_for() -> None:
    """Of a decoder layer: a line's document, whose heading is on another tile; a cell's row and column."""
    documents = cells = 0
    for seed in range(60):
        page = draw_page(seed, tiles=6)
        alone, whole = dense_facts(page), dense_facts(page, across=True)
        assert ((alone == whole) | (alone == 0)).all()  # nothing is another thing, and nothing is lost
        more = (alone == 0) & (whole > 0)
        documents += int(more[:, DOCUMENT].sum())
        cells += int(more[:, SORTS.index("column")].sum())
        for fact in page.facts:
            if "document" in fact.says:
                expected = CLASSES["document"][fact.says["document"]]
                assert (whole[shown(fact.box, page), DOCUMENT] == expected).all()
    assert documents > 100
    assert cells > 0


def test_the_loss_falls_to_nothing_where_tokens_say_it_all(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer: PreTrainedTokenizerFast = extend(WEIGHTS / "small", tmp_path_factory.mktemp("dense"))
    torch.manual_seed(0)
    embeddings = torch.randn(len(tokenizer), 32)
    heads = DenseHeads(32, tokenizer)
    facts = torch.from_numpy(dense_facts(draw_page(3, tiles=1)))
    features = torch.nn.Parameter(torch.randn(len(facts), 32))
    optimizer = torch.optim.Adam([features, *heads.parameters()], lr=0.03)
    start, _ = heads(features, facts, embeddings)
    for _ in range(150):
        loss, hits = heads(features, facts, embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * start
    there = (facts > 0).any(dim=0)
    assert (hits[there] > 0.9).all()
    # The control: the same tokens do not say what stands elsewhere.
    wrong, _ = heads(features, facts.roll(40, dims=0), embeddings)
    assert wrong > 3 * loss


def test_words_that_tokens_are_drawn_to_are_single_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = extend(WEIGHTS / "small", tmp_path_factory.mktemp("dense"))
    assert all(len(tokenizer(word).input_ids) == 1 for sort in ALIGNED for word in WORDS[sort])
