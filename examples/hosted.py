"""A hosted large model behind a small one of one's own: what is asked, sent and paid, three ways.

    python examples/hosted.py                                        # the bundled large model plays the host
    python examples/hosted.py --large openai:gpt-5-mini --price 0.25 2 --tokens openai-patches
    python examples/hosted.py --url http://host:8000/v1 --large some-model       # vLLM and its like

Without ``--large``, the bundled large model answers behind OpenAI's interface on this machine, and the output
says so; its prices are made up. Keys come from the environment: OPENAI_API_KEY, or what the provider reads.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.messages import HumanMessage
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from langchain_sgl import ChatSGL, SGLUsage, get_sgl_usage_callback, image_block
from sgl_engine import OpenAIModel, PatchTokens, Price, SendConfig
from sgl_engine.demo.loopback import serve
from sgl_engine.demo.pages import draw_page
from sgl_engine.demo.pages.generator import TRANSCRIPTION

BUNDLED_TOKENS = PatchTokens(side=16)
"""Of the bundled large model: 144 tokens a tile of 192 x 192 pixels."""
MADE_UP = Price(input=2.5, output=10)
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full", {"escalate": "always"}),
    ("cascade + full", {"send": "full"}),
    ("cascade + crop", {"send": "crop"}),
)


def receipts(count: int) -> Iterator[tuple[Any, str, str]]:
    """Drawn receipts and notes, several on a page: picture, question and answer, until there are enough."""
    seed = 0
    while count > 0:
        page = draw_page(seed, only=("document",), tiles=4)
        short = [question for question in page.questions if question.kind != TRANSCRIPTION]
        for question in random.Random(seed).sample(short, min(5, count, len(short))):  # noqa: S311
            yield Image.fromarray(page.pixels), question.text, question.answer
            count -= 1
        seed += 1


def ask_all(chat: ChatSGL, tasks: Sequence[tuple[Any, str, str]]) -> tuple[int, SGLUsage, list[Any]]:
    """How many answers are right, what they took, and their reports."""
    messages = [
        [HumanMessage([image_block(picture), {"type": "text", "text": text}])] for picture, text, _ in tasks
    ]
    with get_sgl_usage_callback() as usage:
        answers = chat.batch(messages)
    right = sum(found.text.strip() == answer for found, (_, _, answer) in zip(answers, tasks, strict=True))
    return right, usage.totals, [found.response_metadata["sgl"] for found in answers]


def row(name: str, count: int, right: int, usage: SGLUsage, reports: Sequence[Any]) -> list[str]:
    """One line of the table."""
    sent = [report["sent"] for report in reports if report["sent"]]
    return [
        name,
        f"{right / count:.0%}",
        f"{usage.escalations} of {count}",
        f"{sum(each['sent_pixels'] for each in sent):,}",
        f"{usage.large_input_tokens:,}",
        f"{usage.cost:.6f}",
    ]


@contextmanager
def hosted(options: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """The hosted model, and what prices call it."""
    if options.large is None:
        with serve() as server, OpenAIModel(server.base_url, server.model, timeout_s=600) as model:
            yield model, model.name
    elif options.url is not None:
        key = os.environ.get("OPENAI_API_KEY")
        with OpenAIModel(options.url, options.large, api_key=key) as model:
            yield model, model.name
    else:
        from langchain.chat_models import init_chat_model

        from langchain_sgl import LangChainModel

        model = LangChainModel(init_chat_model(options.large))
        yield model, model.name


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", help="folder or hub id of the small model; default: the bundled one")
    parser.add_argument("--large", help="name for init_chat_model, or of the server's model with --url")
    parser.add_argument("--url", help="an OpenAI-compatible server, up to /v1")
    parser.add_argument("--price", nargs=2, metavar=("IN", "OUT"), help="per million tokens")
    rules = ("openai-tiles", "openai-patches", "anthropic", "gemini")
    parser.add_argument("--tokens", choices=rules, help="how the provider counts pictures")
    parser.add_argument("--questions", type=int, default=50)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks all questions three ways, and prints a table."""
    logging.set_verbosity_error()
    options, console = parse(arguments), Console()
    tasks = list(receipts(options.questions))
    price = MADE_UP if options.price is None else Price(input=options.price[0], output=options.price[1])
    rule = options.tokens or (BUNDLED_TOKENS if options.large is None else None)
    table = Table("sent", "right", "asked", "pixels sent", "tokens in", "money")
    with hosted(options) as (large, name):
        for title, settings in WAYS:
            send = SendConfig(mode=settings.get("send", "full"), picture_tokens=rule)
            chat = ChatSGL(
                small=options.small,
                large=large,
                prices={name: price},
                **{**settings, "send": send},
            )
            table.add_row(*row(title, len(tasks), *ask_all(chat, tasks)))
    if options.large is None:
        console.print(
            "The bundled large model plays the hosted one, on this machine; its prices are made up.",
            style="bold",
        )
    console.print(f"{len(tasks)} questions about drawn receipts; large model: {name}")
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
