"""What of the pictures is sent: boxes of what was looked at, crops, masks, and when all of a picture is."""

import io
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hosted_servers import Script, says
from PIL import Image

from sgl_engine import EngineConfig, ImagePart, Message, PatchTokens, Request, SendConfig
from sgl_engine.attention import ImportanceMap
from sgl_engine.hosted import Regions, choose_mode, count_picture_tokens, find_regions, gather
from sgl_engine.prompt import VisualSpan
from sgl_engine.testing import FakeEngine, FakeHostedModel, tiny_vlm

WHOLE = (0.0, 0.0, 1.0, 1.0)
CROP = SendConfig(mode="crop", share=1.0, overview_pixels=2_000, margin=0.0)


def importance(*grids: Any) -> ImportanceMap:
    """A map of one grid for each picture."""
    spans, start = [], 0
    for image, grid in enumerate(grids):
        spans.append(VisualSpan(image, start, start + grid.size, grid.shape, WHOLE))
        start += grid.size
    mass = torch.tensor(np.concatenate([grid.ravel() for grid in grids]), dtype=torch.float32)
    return ImportanceMap(mass, tuple(spans), 1)


def spots(*boxes: tuple[int, int, int, int], side: int = 10, ordinary: float = 1.0) -> Any:
    """A grid in which some boxes of tokens (x0, y0, x1, y1) were looked at."""
    grid = np.full((side, side), ordinary)
    for x0, y0, x1, y1 in boxes:
        grid[y0:y1, x0:x1] = 20
    return grid


def regions(*grids: Any, share: float = 1.0, margin: float = 0.0, max_boxes: int = 3) -> list[Any]:
    found = find_regions(importance(*grids), len(grids), share=share, margin=margin, max_boxes=max_boxes)
    return [[tuple(round(edge, 3) for edge in box) for box in each.boxes] for each in found]


def test_connected_tokens_are_one_box_and_others_another() -> None:
    assert regions(spots((1, 1, 3, 4), (6, 7, 9, 8))) == [[(0.1, 0.1, 0.3, 0.4), (0.6, 0.7, 0.9, 0.8)]]
    assert regions(spots((1, 1, 3, 3), (3, 3, 5, 5))) == [[(0.1, 0.1, 0.5, 0.5)]]  # they touch at a corner


def test_too_many_boxes_are_joined_those_first_that_grow_least() -> None:
    grid = spots((0, 0, 1, 1), (2, 0, 3, 1), (9, 9, 10, 10))
    assert regions(grid, max_boxes=2) == [[(0.0, 0.0, 0.3, 0.1), (0.9, 0.9, 1.0, 1.0)]]
    assert regions(grid, max_boxes=1) == [[WHOLE]]


def test_a_margin_is_cut_off_at_the_edge_and_joins_what_it_makes_overlap() -> None:
    assert regions(spots((0, 0, 2, 2)), margin=0.05) == [[(0.0, 0.0, 0.25, 0.25)]]
    assert len(regions(spots((1, 1, 3, 3), (4, 1, 6, 3)), margin=0.04)[0]) == 2
    assert len(regions(spots((1, 1, 3, 3), (4, 1, 6, 3)), margin=0.06)[0]) == 1


def test_boxes_never_overlap_and_hold_what_they_should() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        grids = [generator.gamma(0.5, size=(6, 8)), generator.gamma(0.5, size=(9, 5))]
        made = importance(*grids)
        for found in find_regions(made, 2, share=0.5, margin=0.03, max_boxes=3):
            assert len(found.boxes) <= 3
            for one, other in combinations(found.boxes, 2):
                apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
                assert apart


def test_of_several_pictures_the_one_that_was_looked_at_gets_the_boxes() -> None:
    found = regions(spots((4, 4, 5, 5), ordinary=1.0) * 0.01, spots((2, 2, 4, 4)), share=0.9)
    assert found == [[], [(0.2, 0.2, 0.4, 0.4)]]


def test_a_flat_map_has_no_boxes() -> None:
    assert regions(np.ones((5, 5))) == [[]]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def ask(*images: Image.Image, question: str = "What is the total?") -> Request:
    return Request((Message("user", (*(ImagePart(image) for image in images), question)),))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_crops_are_native_pixels_after_a_small_picture_of_the_whole() -> None:
    image = noise(400, 300)
    made = importance(spots((1, 1, 3, 4), (6, 7, 9, 9)))
    evidence = gather(ask(image), made, CROP)
    [sent], [pictures] = evidence.sent, evidence.call.pictures
    overview, first, second = map(opened, pictures)
    assert overview.size == (51, 38)
    assert overview.width * overview.height <= 2_000
    assert first.tobytes() == image.crop((40, 30, 120, 120)).tobytes()
    assert second.tobytes() == image.crop((240, 210, 360, 270)).tobytes()
    assert (sent.mode, sent.full_size) == ("crop", (400, 300))
    assert sent.sizes == (overview.size, first.size, second.size)


def test_without_an_overview_only_crops_go() -> None:
    config = SendConfig(mode="crop", share=1.0, overview_pixels=0, margin=0.0)
    evidence = gather(ask(noise(400, 300)), importance(spots((1, 1, 5, 5))), config)
    assert [size for sent in evidence.sent for size in sent.sizes] == [(160, 120)]


def test_a_picture_that_was_not_looked_at_goes_as_a_small_picture() -> None:
    made = importance(spots((4, 4, 5, 5)) * 0.01, spots((2, 2, 5, 5)))
    config = CROP.model_copy(update={"share": 0.9})
    evidence = gather(ask(noise(400, 300), noise(300, 400, 1)), made, config)
    assert [len(pictures) for pictures in evidence.call.pictures] == [1, 2]
    assert evidence.sent[0].sizes == ((51, 38),)


def test_small_crops_are_large_enough_for_a_patch() -> None:
    evidence = gather(ask(noise(200, 200)), importance(spots((0, 9, 1, 10), side=20)), CROP)
    assert evidence.sent[0].sizes[1] == (32, 32)


@pytest.mark.parametrize("way", ["blur", "blank"])
def test_a_mask_keeps_size_and_boxes(way: Any) -> None:
    image = noise(400, 300)
    config = SendConfig(mode="mask", share=1.0, mask=way, margin=0.0)
    [[data]] = gather(ask(image), importance(spots((1, 1, 3, 4))), config).call.pictures
    masked, box = opened(data), (40, 30, 120, 120)
    assert masked.size == image.size
    assert masked.crop(box).tobytes() == image.crop(box).tobytes()
    rest = np.asarray(masked.crop((200, 150, 400, 300))).astype(float)
    assert rest.std() < np.asarray(image).std() / 5


REGIONS = Regions(((0.1, 0.1, 0.3, 0.3),), concentration=0.5, area=0.04)
FLAT = Regions(((0.1, 0.1, 0.3, 0.3),), concentration=0.1, area=0.04)
WIDE = Regions(((0.0, 0.0, 0.8, 0.75),), concentration=0.5, area=0.6)


@pytest.mark.parametrize(
    ("found", "settings", "everything", "mode", "reason"),
    [
        (REGIONS, {}, False, "crop", "the map is concentrated"),
        (REGIONS, {}, True, "full", "the question is about all of it"),
        (REGIONS, {"mode": "crop"}, True, "crop", "as configured"),
        (REGIONS, {"mode": "full"}, False, "full", "as configured"),
        (REGIONS, {"mode": "mask"}, False, "mask", "as configured"),
        (FLAT, {}, False, "full", "the map is flat"),
        (WIDE, {}, False, "full", "most of it was looked at"),
        (None, {}, False, "full", "where the small model looked is not known"),
        (Regions((), 0.0, 0.0), {"overview_pixels": 0}, False, "full", "nothing stands out"),
        (REGIONS, {"overview_pixels": 400_000}, False, "full", "crops would save little"),
        (REGIONS, {"overview_pixels": 10**6}, False, "full", "crops would be no smaller"),
    ],
)
def test_auto_says_why(
    found: Regions | None, settings: dict[str, Any], everything: bool, mode: str, reason: str
) -> None:
    config = SendConfig(**{"mode": "auto", **settings})
    assert choose_mode((800, 600), found, config, everything=everything) == (mode, reason)


@pytest.mark.parametrize(
    ("question", "mode"),
    [
        ("What is the total?", "crop"),
        ("Transcribe this page.", "full"),
        ("How many apples are there?", "full"),
        ("Compare the two bars.", "full"),
        ("Which county is it?", "crop"),  # a word, not a part of one
    ],
)
def test_questions_about_everything_get_everything(question: str, mode: str) -> None:
    config = SendConfig(mode="auto")
    evidence = gather(ask(noise(400, 300), question=question), importance(spots((1, 1, 3, 3))), config)
    assert evidence.sent[0].mode == mode


def test_no_metadata_leaves_the_machine() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    noise(64, 48).save(file, "JPEG", exif=exif)
    model = FakeHostedModel("8")
    engine(model, SendConfig(mode="full", image_format="JPEG")).run(ask_bytes(file.getvalue()))
    [[data]] = model.calls[0].pictures
    assert data[:3] == b"\xff\xd8\xff"
    assert not Image.open(io.BytesIO(data)).getexif()
    assert b"taken" not in data


def ask_bytes(data: bytes) -> Request:
    return Request((Message("user", (ImagePart(data), "What?")),))


small = cache(tiny_vlm)


def engine(model: Any, send: SendConfig) -> FakeEngine:
    return FakeEngine(lambda _: "7", score=0.1, small=small(), large=model, config=EngineConfig(send=send))


@pytest.mark.parametrize(("kind", "side"), [("WEBP", 16383), ("JPEG", 65500)])
def test_a_picture_that_is_too_long_for_its_format_goes_as_png(kind: Any, side: int) -> None:
    for width, written in ((side, kind), (side + 1, "PNG")):
        request = Request.ask("?", Image.new("RGB", (width, 1), "red"))
        [[data]] = gather(request, None, SendConfig(image_format=kind)).call.pictures
        with Image.open(io.BytesIO(data)) as sent:
            assert (sent.format, sent.size) == (written, (width, 1))


def test_large_pictures_are_cut_from_all_their_pixels() -> None:
    image = noise(3000, 1500)  # the small model is given it scaled down by a whole factor
    model = FakeHostedModel("8")
    answer = engine(model, SendConfig(mode="full")).run(ask(image))
    [[data]] = model.calls[0].pictures
    assert opened(data).tobytes() == image.tobytes()
    assert answer.report.sent is not None
    assert answer.report.sent.full_pixels == 4_500_000


def test_the_report_counts_pixels_and_tokens() -> None:
    script = Script(says("8"))
    rule = PatchTokens(side=28, base=2)
    with script.model() as model:
        report = engine(model, SendConfig(mode="full", picture_tokens=rule)).run(ask(noise(280, 140))).report
    sent = report.sent
    assert sent is not None
    assert (sent.sent_pixels, sent.full_pixels, sent.saved_pixels) == (39_200, 39_200, 0)
    assert (sent.sent_tokens, sent.full_tokens, sent.saved_tokens) == (52, 52, 0)
    assert sent.sent_bytes > 39_200
    assert sent.pictures[0].model_dump() == {
        "mode": "full",
        "reason": "as configured",
        "boxes": [],
        "full_size": (280, 140),
        "sent_sizes": [(280, 140)],
    }


@pytest.mark.parametrize(
    ("rule", "size", "tokens"),
    [
        ("openai-tiles", (1024, 1024), 765),  # the examples of OpenAI's guide
        ("openai-tiles", (2048, 4096), 1105),
        ("openai-tiles", (100, 100), 255),
        ("openai-patches", (1024, 1024), 1024),
        ("openai-patches", (1800, 2400), 1452),
        ("anthropic", (1000, 1000), 1334),
        ("anthropic", (200, 200), 54),
        ("anthropic", (3136, 1568), 1640),  # a long side of 1568
        ("gemini", (384, 384), 258),
        ("gemini", (1920, 1080), 1548),
        (PatchTokens(side=32, most=1536, per_patch=1.62), (1024, 1024), 1659),
        (PatchTokens(side=28, base=2), (1920, 1080), 2693),
    ],
)
def test_picture_tokens_are_those_of_the_guides(rule: Any, size: tuple[int, int], tokens: int) -> None:
    assert count_picture_tokens(rule, *size) == tokens
