"""The bundled pair in a GPU run: its answers however it is loaded, and training steps of its models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image

from sgl_engine import VLM, EngineConfig, Request
from sgl_engine.demo import WEIGHTS, demo_engine
from sgl_engine.demo.pages import heldout_pages


@dataclass(frozen=True)
class Answers:
    """What was answered.

    Attributes:
        texts: In order.
        routes: Whose answers they are.
        ms: Wall time of a question.
    """

    texts: tuple[str, ...]
    routes: tuple[str, ...]
    ms: float


def ask_pair(questions: int, **settings: Any) -> Answers:
    """Asks the bundled pair about drawn pages, one after the other.

    Args:
        questions: How many.
        settings: How it is loaded.
    """
    engine = demo_engine(EngineConfig().without_reuse(), **settings)
    requests = [
        Request.ask(question.text, Image.fromarray(page.pixels))
        for page, question in islice(heldout_pages(questions), questions)
    ]
    engine.run(requests[0])  # what is only done once is not counted
    started = time.perf_counter()
    found = [engine.run(request) for request in requests]
    ms = 1e3 * (time.perf_counter() - started) / len(found)
    texts, routes = ([answer.text for answer in found], [answer.report.route for answer in found])
    return Answers(tuple(texts), tuple(routes), ms)


def agreement(expected: Answers, found: Answers) -> tuple[str, str, str]:
    """How many answers and routes are the same, and what a question takes."""
    pairs = (expected.texts, found.texts), (expected.routes, found.routes)
    same = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
    return f"{same[0]} of {len(found.texts)}", str(same[1]), f"{found.ms:.0f}"


def train_steps(size: str, device: str, *, steps: int) -> tuple[str, str, str]:
    """Trains a model of the pair on one page, mixed precision.

    Args:
        size: "small" or "large".
        device: Where.
        steps: How many.

    Returns:
        The loss before and after, and the milliseconds of a step.
    """
    vlm = VLM.from_pretrained(WEIGHTS / size, dtype="float32", device=device)
    [(page, question)] = heldout_pages(1)
    prompt = vlm.encode(Request.ask(question.text, Image.fromarray(page.pixels)))
    answer = vlm.processor.tokenizer(question.answer, return_tensors="pt").input_ids.to(device)
    inputs = {**prompt.inputs, "input_ids": torch.cat((prompt.input_ids, answer), dim=1)}
    if "attention_mask" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    labels = inputs["input_ids"].masked_fill(
        torch.arange(inputs["input_ids"].shape[1], device=device) < len(prompt), -100
    )
    model = vlm.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses, started = [], 0.0
    for step in range(steps):
        if step == 1:  # the first one allocates
            started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))  # waits for the device
    ms = 1e3 * (time.perf_counter() - started) / max(1, steps - 1)
    return f"{losses[0]:.3f}", f"{losses[-1]:.3f}", f"{ms:.0f}"
