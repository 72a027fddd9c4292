"""benchmarks.gpu: a dry run does everything that a GPU run does, at sizes that say nothing."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_a_dry_run_fills_every_table(tmp_path: Path) -> None:
    options = gpu.parse(["--dry-run", "--folder", str(tmp_path)])
    block = gpu.run(options)
    assert "a dry run: figures say nothing" in block
    assert "broke off" not in block
    for part in gpu.PARTS:
        assert f"### {part.title} (" in block
    assert re.findall(r"\| (internvl|qwen2_5_vl) \| sdpa \| exact \|", block) == ["internvl", "qwen2_5_vl"]
    assert "| float32 | 1 of 1 | 1 |" in block
    assert "small prefill with capture / plain SDPA prefill" in block
    [(before, after)] = re.findall(r"\| small \| ([\d.]+) \| ([\d.]+) \|", block)
    assert float(after) < float(before)


def test_a_part_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no such kernel")

    parts = (gpu.Part("A", ("x",), fail, 0), gpu.Part("B", ("x",), lambda _: iter([("1",)]), 0))
    monkeypatch.setattr(gpu, "PARTS", (*parts, gpu.Part("C", ("x",), fail, 1000)))
    block = gpu.run(gpu.parse(["--dry-run"]))
    assert "| broke off: RuntimeError: no such kernel |" in block
    assert "| 1 |" in block
    assert "Not run: no time was left." in block


def test_a_model_that_is_not_exact_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = gpu.tiny_vlm("internvl")
    vlm.model.lm_head.weight.data.mul_(float("nan"))
    assert gpu.outcome(vlm, "sdpa", "cpu") != "exact"  # the control


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_dry_runs() -> None:
    with pytest.raises(SystemExit):
        gpu.parse([])
