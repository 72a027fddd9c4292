"""Peak memory of a large pass on a long prompt: `python -m benchmarks.memory` (about 5 minutes on one core).

Random weights at the shape of Qwen2-0.5B with fewer layers, float32, and one long prompt of visual tokens.
Every row runs in a process of its own; peak is what the pass adds to the process at its highest point,
weights and libraries not counted. "S x S" is what one head's attention map would need. The weights are
random, so this says nothing about accuracy.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

MIB = 2**20
LAYERS = 12
WIDTH = 4864  # of the decoder's MLP
SIDE = 32  # visual tokens per side of a tile


def build(tokens: int, layers: int, width: int) -> Any:
    """A model with a decoder of 14 heads of 64, and a tower that costs next to nothing."""
    import torch
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )

    from sgl_engine import VLM
    from sgl_engine.testing import tiny_vlm

    tiny = tiny_vlm(side_tokens=SIDE, max_tiles=64, context_tokens=tokens + 64)
    text = Qwen2Config(
        vocab_size=tiny.config.text_config.vocab_size,
        hidden_size=896,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=tokens + 64,
    )
    vision = InternVLVisionConfig(**tiny.config.vision_config.to_dict())
    config = InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tiny.config.image_token_id,
        image_seq_length=SIDE**2,
        downsample_ratio=0.5,
    )
    torch.manual_seed(0)
    return VLM(InternVLForConditionalGeneration(config).float(), tiny.processor, name="memory")


def measure(
    tokens: int, keep_ratio: float, *, capture: bool, layers: int = LAYERS, width: int = WIDTH
) -> dict[str, float]:
    """One pass: as the large model prunes, or, with `capture`, as the small one records attention."""
    import torch
    from PIL import Image

    from sgl_engine import Request
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.config import LimitsConfig
    from sgl_engine.decoding.answer import AnswerTask
    from sgl_engine.passes import run_large_pass, run_small_pass
    from sgl_engine.pruning import plan_pruning

    torch.set_num_threads(1)
    vlm = build(tokens, layers, width)
    pictures = [Image.new("RGB", (64, 64), (n, 0, 0)) for n in range(tokens // SIDE**2)]
    prompt = vlm.encode(Request.ask("What is it?", *pictures), LimitsConfig(max_images=1000))
    importance = ImportanceMap(torch.rand(prompt.num_visual_tokens), prompt.spans, num_queries=1)
    with Peak() as peak:
        started = time.perf_counter()
        if capture:
            result: Any = run_small_pass(vlm, AnswerTask(prompt, 2, stop_at_eos=False))
            cached = [len(prompt) + 1] * layers
        else:
            plan = plan_pruning(prompt, importance, layer=max(1, layers // 6), keep_ratio=keep_ratio)
            result = run_large_pass(vlm, AnswerTask(prompt, 2, stop_at_eos=False), plan)
            cached = list(result.cache_tokens)
        seconds = time.perf_counter() - started
    return {
        "tokens": len(prompt),
        "keep_ratio": keep_ratio,
        "peak_mib": (peak.bytes - peak.before) / MIB,
        "cache_mib": sum(cached) * 2 * 2 * 64 * 4 / MIB,
        "square_mib": len(prompt) ** 2 * 4 / MIB,
        "seconds": seconds,
    }


class Peak:
    """The process's resident memory at its highest, looked at every 5 milliseconds."""

    def __enter__(self) -> Self:
        self.before = self.bytes = resident_bytes()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, resident_bytes())


def resident_bytes() -> int:
    """Now, not at the highest point so far."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--keep-ratio", type=float, nargs="+", default=[1.0, 0.2, 0.05])
    parser.add_argument("--capture", action="store_true", help="with --one: the small pass instead")
    parser.add_argument("--one", action="store_true", help="one row, as JSON, in this process")
    parser.add_argument("--layers", type=int, default=LAYERS, help="with --one: of the decoder")
    parser.add_argument("--width", type=int, default=WIDTH, help="with --one: of the decoder's MLP")
    arguments = parser.parse_args()
    if arguments.one:
        row = measure(
            arguments.tokens[0],
            arguments.keep_ratio[0],
            capture=arguments.capture,
            layers=arguments.layers,
            width=arguments.width,
        )
        print(json.dumps(row))
        return
    print(f"{'S':>7}  {'pass':<22}  {'peak MiB':>8}  {'cache MiB':>9}  {'S x S MiB':>9}  {'seconds':>7}")
    for tokens in arguments.tokens:
        for kind in [*arguments.keep_ratio, "capture"]:
            extra = ["--capture"] if kind == "capture" else ["--keep-ratio", str(kind)]
            command = [sys.executable, "-m", "benchmarks.memory", "--one", "--tokens", str(tokens), *extra]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # ourselves
            row = json.loads(done.stdout.splitlines()[-1])
            name = "small, recorded" if kind == "capture" else f"large, keeps {kind:.0%}"
            print(
                f"{row['tokens']:>7.0f}  {name:<22}  {row['peak_mib']:>8.0f}  {row['cache_mib']:>9.0f}"
                f"  {row['square_mib']:>9.0f}  {row['seconds']:>7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
