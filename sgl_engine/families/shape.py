"""Sizes of a model, from which ``sgl_engine.report.cost`` counts its operations. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderShape:
    """A decoder: grouped-query attention or a recurrence, gated MLP of three matrices, LM head.

    Attributes:
        layers: L.
        hidden: Width.
        query_heads: Query heads of an attention layer.
        kv_heads: Its key and value heads.
        head_dim: Width of a head.
        intermediate: Width of the MLP; of all experts together that a token goes through, where they were
            measured.
        vocab: Rows of the LM head.
        gated: Whether attention's output is multiplied with a gate, as wide as the queries.
        recurrent_layers: Layers that have a recurrence instead of attention.
        recurrent_values: Multiply-adds of one such recurrence for one token, its matrices included.
        token_values: Multiply-adds of each layer's matrices for one token, where they were measured (L,);
            then ``recurrent_values`` are without matrices. Empty where sizes tell.
        attention_values: Queries, keys and values of one token, where they were measured; else 0.
        pair_values: The same of one query row against one key, with its value, in each layer (L,).
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
    attention_values: int = 0
    token_values: tuple[int, ...] = ()
    pair_values: tuple[int, ...] = ()


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


@dataclass(frozen=True)
class ModelShape:
    """Both halves of a VLM."""

    decoder: DecoderShape
    vision: VisionShape
