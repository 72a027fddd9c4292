"""A model without weights: every shape is there, and prompts are encoded as the engine encodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils.import_utils import is_torchvision_available

from sgl_engine.errors import ProcessorError, UnsupportedModelError
from sgl_engine.model import VLM
from sgl_engine.model.checks import check_config
from sgl_engine.model.loading import check_parts, load_config, load_processor
from sgl_engine.model.quantization import int8_bytes
from sgl_engine.planning.files import SmallFiles

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Outline(VLM):
    """A ``VLM`` on the "meta" device: it cannot answer, and takes no memory.

    What a processor makes of a request is kept on the CPU, where it can be counted.
    """

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


def outline(files: SmallFiles, *, trust_remote_code: bool = False) -> Outline:
    """Builds a model's outline from its small files.

    Raises:
        UnsupportedModelError: No family knows the architecture, or its configuration is none.
        ProcessorError: The processor cannot be loaded.
    """
    name = str(files.folder)
    config = load_config(name, {"trust_remote_code": trust_remote_code})
    check_config(config, files.name)
    processor = _processor(files, trust_remote_code)
    return Outline(empty_model(config, files.name), processor, name=files.name, revision=files.revision)


def empty_model(config: PreTrainedConfig, name: str) -> Any:
    """The model that a configuration describes, without weights.

    Raises:
        UnsupportedModelError: There is none.
    """
    auto: Any = AutoModelForImageTextToText
    try:
        with torch.device("meta"):
            return auto.from_config(config, dtype=torch.bfloat16)
    except Exception as error:  # a configuration may say anything
        raise UnsupportedModelError(
            f"No model can be made of the configuration of {name} ({type(error).__name__}: {error}).",
            remedy="Use a checkpoint in transformers format, and a transformers version that knows it.",
        ) from error


def _processor(files: SmallFiles, trust_remote_code: bool) -> Any:  # noqa: FBT001  # of this file
    try:
        processor = load_processor(str(files.folder), trust_remote_code=trust_remote_code)
    except ProcessorError as error:
        if "torchvision" in error.problem.lower() and not is_torchvision_available():
            raise ProcessorError(
                f"The processor of {files.name} needs torchvision, which is not installed.",
                remedy="Install it: pip install torchvision.",
            ) from error
        raise
    check_parts(processor, files.name)
    return processor


def weights_bytes(vlm: VLM) -> dict[str, int]:
    """Memory of a model's weights by dtype."""
    values = parameters(vlm)
    plain = {name: values * dtype.itemsize for name, dtype in DTYPES.items()}
    return {**plain, "int8": int8_bytes(vlm.model, torch.bfloat16)}


def parameters(vlm: VLM) -> int:
    """Values of a model's weights; shared ones count once."""
    return sum(parameter.numel() for parameter in vlm.model.parameters())


def cache_bytes(vlm: VLM, tokens: int) -> dict[str, int]:
    """Memory by dtype of what the decoder keeps of so many tokens, by running it without weights.

    Raises:
        UnsupportedModelError: It cannot be run like this.
    """
    cache = vlm.new_cache()
    try:
        decoder = vlm.text_model.to("meta")
        given = torch.empty(1, tokens, decoder.config.hidden_size, dtype=decoder.dtype, device="meta")
        positions = torch.arange(tokens, device="meta")[None]
        with torch.inference_mode():
            decoder(inputs_embeds=given, position_ids=positions, cache=cache, use_cache=True)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"The cache of {vlm.name} cannot be measured ({type(error).__name__}: {error}).",
            remedy="Load the model and ask it about a page.",
        ) from error
    found = _tensors(cache)
    return {
        # States that are kept in another dtype than the model's stay in that.
        name: sum(
            tensor.numel() * (dtype if tensor.dtype == decoder.dtype else tensor.dtype).itemsize
            for tensor in found
        )
        for name, dtype in DTYPES.items()
    }


def _tensors(cache: Any) -> list[torch.Tensor]:
    """All that a cache's layers hold, keys and values or states."""
    found = []
    for layer in cache.layers:
        for value in vars(layer).values():
            parts = value.values() if isinstance(value, dict) else [value]
            found += [part for part in parts if isinstance(part, torch.Tensor) and part.is_floating_point()]
    return found
