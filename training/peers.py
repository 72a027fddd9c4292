"""The processes of a run that ``torchrun`` has started: each takes a batch of every step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn


class Peers:
    """The processes of this run; without ``torchrun`` there is one, and nothing to share.

    Attributes:
        rank: Which of them this is, from 0.
        count: How many there are.
    """

    def __init__(self) -> None:
        """Meet the others."""
        self.rank, self.count = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1:
            dist.init_process_group("gloo")
            self.rank = dist.get_rank()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Within this context, the first process goes before the others."""
        if self.rank > 0:
            dist.barrier()
        yield
        if self.rank == 0 and self.count > 1:
            dist.barrier()

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, which have the same parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agree(self, seconds: float, *, stop: bool) -> tuple[float, bool]:
        """Mean of the seconds, and whether any process wants to stop: all go the same way."""
        if self.count == 1:
            return seconds, stop
        both = torch.tensor([seconds, float(stop)], dtype=torch.float64)
        dist.all_reduce(both)
        return both[0].item() / self.count, both[1].item() > 0
