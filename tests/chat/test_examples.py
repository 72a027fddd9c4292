"""Every example runs, offline, and what it prints is true."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import agent  # noqa: E402  # scripts: their folder is on the path only now
import chain  # noqa: E402
import decisions  # noqa: E402
import graph  # noqa: E402
import hosted  # noqa: E402
import rag  # noqa: E402

from langchain_sgl import ChatSGL, SGLUsageCallbackHandler  # noqa: E402
from sgl_engine.demo import PICTURES  # noqa: E402
from sgl_engine.demo.pages import draw_page  # noqa: E402

Output = pytest.CaptureFixture[str]


def test_each_example_is_in_the_readme_and_the_other_way_round() -> None:
    listed = re.findall(r"\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_a_script_runs_from_anywhere_without_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "agent.py")]  # the one that asks least
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "SCRIPTED" in done.stdout
    assert "\x1b[" not in done.stdout


def test_chain_answers_every_question_of_the_batch(capsys: Output) -> None:
    assert chain.main([]) == 0
    out = capsys.readouterr().out
    count = len(chain.bundled_questions())
    (right,) = re.findall(rf"^(\d+) of {count} answers are right\.$", out, flags=re.MULTILINE)
    assert int(right) >= 0.8 * count  # a floor, not the measurement
    assert re.search(rf"^calls +{count}$", out, flags=re.MULTILINE)
    assert re.search(r"^  escalated +[1-9]", out, flags=re.MULTILINE)


def test_chain_takes_pictures_of_ones_own(capsys: Output) -> None:
    assert chain.main([str(PICTURES / "chart.png")]) == 0
    assert "transcribe the" in capsys.readouterr().out


def test_decisions_sorts_a_folder_and_leaves_it_as_it_is(capsys: Output, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in PICTURES.iterdir()}
    decisions.main([str(PICTURES), "--out", str(tmp_path / "boxes")])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    kind, _, legible, above, *box = rows["receipt.png"][1:9]
    assert (kind, float(legible) > 0.5, float(above) > 0.5) == ("receipt", True, False)
    left, top, right, bottom = map(float, box[:4])
    with Image.open(tmp_path / "boxes" / "receipt.png") as drawn:
        width, height = drawn.size
        assert drawn.getpixel((round(left * width) + 4, round(top * height))) == (255, 0, 0)
    assert 0 < left < right < 1
    assert bottom > top > 0.5  # a total stands at the end
    assert [path.name for path in (tmp_path / "boxes").iterdir()] == ["receipt.png"]
    assert {path.name: path.stat().st_mtime_ns for path in PICTURES.iterdir()} == before


def test_chain_marks_wrong_answers() -> None:
    report = {"route": "small", "score": 0.9, "saved_fraction": 0.5}
    tasks = [(Path("a.png"), "?", "1"), (Path("b.png"), "?", "2")]
    table = chain.report_table(tasks, [{"answer": "1", "report": report}, {"answer": "1", "report": report}])
    assert [str(row.style) for row in table.rows] == ["", "red"]


def test_graph_counts_the_branches_that_were_taken(capsys: Output) -> None:
    code = graph.main([])
    out = capsys.readouterr().out
    (line,) = re.findall(r"Settled by: (.*)\.", out)
    taken = {name: int(re.findall(rf"\b{name} (\d)", line)[0]) for name in graph.BRANCHES}
    assert sum(taken.values()) == 8
    assert taken["ask"]
    assert code == int(0 in taken.values())  # which ones are taken depends on the pair: --find
    assert "played by a script" in out
    assert ("a person says" in out) == bool(taken["person"])


def test_graph_says_when_a_branch_was_not_taken(capsys: Output) -> None:
    assert graph.main(["--questions", "1"]) == 1
    assert re.search(r"Settled by: .*\b0", capsys.readouterr().out)


def test_graph_waits_for_the_person_and_keeps_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can be sure at these thresholds: the graph stops, and goes on when it is resumed."""
    monkeypatch.setattr(graph, "SURE", 1.01)
    monkeypatch.setattr(graph, "LARGE_SURE", 1.01)
    built, asked = graph.build_graph(), graph.Question(question="How much is the total?", picture="noise")
    context = graph.Context(ChatSGL(), {"noise": Image.effect_noise((192, 192), 90).convert("RGB")})
    config = {"configurable": {"thread_id": "1"}}
    state = built.invoke(asked, config, context=context)
    (waiting,) = state["__interrupt__"]
    assert waiting.value["question"] == asked["question"]
    assert set(waiting.value) == {"question", "picture", "first", "large"}
    assert "answer" not in state
    resumed = built.invoke(graph.Command(resume="no total"), config, context=context)
    assert (resumed["answer"], resumed["branch"]) == ("no total", "person")
    assert len(resumed["why"]) == 4
    assert len(repr(built.get_state(config).values)) < 5_000  # the picture has 110,592 bytes


def test_graph_asks_who_it_is_told_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Mapping[str, Any]] = []

    def somebody(asked: Mapping[str, Any]) -> str:
        shown.append(asked)
        return "no idea"

    monkeypatch.setattr(graph, "LARGE_SURE", 0.999)
    states = [state for state, _, _ in graph.runs(8, graph.FIRST, SGLUsageCallbackHandler(), somebody)]
    handed_over = [state for state in states if state["branch"] == "person"]
    assert [state["answer"] for state in handed_over] == ["no idea"] * len(shown)
    assert shown


def test_a_spotlight_keeps_place_and_size() -> None:
    picture = Image.fromarray(draw_page(3, tiles=1, only=["document"]).pixels)
    answer = graph.Context(ChatSGL(), {}).ask(
        picture, "transcribe the picture", escalate="never", evidence=True
    )
    evidence = graph.Evidence.from_message(answer)
    closer = graph.spotlight(picture, evidence)
    _, top, _, bottom = evidence.box(share=graph.EVIDENCE_SHARE)
    middle = int((top + bottom) / 2 * picture.height)
    row = (0, middle, picture.width, middle + 1)
    assert closer.size == picture.size
    assert closer.crop(row).tobytes() == picture.crop(row).tobytes()
    assert closer.tobytes() != picture.tobytes()


def test_graph_can_be_measured(capsys: Output) -> None:
    assert graph.main(["--measure", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +ask +\d", out, flags=re.MULTILINE)
    assert "3 held-out questions" in out


def test_agent_spends_its_budget_and_goes_on_with_the_small_model(capsys: Output) -> None:
    assert agent.main([]) == 0
    out = capsys.readouterr().out
    assert "SCRIPTED" in out
    assert "0 of 1" in out
    spent = out.index("budget for the large vision model is spent: escalations in this run: 1 of 1")
    assert out.index("answered by the large model") < spent
    assert "answered by the large model" not in out[spent:]
    assert "may not be asked" in out[spent:]
    assert len(re.findall(r"\(doubtful: the small model's score is 0\.\d\d", out)) == 1
    assert re.search(r"^  escalated +1 ", out, flags=re.MULTILINE)


def test_agent_with_a_larger_budget_doubts_nothing(capsys: Output) -> None:
    assert agent.main(["--escalations", "9"]) == 0
    out = capsys.readouterr().out
    assert "large vision model is spent" not in out
    assert "doubtful" not in out
    assert len(re.findall("answered by the large model", out)) == 2


def test_agent_takes_any_model_by_name(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []

    def init(name: str) -> agent.ScriptedModel:
        named.append(name)
        return agent.ScriptedModel(plan=agent.QUESTIONS[:1])

    monkeypatch.setattr(agent, "init_chat_model", init)
    assert agent.main(["--model", "somebody:some-model"]) == 0
    out = capsys.readouterr().out
    assert named == ["somebody:some-model"]
    assert "The agent's model is somebody:some-model." in out
    assert "SCRIPTED" not in out


def test_agent_explains_a_model_that_does_not_exist(capsys: Output) -> None:
    with pytest.raises(SystemExit, match="2"):
        agent.main(["--model", "nobody:nothing"])
    assert "nobody" in capsys.readouterr().err


def test_rag_answers_a_question_that_needs_two_pictures(capsys: Output) -> None:
    assert rag.main(["--receipts", "5", "--questions", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "first run of the indexer: 5 pictures transcribed, 0 unchanged" in out
    assert "second run of the indexer: 0 pictures transcribed, 5 unchanged" in out
    assert "2 random questions, two pictures each" in out
    one, other, result, truth, verdict = re.findall(  # type: ignore[misc]
        r"Together: (\S+) \+ (\S+) = (\S+); the receipts say (\S+): (right|WRONG)", out
    )[0]
    if result != "None":
        assert f"{float(one) + float(other):.2f}" == result
    assert (verdict == "right") == (result == truth)


def test_rag_over_a_folder_claims_no_truth(tmp_path: Path, capsys: Output) -> None:
    truth = rag.draw_receipts(tmp_path, 3, start=0)
    (item, _), (_, mark), *_ = next(iter(truth.values())).items()
    assert rag.main(["--folder", str(tmp_path), "--ask", item, mark, mark]) == 0
    out = capsys.readouterr().out
    assert "first run of the indexer: 3 pictures transcribed" in out
    assert "the receipts say" not in out
    assert "random questions" not in out
    assert (tmp_path / rag.MANIFEST).exists()


def test_rag_asks_for_both_a_folder_and_a_question() -> None:
    with pytest.raises(SystemExit, match="2"):
        rag.main(["--folder", "."])


def test_random_questions_name_each_receipt_by_what_no_other_says() -> None:
    truth = {
        "a": {"tea": "1.00", "milk": "2.00"},
        "b": {"tea": "3.00", "milk": "4.00"},
        "c": {"tea": "5.00", "bread": "1.00"},
    }
    questions = list(rag.random_questions(truth, 100, seed=1))
    assert questions
    for one, other in questions:
        assert one.item == other.item
        assert one.source != other.source
        for asked in (one, other):
            assert asked.mark in truth[str(asked.source)].values()
            assert asked.mark != truth[str(asked.source)][asked.item]
            assert sum(asked.mark in lines.values() for lines in truth.values()) == 1


def test_hosted_says_who_plays_the_host(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from contextlib import contextmanager

    import httpx

    from sgl_engine import OpenAIModel
    from sgl_engine.demo.loopback import serve

    @contextmanager
    def host(options: Any) -> Any:
        del options
        with serve(socket=tmp_path / "host.sock") as server:
            transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "host.sock"))
            with OpenAIModel(server.base_url, server.model, transport=transport) as model:
                yield model, model.name
            assert {each["model"] for each in server.bodies} == {server.model}

    monkeypatch.setattr(hosted, "hosted", host)
    assert hosted.main(["--questions", "2"]) == 0
    out = capsys.readouterr().out
    assert "The bundled large model plays the hosted one" in out
    for way, _ in hosted.WAYS:
        assert re.search(rf"│ {re.escape(way)} +│ +\d+%", out)
    assert re.search(r"full +│ +\d+% +│ 2 of 2", out)
