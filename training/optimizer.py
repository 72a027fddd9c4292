"""Muon for matrices, AdamW for the rest.

Muon (Jordan et al., 2024) steps along the orthogonalised momentum. torch.optim.Muon orthogonalises in
bfloat16, which CPUs without bfloat16 units run ten times slower than float32; here it is float32, and batched
over matrices of one shape.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn


def orthogonalize(matrices: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Roughly the nearest semi-orthogonal matrices, float32 (N, rows, columns): Newton-Schulz, quintic."""
    a, b, c = 3.4445, -4.7750, 2.0315
    flip = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if flip else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if flip else x


class MuonAdamW:
    """Both optimizers behind one ``step``; matrices are grouped by shape."""

    def __init__(self, model: nn.Module, *, momentum: float = 0.95) -> None:
        """Sort the parameters: hidden matrices go to Muon, embeddings, norms and biases to AdamW."""
        self.momentum = momentum
        self.groups: dict[tuple, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        rest = []
        for name, parameter in model.named_parameters():
            if (
                parameter.ndim >= 2 and "embed" not in name and "lm_head" not in name
            ) or "projection.weight" in name:
                vision = "vision_tower" in name
                matrix = parameter.flatten(1).shape
                self.groups[(vision, *matrix)].append((name, parameter))
            else:
                rest.append(parameter)
        self.adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)
        self.buffers = {name: torch.zeros_like(p) for group in self.groups.values() for name, p in group}

    @torch.no_grad()
    def step(self, muon_rate: float, vision_rate: float, adamw_rate: float) -> None:
        """One step on the gradients that there are."""
        for group in self.adamw.param_groups:
            group["lr"] = adamw_rate
        self.adamw.step()
        # What has no gradient (the decoder, while the vision tower trains alone) costs nothing.
        groups = {k: [e for e in g if e[1].grad is not None] for k, g in self.groups.items()}
        groups = {k: g for k, g in groups.items() if g}
        updates = [
            orthogonalize(torch.stack([self._momentum(name, p).flatten(1) for name, p in group]))
            for group in groups.values()
        ]
        for (key, group), update in zip(groups.items(), updates, strict=True):
            rate = (vision_rate if key[0] else muon_rate) * max(1.0, key[1] / key[2]) ** 0.5
            for (_, parameter), change in zip(group, update, strict=True):
                parameter.mul_(1 - rate * 0.02).sub_(change.view_as(parameter), alpha=rate)

    def _momentum(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        gradient = parameter.grad
        assert gradient is not None
        buffer = self.buffers[name].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(buffer, self.momentum)  # Nesterov

    def state_dict(self) -> dict:
        """Everything needed to go on."""
        return {"adamw": self.adamw.state_dict(), "buffers": self.buffers}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        self.adamw.load_state_dict(state["adamw"])
        for name, buffer in state["buffers"].items():
            self.buffers[name].copy_(buffer)
