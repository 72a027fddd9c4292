"""How far apart two float computations of the same may lie: from the arithmetic, not from one machine.

Every operation of a pass rounds to `eps` of its dtype, relative to what it works on, and that adds up layer
by layer. The order of a library's sums differs from processor to processor, but not what it can matter:

    limit = ROUNDINGS * eps(dtype) * depth * magnitude

A control, which computes something else, has to miss by CONTROL times the limit at least.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sgl_engine import VLM

ROUNDINGS = 32
"""Per layer. The most that was measured is 6.3, over all families, with AVX-512, AVX2 and neither."""

RECURRENCE = 8
"""Layers that a recurrent one counts as: it solves 64 tokens one after the other, and errs as sqrt(64) do."""

CONTROL = 10


def rounding(layers: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative error of a pass through so many layers."""
    return ROUNDINGS * torch.finfo(dtype).eps * layers


def of_hidden(vlm: VLM, expected: Tensor) -> float:
    """Largest difference of an embedding or a hidden state."""
    return _relative(vlm) * float(expected.abs().max())


def of_logits(vlm: VLM) -> float:
    """Largest difference of a logit."""
    return _relative(vlm) * _magnitude(vlm)


def of_logprobs(vlm: VLM, tokens: int = 1) -> float:
    """Largest difference of the log-probability of so many tokens; relative, of their probability.

    Attention pays probabilities too, of scores as large as logits where weights are random.
    """
    return 2 * of_logits(vlm) * tokens  # the logit's own, and that of the sum over all


def gap(got: Tensor | Sequence[float], expected: Tensor | Sequence[float]) -> float:
    """The largest difference."""
    ours, theirs = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def relative_gap(got: Tensor | Sequence[float], expected: Tensor | Sequence[float]) -> float:
    """The largest difference, as a share of what is expected; where that is nothing, any is infinite."""
    ours, theirs = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    assert ours.shape == theirs.shape
    shares = torch.where(ours == theirs, 0.0, (ours - theirs).abs() / theirs.abs())
    return float(shares.max())


def _relative(vlm: VLM) -> float:
    config = vlm.text_model.config
    recurrent = "linear_attention" in (getattr(config, "layer_types", None) or ())
    return rounding(vlm.num_layers * (RECURRENCE if recurrent else 1), vlm.text_model.dtype)


@torch.no_grad()
def _magnitude(vlm: VLM) -> float:
    """Of the largest logit, over made-up hidden states."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, vlm.text_model.config.hidden_size, generator=generator)
    return float(vlm.model.lm_head(vlm.text_model.norm(hidden)).abs().max())
