"""Pages: seeded, split by what they say, with answers that follow from it and evidence where the ink is."""

from collections import Counter

import numpy as np
import pytest

from sgl_engine.demo.drawing import PATCH, SIZE, Question
from sgl_engine.demo.pages import Page, draw_page, heldout_pages, pick_questions, split_of
from sgl_engine.demo.pages.across import place_of
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.demo.pages.documents import PageDocument
from sgl_engine.demo.pages.layout import SHAPES, divide
from sgl_engine.demo.pages.lines import LineChart
from sgl_engine.demo.pages.scenes import PageScene
from sgl_engine.demo.pages.sheet import TILE, Frame, PageSheet
from sgl_engine.demo.vocabulary import NONE
from sgl_engine.errors import SGLError

KINDS = {
    *("document value", "document label", "document below", "document date", "which document"),
    *("table cell", "table look-up", "table compare", "form field", "sum"),
    *("scene number", "scene color", "scene shape", "scene count", "scene neighbor", "scene two-step"),
    *("chart value", "chart color", "chart bar", "chart extreme", "chart compare", "chart series"),
    *("line value", "line extreme", "line compare"),
    *("where", "yes or no", "none"),
}


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return [draw_page(seed) for seed in range(120)]


def of_kind(page: Page, *kinds: str) -> list[tuple[list[str], Question]]:
    """The page's questions of these kinds, each with its words."""
    return [(q.text.lower().rstrip("?").split(), q) for q in page.questions if q.kind in kinds]


def test_the_same_seed_gives_the_same_page() -> None:
    first, again, other = draw_page(5), draw_page(5), draw_page(6)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.questions == again.questions
    assert first.contents != other.contents


@pytest.mark.parametrize("tiles", SHAPES)
def test_pages_have_the_tiles_that_are_asked_for(tiles: int) -> None:
    page = draw_page(3, tiles=tiles)
    assert (page.rows, page.columns) == SHAPES[tiles]
    assert page.pixels.shape == (page.rows * SIZE, page.columns * SIZE, 3)
    assert page.pixels.dtype == np.uint8


def test_no_page_of_five_tiles() -> None:
    with pytest.raises(SGLError, match=r"no page of 5 tiles.*1, 2, 3, 4, 6"):
        draw_page(0, tiles=5)


def test_no_held_out_content_is_drawn_for_training() -> None:
    heldout = {content for seed in range(60) for content in draw_page(seed, split="heldout").contents}
    train = {content for seed in range(60) for content in draw_page(seed, split="train").contents}
    assert {split_of(content) for content in heldout} == {"heldout"}
    assert {split_of(content) for content in train} == {"train"}


def test_held_out_questions_are_of_every_kind() -> None:
    kinds = Counter(question.kind for _, question in heldout_pages(600))
    assert set(kinds) == KINDS
    assert min(kinds.values()) >= 3
    whole = Counter(question.kind for _, question in heldout_pages(20, transcriptions=True))
    assert whole == {"transcribe": 20}


def test_half_of_the_pages_are_clean() -> None:
    """On clean paper most neighbouring squares are equal, on the rest none are."""
    equal = []
    for seed in range(60):
        squares = draw_page(seed, tiles=4).pixels.reshape(2 * TILE, PATCH, 2 * TILE, PATCH, 3)
        same = (squares[:, :, 1:] == squares[:, :, :-1]).all(axis=(1, 3, 4))
        equal.append(same.mean())
    clean = np.array(equal) > 0.3
    assert 18 <= clean.sum() <= 42
    assert max(np.array(equal)[~clean]) < 0.01


def test_no_word_crosses_an_upright_border_of_a_tile(
    pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing, written = [], []
    write = PageSheet.write

    def watch(self: PageSheet, column: int, row: int, text: str, *rest: object) -> object:
        at = column
        for word in text.replace(".", " ").replace("-", " ").split(" "):
            first, last = at // (2 * TILE), (at + max(len(word), 1) - 1) // (2 * TILE)
            (crossing if first != last else written).append(word)
            at += len(word) + 1
        return write(self, column, row, text, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PageSheet, "write", watch)
    for seed in range(150):
        draw_page(seed)
    assert not crossing
    assert len(written) > 1000


def test_documents_cross_the_borders_of_tiles(pages: list[Page]) -> None:
    """Above and below, and from label to value."""
    down = across = longest = 0
    for page in pages:
        for document in (content for content in page.contents if isinstance(content, PageDocument)):
            longest = max(longest, len(document.lines))
        for _, question in of_kind(page, "document value", "document below"):
            boxes = question.evidence
            rows = {y // SIZE for _, y0, _, y1 in boxes[:2] for y in (y0, y1 - 1)}
            down += question.kind == "document below" and len(rows) == 2
            across += boxes[0][0] // SIZE != (boxes[0][2] - 1) // SIZE
    assert longest >= 18
    assert min(down, across) >= 10


def test_evidence_lies_on_the_page_and_has_ink(pages: list[Page]) -> None:
    for page in pages:
        grey = page.pixels.astype(int).mean(axis=2)
        height, width = grey.shape
        for question in page.questions:
            absent = question.answer in (NONE, "no") and question.kind in ("none", "yes or no")
            assert bool(question.evidence) == (not absent and question.answer != "0")
            for x0, y0, x1, y1 in question.evidence:
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height
                inside = grey[y0:y1, x0:x1]
                assert inside.max() - inside.min() > 40


def test_evidence_is_not_anywhere(pages: list[Page]) -> None:
    """The control: boxes moved away from what they show hold less ink."""
    hits = []
    for page in pages:
        grey = page.pixels.astype(int).mean(axis=2)
        for question in page.questions:
            for x0, y0, x1, y1 in question.evidence[:1]:
                moved = np.roll(grey, (97, 61), axis=(0, 1))[y0:y1, x0:x1]
                hits.append(moved.max() - moved.min() > 40)
    assert np.mean(hits) < 0.8


def test_questions_are_unambiguous(pages: list[Page]) -> None:
    for page in pages:
        asked: dict[str, str] = {}
        for question in page.questions:
            text = question.text.lower().rstrip("?")
            assert asked.setdefault(text, question.answer) == question.answer
            assert question.answer == question.answer.lower()


def test_places_are_named_by_tile(pages: list[Page]) -> None:
    assert place_of((0, 0, 10, 10), 1, 1) is None
    assert place_of((0, 200, 10, 210), 2, 1) == "lower"
    assert place_of((400, 0, 410, 10), 2, 3) == "upper right"
    assert place_of((180, 0, 200, 10), 2, 3) is None
    asked = {q.answer for page in pages for _, q in of_kind(page, "where")}
    assert {"upper", "lower", "middle", "upper left", "lower right", "upper middle"} <= asked


def test_yes_is_as_common_as_no(pages: list[Page]) -> None:
    answers = Counter(q.answer for page in pages for _, q in of_kind(page, "yes or no"))
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_a_page_is_divided_without_gaps_or_overlaps() -> None:
    for seed in range(50):
        rows, columns = list(SHAPES.values())[seed % 5]
        cover = np.zeros((rows * TILE, columns * TILE), int)
        frames = divide(rows, columns, np.random.default_rng(seed))
        for frame in frames:
            cover[frame.row : frame.row + frame.rows, frame.column : frame.column + frame.columns] += 1
        assert (cover == 1).all()
        assert not any(a.overlaps(b) for a in frames for b in frames if a != b)
    assert Frame(0, 0, 3, 3).overlaps(Frame(2, 2, 3, 3))


def test_tokens_of_a_box_are_counted_tile_by_tile() -> None:
    assert evidence_tokens([(0, 0, PATCH, PATCH)], 1, 1).tolist() == [0]
    # The square right of the border is the first of the next tile; the one below opens the third of four.
    assert evidence_tokens([(SIZE, 0, SIZE + PATCH, PATCH)], 2, 2).tolist() == [TOKENS]
    assert evidence_tokens([(0, SIZE, PATCH, SIZE + PATCH)], 2, 2).tolist() == [2 * TOKENS]
    assert evidence_tokens([(SIZE - 8, 0, SIZE + 8, PATCH)], 1, 2).tolist() == [TILE - 1, TOKENS]
    assert evidence_tokens([], 2, 3).tolist() == []
    page = draw_page(1, tiles=6)
    boxes = page.questions[0].evidence or page.questions[1].evidence
    slow = [
        token for token in range(6 * TOKENS) if any(overlap(box, token) >= 0.05 * PATCH**2 for box in boxes)
    ]
    assert evidence_tokens(boxes, 2, 3).tolist() == slow


def overlap(box: tuple[int, int, int, int], token: int) -> int:
    """Pixels of a token's square in the box, on a page of 2 x 3 tiles."""
    tile, inside = divmod(token, TOKENS)
    x, y = (tile % 3 * TILE + inside % TILE) * PATCH, (tile // 3 * TILE + inside // TILE) * PATCH
    across = min(box[2], x + PATCH) - max(box[0], x)
    down = min(box[3], y + PATCH) - max(box[1], y)
    return max(0, across) * max(0, down)


def test_questions_are_picked_evenly_over_kinds_and_never_twice() -> None:
    page = draw_page(2, tiles=6)
    rng = np.random.default_rng(0)
    picked = pick_questions(page.questions, rng, 12)
    assert len({question.text for question in picked}) == 12
    first = Counter(pick_questions(page.questions, rng, 1)[0].kind for _ in range(400))
    assert min(first.values()) > 400 / len(first) / 2.5
    assert len(pick_questions(page.questions, rng, 10_000)) == len(page.questions)


def test_a_page_holds_only_what_is_wanted() -> None:
    for seed in range(12):
        (receipt,) = draw_page(seed, tiles=1, only=["document"]).contents
        assert isinstance(receipt, PageDocument)
        both = draw_page(seed, tiles=6, only=["scene", "lines"]).contents
        assert {type(content) for content in both} <= {PageScene, LineChart}
    for wanted in ([], ["poster"]):
        with pytest.raises(
            SGLError, match=r"There is no page of (nothing|poster)\. Name some of document, table"
        ):
            draw_page(0, only=wanted)
