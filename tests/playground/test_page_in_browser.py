"""The page in headless Chromium, with the bundled pair behind it. Skipped where there is no Chromium."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundled import OVERRULED
from pydantic import SecretStr
from served import Running, serving

from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.playground import create_playground
from sgl_engine.server import ServerSettings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium (Debian: apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

DONE = "#bars[aria-busy=false] .row"
RECEIPT = "?picture=receipt&q=How+much+is+the+total%3F"

# Ratio of each text's colour to the ground under it, as WCAG 2 defines it; only what is below 4.5.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(".sr, .skip, canvas, select")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

# Controls that a screen reader has no name for.
UNNAMED = """() => {
  const named = (each) => each.ariaLabel || each.alt || each.textContent.trim()
    || each.querySelector("img[alt]") || [...(each.labels || [])].some((label) => label.textContent.trim());
  return [...document.querySelectorAll("button, input, select, a, canvas, img, [role=meter]")]
    .filter((each) => each.checkVisibility() && !named(each)).map((each) => each.outerHTML);
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(demo_engine(), make_app=create_playground) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # CI runs as root, under which Chromium has no sandbox.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page that is open, what it has asked for, and what has gone wrong in it."""

    def __init__(self, browser: Any, server: Running, query: str = "", **context: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1400, "height": 900}, "reduced_motion": "reduce"} | context
        )
        self.page = self.context.new_page()
        self.asked: list[dict[str, Any]] = []
        self.outside: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self._note(request, server.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        self.page.goto(server.url + "/" + query)
        self.page.wait_for_selector(DONE)

    def _note(self, request: Any, own: str) -> None:
        if not request.url.startswith((own, "data:", "blob:")):
            self.outside.append(request.url)
        if request.url.endswith("/ask"):
            self.asked.append(json.loads(request.post_data))

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def wait(self, questions: int) -> None:
        """Until the page has asked so often, whether or not it is answered."""
        while len(self.asked) < questions:
            self.page.wait_for_timeout(20)

    def settle(self, parts: set[str], questions: int = 0) -> None:
        """Until the page has asked so often, last for just these parts, and is answered."""
        self.wait(questions)
        while set(self.asked[-1]["parts"]) != parts:
            self.page.wait_for_timeout(20)
        self.page.wait_for_selector(DONE)
        self.page.wait_for_selector("#ask:text-is('Ask')")


@pytest.fixture(scope="module")
def visit(browser: Any, server: Running) -> Iterator[Any]:
    """Opens pages, and at the end looks whether any of them failed or asked for anything outside."""
    visits = []

    def open_page(query: str = "", **context: Any) -> Visit:
        visits.append(Visit(browser, server, query, **context))
        return visits[-1]

    yield open_page
    for each in visits:
        each.context.close()
    assert [each.faults + each.outside for each in visits] == [[] for _ in visits]


@pytest.fixture(scope="module")
def first(visit: Any) -> Any:
    """What a newcomer sees, and another ranker; tests that share it ask nothing that changes the answers."""
    return visit("?ranker=uniform")


def test_a_newcomer_sees_both_answers_and_what_they_cost(first: Visit) -> None:
    report = json.loads(first.page.text_content("#report"))
    small = report["small_answer"]
    assert (first.text("#small-text"), first.text("#large-text")) == (small, OVERRULED.answer)
    assert small not in ("", OVERRULED.answer)
    assert "not sure" in first.text("#small-verdict")
    assert first.page.is_visible("#large-badge")
    assert not first.page.is_visible("#small-badge")
    assert "172 of 864" in first.text("#large-hint")
    assert re.findall(r"[\d.]+ GFLOP", first.text("#bars")) == [
        f"{1e3 * tera:.3g} GFLOP"
        for tera in (report["small_tflops"] + report["large_tflops"], report["large_alone_tflops"])
    ]
    assert len(first.page.query_selector_all("#bars .row")) == 3
    assert "172 of 864" in first.page.get_attribute("#canvas", "aria-label")


def test_another_ranker_stands_beside_ours(first: Visit) -> None:
    assert first.page.is_visible("#versus")
    assert first.text("#ours-text").startswith(f"{OVERRULED.answer} ")
    assert "uniform, 172 of 864" in first.text("#theirs-text")


def test_each_answer_token_has_its_heat(first: Visit) -> None:
    whole = first.page.locator("#canvas").screenshot()
    first.page.click("#tokens button:text-is('pink')")
    first.settle({"tokens"})
    assert first.page.get_attribute("#tokens button:text-is('pink')", "aria-pressed") == "true"
    assert first.page.locator("#canvas").screenshot() != whole
    first.page.click("#tokens button:text-is('whole answer')")
    assert first.page.locator("#canvas").screenshot() == whole  # control


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_at_any_width_in_any_light(first: Visit, scheme: str) -> None:
    page = first.page
    page.emulate_media(color_scheme=scheme)
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate(CONTRAST) == []
    page.evaluate("document.getElementById('focus').style.color = 'var(--line)'")  # control
    assert len(page.evaluate(CONTRAST)) == 1
    page.evaluate("document.getElementById('focus').style.color = ''")


def test_every_control_has_a_name_and_is_reached_by_the_tabulator(first: Visit) -> None:
    page = first.page
    assert page.evaluate(UNNAMED) == []
    page.evaluate("document.querySelector('#gallery img').alt = ''")  # control
    assert len(page.evaluate(UNNAMED)) == 1
    page.focus(".skip")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    wanted = ["own", "heat", "kept", "cover", "q", "ask", "t", "keep", "k", "copy", "download", "ranker"]
    assert [each for each in reached if each in wanted][: len(wanted)] == wanted


def test_sliders_by_the_keyboard_ask_only_for_what_they_change(visit: Any) -> None:
    page = visit(RECEIPT)
    assert page.page.is_visible("#small-badge")
    page.page.focus("#t")
    page.page.keyboard.press("End")
    assert page.page.is_visible("#large-badge")  # at once: the score is known
    page.settle({"pair"})
    assert page.asked[-1]["alone"]["text"] == "3.73"  # measured once, with the question
    assert json.loads(page.page.text_content("#report"))["route"] == "large"
    page.page.focus("#keep")
    page.page.keyboard.press("End")
    assert "All 144" in page.text("#large-hint")
    page.settle({"large", "pair"})
    assert {asked["salt"] for asked in page.asked} == {page.asked[0]["salt"]}


def test_a_link_restores_the_state(visit: Any) -> None:
    before = visit("?picture=scene&q=Is+there+a+blue+star%3F")
    before.page.focus("#k")
    before.page.keyboard.press("Home")
    before.page.uncheck("#heat")
    before.page.select_option("#ranker", "uniform")
    before.settle({"large", "ranker", "pair"})
    assert before.asked[0]["state"] != before.asked[-1]["state"]  # control
    after = visit("?" + before.page.url.partition("/?")[2])
    assert after.asked[0]["state"] == before.asked[-1]["state"]
    assert after.page.input_value("#q") == "Is there a blue star?"
    assert not after.page.is_checked("#heat")
    assert after.page.input_value("#ranker") == "uniform"
    assert after.page.url == before.page.url


def test_a_part_is_covered_by_mouse_and_by_keys_and_asked_about_again(visit: Any) -> None:
    page = visit(RECEIPT)
    assert page.text("#small-text") == "3.73"
    page.page.click("#cover")
    frame = page.page.locator("#canvas").bounding_box()
    page.page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.8 * frame["height"])
    page.page.mouse.down()
    page.page.mouse.move(frame["x"] + frame["width"], frame["y"] + frame["height"], steps=3)
    page.page.mouse.up()
    page.settle({"small", "large", "pair"}, questions=2)
    [covered] = page.asked[-1]["state"]["cover"]
    assert covered == pytest.approx([0.5, 0.8, 1.0, 1.0], abs=0.01)
    assert page.text("#small-text") != "3.73"
    assert "3.73" in page.text("#uncovered")
    page.page.focus("#canvas")
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    page.wait(questions=3)
    assert page.asked[-1]["state"]["cover"][1] == pytest.approx([0.38, 0.4, 0.58, 0.6])
    page.page.keyboard.press("Escape")
    assert page.page.get_attribute("#cover", "aria-pressed") == "false"
    page.page.click("#uncover")
    page.page.click("#uncover")
    page.settle({"small", "large", "pair"}, questions=5)
    assert page.text("#small-text") == "3.73"


def test_ones_own_picture_and_one_that_is_none(visit: Any, tmp_path: Path) -> None:
    page = visit(RECEIPT)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no picture")
    page.page.set_input_files("#own", bad)
    page.page.wait_for_selector("#notice:visible")
    assert page.text("#small-text") == "3.73"  # nothing is lost
    page.page.set_input_files("#own", PICTURES / "scene.png")
    page.page.wait_for_selector("#canvas[aria-label*='scene.png']")
    page.page.fill("#q", "Is there a blue star?")
    page.page.keyboard.press("Enter")
    page.settle({"small", "large", "pair"}, questions=3)
    assert page.text("#small-text") == "yes"
    assert page.asked[-1]["data"].startswith("data:image/png;base64,")


def test_with_a_key_the_page_asks_for_it(browser: Any, server: Running) -> None:
    settings = ServerSettings(api_key=SecretStr("open sesame"))
    with serving(server.app.state.sgl.engine, settings, make_app=create_playground, wait=False) as guarded:
        page = browser.new_page()
        page.goto(guarded.url + "/" + RECEIPT)
        for key in ("wrong", "open sesame"):
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", key)
            page.keyboard.press("Enter")
        page.wait_for_selector(DONE)
        assert page.inner_text("#small-text") == "3.73"
        page.close()
