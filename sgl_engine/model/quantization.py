"""Weights of eight bits: matrices of linear layers as whole numbers, with one scale for each of their rows.

torchao computes with them (extra "quantized"); transformers quantizes them as they are read. Embeddings,
norms, convolutions and the head stay in the model's dtype, and so does all that is computed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sgl_engine.errors import ConfigError

if TYPE_CHECKING:
    import torch


def int8_config() -> Any:
    """What transformers is told to load such weights.

    Raises:
        ConfigError: torchao is not installed.
    """
    from transformers.utils.import_utils import is_torchao_available

    if not is_torchao_available():
        raise ConfigError(
            "quantization='int8' needs torchao, which is not installed.",
            remedy='Install it (pip install "langchain-sgl[quantized]"), or leave quantization out.',
        )
    from transformers import TorchAoConfig

    # By name: the type checker need not have the extra.
    quantization = importlib.import_module("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def int8_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of a model's weights when it is loaded like this.

    Args:
        model: The model, quantized or not; on any device, "meta" too.
        dtype: What is not quantized.
    """
    import torch

    size: int = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    for module in quantized_layers(model).values():
        rows, columns = module.weight.shape
        size += rows * columns * (1 - dtype.itemsize)
        size += rows * (torch.float32.itemsize + 1)  # a scale, and a zero point of eight bits: 0
    return size


def quantized_layers(model: Any) -> dict[str, Any]:
    """The linear layers whose matrices are quantized, by name: all but the head, as transformers does."""
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = get_keys_to_not_convert(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and should_convert_module(f"{name}.weight", kept)
    }


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights as they are, quantized ones included; tied ones count once."""
    return sum(part.nbytes for parameter in model.parameters() for part in _parts(parameter))


def _parts(parameter: Any) -> list[torch.Tensor]:
    """The tensors that a quantized parameter is made of; of any other, itself."""
    names = parameter.__tensor_flatten__()[0] if hasattr(parameter, "__tensor_flatten__") else ()
    return [getattr(parameter, name) for name in names] or [parameter]
