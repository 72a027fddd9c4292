"""Pages of 1 to 6 tiles with documents, tables, forms, scenes and charts, and questions about them."""

from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages.bars import BarChart, PageBar
from sgl_engine.demo.pages.documents import PageDocument
from sgl_engine.demo.pages.generator import (
    Page,
    compose_page,
    draw_page,
    heldout_pages,
    pick_questions,
    split_of,
)
from sgl_engine.demo.pages.lines import LineChart
from sgl_engine.demo.pages.scenes import PageScene, PageThing
from sgl_engine.demo.pages.sheet import Fact, Frame
from sgl_engine.demo.pages.tables import Form, PageTable

__all__ = [
    "BarChart",
    "Fact",
    "Form",
    "Frame",
    "LineChart",
    "Page",
    "PageBar",
    "PageDocument",
    "PageScene",
    "PageTable",
    "PageThing",
    "Question",
    "compose_page",
    "draw_page",
    "heldout_pages",
    "pick_questions",
    "split_of",
]
