"""Sizes of a model, and the floating-point operations of its parts. Pure.

One multiply-add counts as two operations. Matrix products, convolutions and attention are counted (attention
as the full rectangle of queries times keys, as ``torch.utils.flop_counter`` counts it); norms, activations
and rotations are not: they are far below one percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class DecoderShape:
    """A decoder: grouped-query attention or a recurrence, gated MLP of three matrices, LM head.

    Attributes:
        layers: L.
        hidden: Width.
        query_heads: Query heads of an attention layer.
        kv_heads: Its key and value heads.
        head_dim: Width of a head.
        intermediate: Width of the MLP.
        vocab: Rows of the LM head.
        gated: Whether attention's output is multiplied with a gate, as wide as the queries.
        recurrent_layers: Layers that have a recurrence instead of attention.
        recurrent_values: Multiply-adds of one such recurrence for one token, its matrices included.
    """

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    gated: bool = False
    recurrent_layers: tuple[int, ...] = ()
    recurrent_values: int = 0

    @property
    def token_flops(self) -> int:
        """Matrix products of one attention layer for one token."""
        heads = (3 if self.gated else 2) * self.query_heads + 2 * self.kv_heads
        return 2 * (self.hidden * self.head_dim * heads + 3 * self.hidden * self.intermediate)

    @property
    def recurrent_flops(self) -> int:
        """One recurrent layer for one token."""
        return 2 * (self.recurrent_values + 3 * self.hidden * self.intermediate)

    def layer_flops(self, layer: int, tokens: int, pairs: int) -> int:
        """One layer: so many tokens, so many query rows times keys."""
        if layer in self.recurrent_layers:
            return tokens * self.recurrent_flops
        return tokens * self.token_flops + pairs * self.pair_flops

    @property
    def pair_flops(self) -> int:
        """One query row against one key, both products, in one layer."""
        return 4 * self.query_heads * self.head_dim

    @property
    def logit_flops(self) -> int:
        """The LM head for one row."""
        return 2 * self.hidden * self.vocab


@dataclass(frozen=True)
class VisionShape:
    """A vision tower, then a projector over merged patches.

    Attributes:
        layers: Encoder layers.
        hidden: Their width.
        intermediate: Width of their MLP.
        patch_values: Values per patch (channels times patch height times width).
        class_tokens: Tokens beside the patches.
        patches_per_token: Patches that become one visual token.
        projector: Weights that one visual token is multiplied with.
        mlp_matrices: 2, or 3 for a gated MLP.
    """

    layers: int
    hidden: int
    intermediate: int
    patch_values: int
    class_tokens: int
    patches_per_token: int
    projector: int
    mlp_matrices: int = 2

    def pass_flops(self, patches: int) -> int:
        """An image or tile of that many patches through tower and projector."""
        tokens = patches + self.class_tokens
        embed = 2 * patches * self.patch_values * self.hidden
        layer = 2 * tokens * (4 * self.hidden**2 + self.mlp_matrices * self.hidden * self.intermediate)
        layer += 4 * tokens**2 * self.hidden
        return embed + self.layers * layer + 2 * (patches // self.patches_per_token) * self.projector


@dataclass(frozen=True)
class ModelShape:
    """Both halves of a VLM."""

    decoder: DecoderShape
    vision: VisionShape
