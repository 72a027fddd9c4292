"""What a conversation about pictures weighs in a checkpoint; docs/langchain.md quotes these numbers."""

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from PIL import Image
from recording_model import QUESTION, call

from langchain_sgl import ChatSGL, InMemoryPictureStore, SGLToolkit, image_block
from langchain_sgl.tools.toolkit import EvidenceForm
from sgl_engine.demo import PICTURES

PAGE = "page.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page as a scanner writes it: 850 x 1,100 pixels, with the grain of paper."""
    root = tmp_path_factory.mktemp("pages")
    page = Image.open(PICTURES / "receipt.png").convert("L").resize((850, 1100))
    grain = np.random.default_rng(0).integers(0, 16, (1100, 850))
    Image.fromarray(np.clip(np.asarray(page).astype(int) - grain, 0, 255).astype(np.uint8)).save(root / PAGE)
    return root


def stored_bytes(message: Any) -> int:
    """Bytes that a checkpointer writes for one message of a conversation, beyond an empty one."""

    def checkpoint(content: Any) -> int:
        saver = InMemorySaver()
        graph = StateGraph(MessagesState)
        graph.add_node("wait", lambda _: {})
        graph.add_edge(START, "wait")
        graph.add_edge("wait", END)
        config: Any = {"configurable": {"thread_id": "t"}}
        graph.compile(checkpointer=saver).invoke({"messages": content}, config)
        return max(len(data) for _, data in saver.blobs.values())

    return checkpoint([message]) - checkpoint([])


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, int]:
    """Bytes of each row of the page's tables, by how the row begins."""
    chat = ChatSGL(image_root=folder)
    named = HumanMessage([{"type": "image", "path": PAGE}, QUESTION])
    sizes = {
        '`{"type": "image", "path"': stored_bytes(named),
        '`image_block("https://': stored_bytes(
            HumanMessage([image_block("https://example.com/page.png"), QUESTION])
        ),
        "`image_block(Path(": stored_bytes(HumanMessage([image_block(folder / PAGE), QUESTION])),
        "an answer with its report": stored_bytes(chat.invoke([named])),
        "the same with `evidence=True`": stored_bytes(chat.invoke([named], evidence=True)),
    }
    for form in get_args(EvidenceForm):
        look = SGLToolkit(model=ChatSGL(), root=folder, evidence=form).get_tools()[0]
        sizes[f'`"{form}"`'] = stored_bytes(call(look, question=QUESTION, picture=PAGE))
    return sizes


def test_the_page_says_what_a_checkpoint_weighs(measured: dict[str, int]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "langchain.md").read_text()
    rows = re.findall(r"^\| (.+) \| ([\d,.]+) kB \|$", page, flags=re.MULTILINE)
    assert len(rows) == len(measured)
    for start, size in measured.items():
        [shown] = [float(number.replace(",", "")) for row, number in rows if row.startswith(start)]
        assert size / 1000 == pytest.approx(shown, rel=0.1, abs=0.3), start


def test_references_are_lean_and_pictures_are_not(folder: Path, measured: dict[str, int]) -> None:
    page = (folder / PAGE).stat().st_size
    assert measured['`{"type": "image", "path"'] < 600
    assert measured["`image_block(Path("] > 4 / 3 * page > 200_000
    assert measured['`"picture"`'] < measured['`"box"`'] + 200
    assert measured['`"inline"`'] > 100_000


def test_a_store_of_drawings_holds_the_newest() -> None:
    store = InMemoryPictureStore({"a": b"1", "b": b"2"}, max_pictures=2)
    store.add(b"3", "a")  # the newest from here on
    store.add(b"4", "c")
    assert store.ids() == ["a", "c"]
    assert (store.get("a"), store.get("b")) == (b"3", None)
    assert len(InMemoryPictureStore({str(n): b"1" for n in range(9)})) == 9
