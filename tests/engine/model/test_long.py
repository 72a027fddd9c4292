"""Long prompts, large pictures, many pictures: no S x S tensor is made, and memory follows what is kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import noise
from test_family_exactness import families
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgl_engine import Request, Response, SGLEngine
from sgl_engine.testing import tiny_vlm

ROOT = Path(__file__).parents[3]
OWN_MASK = "gemma3"
"""Its modelling code asks for a boolean mask of S x S, because pictures see themselves in both directions."""


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                elements = (
                    tensor.untyped_storage().nbytes() // tensor.element_size()
                )  # an expanded view is small
                if elements > self.elements:
                    self.elements, self.shape = elements, tuple(tensor.shape)
        return out


def watch(pair: SGLEngine) -> Largest:
    """Sees what both models make from now on, in whatever thread they run: a mode is one thread's."""
    largest = Largest()

    def seen(step: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with largest:
                return step(*args, **kwargs)

        return run

    for vlm in (pair.small, pair.large):
        for name in ("merge", "forward_batch"):
            setattr(vlm, name, seen(getattr(vlm, name)))
    return largest


def engine(family: str, context_tokens: int, **options: Any) -> SGLEngine:
    small, large = (
        tiny_vlm(family, size=size, context_tokens=context_tokens, **options) for size in ("small", "large")
    )
    pair = SGLEngine(small, large)
    return pair.with_config(pair.config.escalating("always"))


def nearly_full(pair: SGLEngine) -> Request:
    """A prompt that leaves room for a few tokens of answer."""
    pictures = [noise(96, 64), noise(60, 90)]
    room = pair.large.context_tokens - pair.count_tokens(Request.ask("", *pictures))
    return Request.ask("w" * (room - 40), *pictures, max_new_tokens=3)


@families
@pytest.mark.filterwarnings("ignore:.*falling back to its reference")
def test_no_tensor_of_the_prompts_size_squared(family: str) -> None:
    pair = engine(family, 3072)
    largest = watch(pair)
    response = pair.run(nearly_full(pair))
    tokens = response.report.large_input_tokens
    assert tokens is not None
    assert 3000 < tokens < 3072
    if family == OWN_MASK:  # the control: what is made is seen
        assert largest.elements >= tokens**2
    else:
        assert largest.elements < 0.1 * tokens**2, largest.shape


def test_eager_attention_would_be_seen() -> None:
    pair = engine("internvl", 2048)
    pair.small.text_model.config._attn_implementation = "eager"
    largest = watch(pair)
    response = pair.run(nearly_full(pair))
    assert largest.elements >= response.report.small_input_tokens**2


@families
@pytest.mark.filterwarnings("ignore:.*falling back to its reference")
def test_large_pictures_and_many_pictures(family: str) -> None:
    pair = engine(family, 16384, max_tiles=6)
    large = noise(100, 75).resize((4000, 3000))
    one = pair.run(Request.ask("What is it?", large, max_new_tokens=2))
    many = pair.run(
        Request.ask("Which is it?", *[noise(80, 60, seed=n) for n in range(20)], max_new_tokens=2)
    )
    for response in (one, many):
        assert isinstance(response, Response)
        assert response.report.route == "large"
        assert response.plan is not None
        assert response.plan.kept_visual_tokens == int(0.2 * response.plan.visual_tokens)
        assert response.importance is not None
        assert len(response.importance.spans) == len({span.start for span in response.importance.spans})
    assert {span.image for span in many.importance.spans} == set(range(20))  # type: ignore[union-attr]


def peak_mib(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_peak_memory_stays_within_its_budget() -> None:
    """At 4,096 tokens one S x S map of float32 is 64 MiB, and a layer of this model has 14 heads."""
    # What one layer needs, the next one has again; a narrow MLP leaves the time and the memory to attention.
    shape = ("--tokens", "4096", "--layers", "2", "--width", "1024")
    pruned = peak_mib(*shape, "--keep-ratio", "0.05")
    whole = peak_mib(*shape, "--keep-ratio", "1")
    recorded = peak_mib(*shape, "--capture")
    assert pruned["tokens"] > 4096
    # Three activations of the MLP are 48 MiB, ten of the layer's width 140; allocators hold on to as much.
    budget_mib = 400
    assert budget_mib < 14 * pruned["square_mib"] / 2
    assert max(row["peak_mib"] for row in (pruned, whole, recorded)) < budget_mib
    # One layer of two, and 5 % of the other. Peaks are of the first layer, which is never pruned.
    assert pruned["cache_mib"] < 0.55 * whole["cache_mib"]
