"""A LangGraph graph that branches on confidence: ask, look closer, escalate, or hand over to a person.

    ask ------------ the small model is sure ------------------> END
     |
    look_closer ---- it says the same about the evidence ------> END
     |
    escalate ------- the large model is sure ------------------> END
     |
    person --------- interrupts the graph until one answers ---> END

    python examples/graph.py                   # eight held-out questions; a script plays the person
    python examples/graph.py --person          # you are the person
    python examples/graph.py --measure 400     # how often each branch is taken, and how often it is right

The same graph for any pair that the environment names (SGL_SMALL and SGL_LARGE). Its rules:

- The closer look shows the evidence *in its place*, on plain paper, and as wide as the picture, because text
  is read along lines and small pairs know pages of the sizes that they were trained on. A tight crop, blown
  up, is another picture to them.
- A second look alone proves little. Agreement counts as evidence where the small model is sure of it, and
  another answer never replaces the first.
- The large model is asked without pruning; its own probability of its answer tells which ones a person
  should see.

`--measure 400 --start 30000` says how often each branch settles a question, and how often rightly; `--find`
prints from which seed on the eight questions take every branch (`FIRST`), which depends on the pair.
"""

from __future__ import annotations

import argparse
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, cast

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from PIL import Image, ImageStat
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from langchain_sgl import ChatSGL, Evidence, SGLUsageCallbackHandler, image_block
from sgl_engine.demo.pages import heldout_pages

SURE = 0.8
"""What the small model's score must reach, at the first look and at the second."""
LARGE_SURE = 0.5
"""What the large model's probability of its own answer must reach."""
EVIDENCE_SHARE = 0.3
FIRST = 26
"""First seed of the questions that are shown: from here on, eight take every branch (``--find``)."""
SAVED = "Saved below is against the large model answering every *call*; a question takes up to three.\n"
BRANCHES = ("ask", "look_closer", "escalate", "person")

Branch = Literal["ask", "look_closer", "escalate", "person"]
Person = Callable[[Mapping[str, Any]], str]


class Question(TypedDict):
    """What the graph is given; the picture by name, so that no checkpoint holds its pixels."""

    question: str
    picture: str


class State(Question, total=False):
    """What it finds out.

    Attributes:
        answer: The answer, once a branch is satisfied with one.
        branch: The branch that was.
        first: What the small model said at first.
        evidence: Where it looked: JSON of ``Evidence``.
        large: What the large model said.
        why: One line per step.
    """

    answer: str
    branch: Branch
    first: str
    evidence: dict[str, Any]
    large: str
    why: Annotated[list[str], operator.add]


@dataclass(frozen=True)
class Context:
    """What the nodes need and no checkpoint should hold."""

    chat: ChatSGL
    pictures: Mapping[str, Image.Image]

    def ask(self, picture: Image.Image, question: str, **options: Any) -> AIMessage:
        """One call of the model."""
        return self.chat.invoke([HumanMessage([image_block(picture), question])], **options)


def ask(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """The small model alone, on the whole picture."""
    picture = runtime.context.pictures[state["picture"]]
    answer = runtime.context.ask(picture, state["question"], escalate="never", evidence=True)
    score = answer.response_metadata["sgl"]["score"]
    found: dict[str, Any] = {
        "first": answer.text,
        "evidence": Evidence.from_message(answer).to_json(),
        "why": [f"small says {answer.text!r}, score {_compared(score, SURE)}"],
    }
    return found | (_settled(answer.text, "ask") if score >= SURE else {})


def look_closer(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """The small model again, on its own evidence alone."""
    picture = runtime.context.pictures[state["picture"]]
    closer = spotlight(picture, Evidence.from_json(state["evidence"]))
    answer = runtime.context.ask(closer, state["question"], escalate="never")
    score, agrees = answer.response_metadata["sgl"]["score"], answer.text == state["first"]
    verdict = "the same" if agrees else f"{_short(answer.text)!r}"
    found: dict[str, Any] = {"why": [f"on its evidence alone {verdict}, score {_compared(score, SURE)}"]}
    return found | (_settled(answer.text, "look_closer") if agrees and score >= SURE else {})


def escalate(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """The large model, on every visual token."""
    picture = runtime.context.pictures[state["picture"]]
    answer = runtime.context.ask(
        picture, state["question"], escalate="always", retention="100%", logprobs=True
    )
    tokens = answer.response_metadata["logprobs"]["content"]
    probability = math.exp(sum(token["logprob"] for token in tokens))
    found: dict[str, Any] = {
        "large": answer.text,
        "why": [f"large says {_short(answer.text)!r}, probability {_compared(probability, LARGE_SURE)}"],
    }
    return found | (_settled(answer.text, "escalate") if probability >= LARGE_SURE else {})


def person(state: State) -> dict[str, Any]:
    """Stops the graph until somebody resumes it with an answer."""
    answer: str = interrupt({name: state[name] for name in ("question", "picture", "first", "large")})
    return {"why": [f"a person says {_short(answer)!r}"], **_settled(answer, "person")}


def build_graph() -> Any:
    """The graph, with a checkpointer, without which nothing can be interrupted."""
    builder = StateGraph(State, context_schema=Context, input_schema=Question)
    for node in (ask, look_closer, escalate, person):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "ask")
    for name, otherwise in itertools.pairwise(BRANCHES):
        builder.add_conditional_edges(name, _unless_settled(otherwise), [END, otherwise])
    builder.add_edge("person", END)
    return builder.compile(checkpointer=InMemorySaver())


def spotlight(picture: Image.Image, evidence: Evidence) -> Image.Image:
    """The strip of the picture that holds the evidence, in its place, on paper of the picture's colour."""
    _, top, _, bottom = evidence.box(share=EVIDENCE_SHARE)
    rows = math.floor(top * picture.height), math.ceil(bottom * picture.height)
    paper = tuple(ImageStat.Stat(picture).median)
    closer = Image.new("RGB", picture.size, paper)
    closer.paste(picture.crop((0, rows[0], picture.width, rows[1])), (0, rows[0]))
    return closer


def _unless_settled(otherwise: str) -> Callable[[State], str]:
    return lambda state: END if "answer" in state else otherwise


def _settled(answer: str, branch: Branch) -> dict[str, Any]:
    return {"answer": answer, "branch": branch}


def _compared(value: float, threshold: float) -> str:
    return f"{value:.2f} {'>=' if value >= threshold else '<'} {threshold}"


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:29]}..."


def run(graph: Any, question: Question, context: Context, who: Person, usage: Any) -> State:
    """One question through the graph; whoever is the person answers its interrupt."""
    config = {"configurable": {"thread_id": question["picture"]}, "callbacks": [usage]}
    state: Any = graph.invoke(question, config, context=context)
    if waiting := state.get("__interrupt__"):
        state = graph.invoke(Command(resume=who(waiting[0].value)), config, context=context)
    return cast("State", state)


def runs(count: int, start: int, usage: Any, who: Person | None = None) -> Iterator[tuple[State, str, str]]:
    """(final state, kind of question, right answer) of held-out questions, one picture each."""
    graph, chat = build_graph(), ChatSGL()
    for page, question in heldout_pages(count, start=start):
        name = f"page-{page.seed}"
        context = Context(chat, {name: Image.fromarray(page.pixels)})
        # The scripted person knows what was drawn: it stands for somebody who can read.
        answers: Person = who or (lambda _, truth=question.answer: truth)  # type: ignore[misc]
        state = run(graph, Question(question=question.text, picture=name), context, answers, usage)
        yield state, question.kind, question.answer


def ask_on_the_terminal(asked: Mapping[str, Any]) -> str:
    """The person at the keyboard; the picture is saved, so that it can be looked at."""
    print(f"  {asked['question']}  (small: {asked['first']!r}, large: {asked['large']!r})")
    return input("  Your answer: ").strip()


def show(console: Console, count: int, start: int, who: Person | None) -> int:
    """Questions one by one, with the way that each took and why; 1 if a branch was never taken."""
    usage = SGLUsageCallbackHandler()
    taken = dict.fromkeys(BRANCHES, 0)
    played = "You are the person." if who else "The person is played by a script that knows what was drawn."
    console.print(f"{count} held-out questions, from seed {start} on. {played}\n")
    for state, kind, truth in runs(count, start, usage, who):
        taken[state["branch"]] += 1
        verdict = "right" if state["answer"] == truth else f"WRONG, it is {truth!r}"
        path = " > ".join(BRANCHES[: BRANCHES.index(state["branch"]) + 1])
        console.print(f"[bold]{state['picture']}[/]  {state['question']}  [dim]({kind})[/]", soft_wrap=True)
        for step, why in zip(BRANCHES, state["why"], strict=False):
            console.print(f"  {step:12}{why}", soft_wrap=True, markup=False)
        console.print(f"  {path}: {state['answer']!r}, {verdict}\n", soft_wrap=True, markup=False)
    console.print("Settled by: " + ", ".join(f"{name} {number}" for name, number in taken.items()) + ".")
    console.print(SAVED)
    print(usage)
    return int(0 in taken.values())


def find(count: int, start: int, most: int = 500) -> int:
    """The first seed from which ``count`` questions take every branch; -1 where none of ``most`` does."""
    taken = [state["branch"] for state, _, _ in runs(most, start, SGLUsageCallbackHandler())]
    for first in range(most - count + 1):
        if set(taken[first : first + count]) == set(BRANCHES):
            return start + first
    return -1


def measure(console: Console, count: int, start: int) -> None:
    """A table of the branches: how often each settles a question, and how often rightly."""
    usage = SGLUsageCallbackHandler()
    outcomes = [(state["branch"], state["answer"] == truth) for state, _, truth in runs(count, start, usage)]
    table = Table(title=f"{count} held-out questions, from seed {start} on", box=box.SIMPLE_HEAD)
    for column in ("settled by", "questions", "share", "right"):
        table.add_column(column, justify="left" if column == "settled by" else "right")
    for name in BRANCHES:
        right = [hit for branch, hit in outcomes if branch == name]
        share = f"{sum(right) / len(right):.0%}" if right else ""
        accuracy = "(played)" if name == "person" else share
        table.add_row(name, str(len(right)), f"{len(right) / count:.0%}", accuracy)
    models = [hit for branch, hit in outcomes if branch != "person"]
    table.add_row(
        "models", str(len(models)), f"{len(models) / count:.0%}", f"{sum(models) / len(models):.0%}"
    )
    console.print(table)
    console.print(SAVED)
    print(usage)


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the graph at work, or measures it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--start", type=int, default=FIRST, help="first seed (default: %(default)s)")
    parser.add_argument(
        "--find", action="store_true", help="print the first start of questions that take every branch"
    )
    parser.add_argument("--person", action="store_true", help="you answer what is handed over")
    parser.add_argument("--measure", type=int, metavar="N", help="measure N questions instead")
    arguments = parser.parse_args(argv)
    logging.disable_progress_bar()

    console = Console(highlight=False)
    if arguments.find:
        console.print(f"FIRST = {find(arguments.questions, arguments.start)}")
        return 0
    if arguments.measure:
        measure(console, arguments.measure, arguments.start)
        return 0
    who = ask_on_the_terminal if arguments.person else None
    return show(console, arguments.questions, arguments.start, who)


if __name__ == "__main__":
    raise SystemExit(main())
