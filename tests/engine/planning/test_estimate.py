"""What is said of a model without its weights is what the engine reports when it really runs."""

import copy
from typing import Any

import pytest
import torch
from PIL import Image

from sgl_engine import SGLEngine
from sgl_engine.config import EngineConfig, ExitConfig, GenerationConfig, PruningConfig
from sgl_engine.model.quantization import weight_bytes
from sgl_engine.model.vlm import VLM
from sgl_engine.passes.large import plan_large
from sgl_engine.planning import outline
from sgl_engine.planning.estimate import even_map, large_flops, small_flops, token_by_token
from sgl_engine.planning.outline import Outline
from sgl_engine.report.make import alone_flops
from sgl_engine.request import Request
from sgl_engine.testing import tiny_vlm

PAGE, OTHER_PAGE = (150, 260), (260, 60)
FAMILIES = "internvl gemma3 idefics3 llava_onevision mistral3 qwen3_5 qwen3_vl".split()
"""Tiles, windows, markers, separators, row ends, recurrences, planes."""
SQUARE = {"gemma3"}
"""Families that make one square of tokens of every page."""
CONFIG = EngineConfig(
    pruning=PruningConfig(layer_fraction=0.5, keep_ratio=0.3),
    exit=ExitConfig(escalate="always"),
    generation=GenerationConfig(draft=False, max_new_tokens=3),
).without_reuse()


def outline_of(vlm: VLM) -> Outline:
    """The same model without weights."""
    return Outline(outline.empty_model(vlm.config, vlm.name), vlm.processor, name=vlm.name)


def page(size: tuple[int, int]) -> Request:
    return Request.ask("what?", Image.new("RGB", size, "white"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_of_a_page_is_what_a_run_reports(family: str) -> None:
    small, large = (tiny_vlm(family, size=size, max_tiles=4) for size in ("small", "large"))
    report = SGLEngine(small, large, CONFIG).run(page(PAGE)).report
    reported = (
        (report.small_input_tokens, report.large_input_tokens, report.visual_tokens),
        (report.prune_layer, report.kept_visual_tokens),
        (report.small_tflops, report.large_tflops, report.large_alone_tflops),
    )
    empty = outline_of(small), outline_of(large)
    tokens = report.small_output_tokens, report.large_output_tokens or 0
    assert counted(empty, PAGE, tokens) == reported
    assert (counted(empty, OTHER_PAGE, tokens) == reported) == (family in SQUARE)  # the control
    assert outline.parameters(empty[1]) == sum(value.numel() for value in large.model.parameters())
    assert outline.weights_bytes(empty[1])["float32"] == weight_bytes(large.model)
    # The cache of a prompt, as it is after a real forward.
    prompt, cache = large.encode(page(PAGE)), large.new_cache()
    large.forward(large.embed(prompt), prompt=prompt, first_position=0, cache=cache)
    assert outline.cache_bytes(empty[1], len(prompt))["float32"] == held(cache)


def counted(
    empty: tuple[Outline, Outline], size: tuple[int, int], tokens: tuple[int, int]
) -> tuple[Any, ...]:
    """The same figures without weights."""
    small, large = empty
    one, other = (vlm.encode(page(size)) for vlm in empty)
    plan = plan_large(large, other, even_map(one, 1), CONFIG.pruning)
    flops = (
        small_flops(small, one, tokens[0], CONFIG),
        large_flops(large, other, plan, token_by_token(tokens[1]), tokens[1]),
        alone_flops(large, large, other, tokens[1]),
    )
    return (
        (len(one), len(other), other.num_visual_tokens),
        (plan.layer, plan.kept_visual_tokens),
        tuple(each / 1e12 for each in flops),
    )


def held(cache: Any) -> int:
    """Bytes of all floating-point tensors in a cache, by a way of its own."""
    kept = copy.deepcopy(cache.layers)
    found: dict[int, int] = {}
    while kept:
        value = kept.pop()
        if isinstance(value, torch.Tensor):
            found[id(value)] = value.nbytes if value.is_floating_point() else 0
        elif isinstance(value, dict):
            kept += value.values()
        elif hasattr(value, "__dict__"):
            kept += vars(value).values()
    return sum(found.values())


def test_one_token_more_is_one_token_more() -> None:
    empty = outline_of(tiny_vlm())
    grown = outline.cache_bytes(empty, 11)["bfloat16"] - outline.cache_bytes(empty, 10)["bfloat16"]
    decoder = empty.shape.decoder
    assert grown == 2 * 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
