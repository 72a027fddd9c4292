"""What a link brings back, and what it cannot; covered parts of a picture; rows of figures."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sgl_engine import ImageError, InvalidRequestError, LimitsConfig, Price, RunReport
from sgl_engine.demo import PICTURES
from sgl_engine.playground.figures import AloneRun, figure_rows
from sgl_engine.playground.pictures import ALTERNATIVES, cover, open_picture, questions
from sgl_engine.playground.state import MAX_COVERS, PageState, read_state

KNOWN = {"picture": ("", "page", "scene"), "ranker": ("", "uniform")}


def read(**query: str) -> tuple[PageState, list[str]]:
    return read_state(query, PageState(k=4), KNOWN)


def test_a_link_without_parameters_is_the_default() -> None:
    assert read() == (PageState(k=4), [])


def test_every_field_comes_back() -> None:
    state, problems = read(
        picture="scene",
        q="What is it?",
        keep="0.35",
        k="7",
        t="0.5",
        ranker="uniform",
        cover="100,200,300,400;0,0,1000,500",
        small_hour="0.5",
        large_hour="4",
        heat="false",
        kept="false",
    )
    assert problems == []
    assert state == PageState(
        picture="scene",
        q="What is it?",
        keep=0.35,
        k=7,
        t=0.5,
        ranker="uniform",
        cover=((0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 1.0, 0.5)),
        small_hour=0.5,
        large_hour=4.0,
        heat=False,
        kept=False,
    )
    assert all(getattr(state, name) != getattr(PageState(k=4), name) for name in PageState.model_fields)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keep", "0"),
        ("keep", "nan"),
        ("t", "7"),
        ("k", "-1"),
        ("k", "two"),
        ("picture", "../../etc/passwd"),
        ("ranker", "best"),
        ("cover", "1,2,3"),
        ("cover", "300,0,100,10"),
        ("cover", ";".join(["0,0,10,10"] * (MAX_COVERS + 1))),
        ("large_hour", "-1"),
        ("q", "x" * 2001),
    ],
)
def test_what_cannot_be_read_is_told_and_changes_nothing(name: str, text: str) -> None:
    state, [problem] = read(**{name: text, "t" if name != "t" else "k": "1"})
    assert getattr(state, name) == getattr(PageState(k=4), name)
    assert (state.t if name != "t" else state.k) == 1  # the rest of the link counts
    assert name in problem


def test_parameters_of_others_are_ignored() -> None:
    assert read(utm_source="mail") == (PageState(k=4), [])


def test_a_state_is_checked_when_it_is_sent() -> None:
    with pytest.raises(ValidationError):
        PageState(keep=0.0)
    with pytest.raises(ValidationError):
        PageState(cover=((0.5, 0.0, 0.5, 1.0),))


def test_what_is_covered_is_ground_and_the_rest_is_as_it_was() -> None:
    pixels = np.full((40, 60, 3), 200, dtype=np.uint8)
    pixels[10:20, 10:20] = (255, 0, 0)
    pixels[30:, 40:] = (0, 0, 255)
    picture = Image.fromarray(pixels)
    covered = np.asarray(cover(picture, [(0.0, 0.0, 0.5, 0.5)]))
    assert (covered[:20, :30] == 200).all()
    assert (covered[30:, 40:] == (0, 0, 255)).all()
    assert (np.asarray(picture) == pixels).all()
    assert (np.asarray(cover(picture, [])) == pixels).all()  # control


def test_a_cover_of_less_than_a_pixel_covers_one() -> None:
    pixels = np.full((4, 4, 3), 200, dtype=np.uint8)
    pixels[1, 1] = 0
    covered = cover(Image.fromarray(pixels), [(0.26, 0.26, 0.261, 0.261)])
    assert (np.asarray(covered) == 200).all()


def test_the_gallery_is_there() -> None:
    for name, asked in questions().items():
        assert open_picture(name, "", LimitsConfig()).size
        assert asked
    assert set(questions()) == set(ALTERNATIVES) == {path.stem for path in PICTURES.glob("*.png")}


@pytest.mark.parametrize("data", ["", "https://example.com/a.png", "/etc/passwd", "file:///etc/passwd"])
def test_only_pictures_that_are_sent_are_opened(data: str) -> None:
    with pytest.raises(InvalidRequestError, match="Choose one"):
        open_picture("", data, LimitsConfig())


def test_a_bad_picture_is_refused() -> None:
    with pytest.raises(ImageError):
        open_picture("", "data:image/png;base64,bm9uZQ==", LimitsConfig())
    with pytest.raises(InvalidRequestError, match="no picture 'passwd'"):
        open_picture("passwd", "", LimitsConfig())


def test_figures_are_the_reports_and_the_large_models(make_report: Callable[..., RunReport]) -> None:
    report = make_report(
        small_tflops=0.002,
        large_tflops=0.003,
        large_alone_tflops=0.01,
        stage_ms={
            "queue": 5.0,
            "encode_small": 10.0,
            "generate_small": 30.0,
            "generate_large": 50.0,
            "total": 95.0,
        },
    )
    prices = Price.per_hour(3.6), Price.per_hour(36)
    operations, time, money = figure_rows(report, AloneRun(text="8", ms=190.0), prices)
    assert (operations.ours_text, operations.alone_text) == ("5 GFLOP", "10 GFLOP")
    assert operations.share == pytest.approx(0.5)
    assert (time.small, time.large, time.rest, time.alone) == (40.0, 50.0, 5.0, 190.0)
    assert time.share == pytest.approx(0.5)
    # 3.6 an hour is a millionth a millisecond; waiting costs nothing.
    assert (money.small, money.large, money.alone) == pytest.approx((0.04, 0.5, 1.9))
    assert money.share == pytest.approx(0.54 / 1.9)


def test_an_early_exit_has_no_large_part_and_nothing_costs_nothing(
    make_report: Callable[..., RunReport],
) -> None:
    free = Price.per_hour(0), Price.per_hour(0)
    operations, time, money = figure_rows(make_report(), AloneRun(text="", ms=10.0), free)
    assert (operations.large, time.large) == (0.0, 0.0)
    assert time.small == pytest.approx(14.6)
    assert (money.share, money.ours_text) == (None, "0")
