"""A chain over pictures: prompt | ChatSGL | parser, run over a batch, with a report of each answer's cost.

    python examples/chain.py        # the bundled pictures and their questions
    python examples/chain.py a.png b.png --question "How much is the total?"

The bundled pair answers, or the pair that the environment names (SGL_SMALL and SGL_LARGE).
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableParallel
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from langchain_sgl import ChatSGL, SGLUsageCallbackHandler
from sgl_engine.demo import PICTURES


def build_chain(chat: ChatSGL) -> Runnable[dict[str, str], dict[str, Any]]:
    """{"picture": base64, "question": str} -> {"answer": str, "report": RunReport as JSON}."""
    prompt = ChatPromptTemplate.from_messages(
        [
            (
                "human",
                [
                    # The type is read from the bytes; LangChain wants one written down.
                    {"type": "image", "base64": "{picture}", "mime_type": "image/png"},
                    {"type": "text", "text": "{question}"},
                ],
            )
        ]
    )
    return prompt | chat | RunnableParallel(answer=StrOutputParser(), report=_report)


def _report(message: AIMessage) -> dict[str, Any]:
    report: dict[str, Any] = message.response_metadata["sgl"]
    return report


def bundled_questions() -> list[tuple[Path, str, str]]:
    """(picture, question, right answer) of the pictures that come with the package."""
    asked: dict[str, dict[str, str]] = json.loads((PICTURES / "questions.json").read_text())
    return [
        (PICTURES / f"{name}.png", question, truth)
        for name, questions in asked.items()
        for question, truth in questions.items()
    ]


def report_table(tasks: Sequence[tuple[Path, str, str | None]], results: Sequence[dict[str, Any]]) -> Table:
    """One line per question: what was answered, by whom, how sure the small model was, what was saved."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("picture", "question", "answer", "truth", "route"):
        table.add_column(column)
    for column in ("score", "saved"):
        table.add_column(column, justify="right")
    for (picture, question, truth), result in zip(tasks, results, strict=True):
        report = result["report"]
        wrong = truth is not None and result["answer"] != truth
        table.add_row(
            picture.stem,
            question,
            result["answer"],
            truth or "",
            report["route"],
            f"{report['score']:.2f}",
            f"{report['saved_fraction']:.0%}",
            style="red" if wrong else "",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chain over all questions at once and prints the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", type=Path, help="instead of the bundled ones")
    parser.add_argument("--question", default="transcribe the picture", help="asked about each given picture")
    arguments = parser.parse_args(argv)
    logging.disable_progress_bar()

    tasks: list[tuple[Path, str, Any]] = bundled_questions()
    if arguments.pictures:
        tasks = [(picture, arguments.question, None) for picture in arguments.pictures]
    inputs = [
        {"picture": base64.b64encode(picture.read_bytes()).decode(), "question": question}
        for picture, question, _ in tasks
    ]
    usage = SGLUsageCallbackHandler()
    # One engine answers one question at a time: more at once would wait for it, and their waiting add up.
    results = build_chain(ChatSGL()).batch(inputs, {"callbacks": [usage], "max_concurrency": 1})

    console = Console()
    console.print(report_table(tasks, results))
    right = [result["answer"] == truth for (_, _, truth), result in zip(tasks, results, strict=True) if truth]
    if right:
        console.print(f"{sum(right)} of {len(right)} answers are right.")
    console.print("Saved: the share of the compute that the large model alone would have needed.\n")
    print(usage)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
