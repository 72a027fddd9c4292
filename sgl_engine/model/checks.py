"""What is wrong with a model's folder or configuration, said before transformers guesses."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_engine.errors import ModelNotFoundError, UnsafeWeightsError, UnsupportedModelError
from sgl_engine.families import find_family
from sgl_engine.families.refused import FOREIGN_FORMATS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_logger = logging.getLogger(__name__)

_NAMED = 3  # of many tensors
_UNQUANTIZED = "Use the config.json that belongs to them (quantization_config), or weights not quantized."
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SIZES = frozenset(
    "hidden_size head_dim image_size intermediate_size max_position_embeddings num_attention_heads "
    "num_channels num_hidden_layers num_key_value_heads patch_size vocab_size".split()
)
"""What no model has less than 1 of, where its configuration has it."""


def check_folder(name: str) -> None:
    """Says what is wrong with a local folder before transformers guesses.

    Raises:
        ModelNotFoundError: It is not there, or holds no whole model.
        UnsafeWeightsError: It holds pickled weights only.
        UnsupportedModelError: It holds an adapter to another model, or weights for other programs.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
            raise ModelNotFoundError(
                f"There is no model folder {name}.",
                remedy="Check the path, or give a hub id such as owner/name.",
            )
        return
    if (folder / "adapter_config.json").is_file():
        # transformers would load the model that it names instead or, without peft, ignore the adapter.
        raise UnsupportedModelError(
            f"The folder {name} holds an adapter (adapter_config.json) to a model that lies elsewhere.",
            remedy="Merge it first: model.merge_and_unload().save_pretrained(folder).",
        )
    safe, packed = sorted(folder.glob("*.safetensors")), sorted(each.name for each in folder.glob("*.gguf"))
    if packed and not safe:
        raise UnsupportedModelError(
            f"The folder {name} holds GGUF weights ({', '.join(packed[:3])}), which are for other programs.",
            remedy="Use the model's repository in transformers format, with safetensors files.",
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"The folder {name} holds no config.json.",
            remedy="Give the folder that model.save_pretrained() wrote, not the one above it.",
        )
    if safe:
        _check_shards(folder)
        return
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise UnsafeWeightsError(
            f"The folder {name} holds pickled weights only ({', '.join(pickled[:3])}); loading can run code.",
            remedy="If you trust them, load them with transformers and call model.save_pretrained(folder).",
        )
    raise ModelNotFoundError(
        f"The folder {name} holds no weights (*.safetensors).", remedy="Save the model there first."
    )


_PLAIN_NAME = re.compile(r"[\w.-]+")


def _check_shards(folder: Path) -> None:
    """Refuses a folder that lacks files which its own index of weights names."""
    index = folder / "model.safetensors.index.json"
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return  # there is none, or loading says what is wrong with it
    if any(not _PLAIN_NAME.fullmatch(str(each)) for each in named):
        return  # a path: whether it leads out of the folder is looked at where weights are read
    missing = sorted(each for each in map(str, named) if not (folder / each).is_file())
    if missing:
        raise ModelNotFoundError(
            f"The folder {folder} lacks {len(missing)} of its {len(named)} files of weights "
            f"({', '.join(missing[:3])}).",
            remedy="Download the missing files: the index beside them names them all.",
        )


def check_format(content: Mapping[str, Any], name: str) -> None:
    """Refuses a config.json that only code beside it can read.

    Args:
        content: What it holds.
        name: Path or hub id, for the message.

    Raises:
        UnsupportedModelError: It is in the format of its authors, not of transformers.
    """
    remedy = FOREIGN_FORMATS.get(str(content.get("model_type")))
    if remedy is not None:
        raise UnsupportedModelError(
            f"{name} is in the format {content['model_type']!r} of its authors, which only their own code "
            "can run.",
            remedy=remedy,
        )


_PACKAGES: Mapping[str, str] = {
    "awq": "gptqmodel",
    "gptq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "hqq": "hqq",
    "quanto": "optimum",
    "torchao": "torchao",
    "fbgemm_fp8": "fbgemm_gpu",
}
_ONLY_ON_GPUS = frozenset({"awq", "fbgemm_fp8", "fp8"})


def _check_quantization(config: PreTrainedConfig, name: str) -> None:
    """Refuses weights in a format that nothing here can compute with, before they are read."""
    import torch

    settings: Any = getattr(config, "quantization_config", None)
    settings = settings if isinstance(settings, Mapping) else getattr(settings, "__dict__", {})
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method") or ""))
    package = _PACKAGES.get(method)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UnsupportedModelError(
            f"The weights of {name} are quantized ({method}), and the package {package} is not installed.",
            remedy=f"pip install {package.replace('_', '-')}, or use the repository that is not quantized.",
        )
    if method in _ONLY_ON_GPUS and not torch.cuda.is_available():
        raise UnsupportedModelError(
            f"The weights of {name} are quantized ({method}) in a format for GPUs, and there is none here.",
            remedy='Use the repository that is not quantized, with quantization="int8" if memory is short.',
        )


def _check_tower(config: PreTrainedConfig, name: str) -> None:
    """Refuses a vision tower that only a package which is not installed can build."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if tower == "timm_wrapper" and importlib.util.find_spec("timm") is None:
        raise UnsupportedModelError(
            f"The vision tower of {name} is built by the package timm, which is not installed.",
            remedy="pip install timm (it needs torchvision).",
        )


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Refuses a configuration that no model can have, which transformers would load all the same.

    Raises:
        UnsupportedModelError: No family knows the architecture, its vision tower needs a package that is
            missing, the weights are quantized in a way that cannot be run here, a size is below 1, or the
            image token is none.
    """
    family = find_family(config, name)
    _check_tower(config, name)
    _check_quantization(config, name)
    wrong = {where: value for where, value in _sizes(config.to_dict()) if value < 1}
    token: Any = family.image_token_id(config)
    if not isinstance(token, int) or token < 0:
        wrong["the image token"] = token
    if wrong:
        where, value = next(iter(wrong.items()))
        raise UnsupportedModelError(
            f"The configuration of {name} cannot be used: {where} is {value!r:.60}.",
            remedy="Correct its config.json, or download it again.",
        )


_QUANTIZED = re.compile(
    r"\.(weight_scale(_inv|_2)?|input_scale|scales|qzeros|qweight|g_idx|weight_packed|absmax|quant_map|SCB"
    r"|(nested_)?quant_(map|state)(\..*)?)$"
)
_ADAPTED = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|hada_w\d)(\.|$)")


def check_unexpected(name: str, tensors: Sequence[str]) -> None:
    """Refuses weights with tensors that change others; warns of those that the model has no place for.

    Without the scales of a quantization, or what an adapter adds, the others mean something else. Further
    tensors may be left out: heads that predict several tokens, or write boxes.

    Args:
        name: Path or hub id, for the message.
        tensors: Those that the model has no place for.

    Raises:
        UnsupportedModelError: They are of a quantization that the configuration does not name, or of an
            adapter that was not merged.
    """
    for pattern, what, remedy in (
        (_QUANTIZED, "of a quantization that its config.json does not name", _UNQUANTIZED),
        (_ADAPTED, "of an adapter that was not merged", "Merge it: model.merge_and_unload()."),
    ):
        found = [tensor for tensor in tensors if pattern.search(tensor)]
        if found:
            raise UnsupportedModelError(
                f"The weights of {name} hold {len(found)} tensors {what} ({', '.join(found[:_NAMED])}); "
                "without them, the others are wrong.",
                remedy=remedy,
            )
    if tensors:
        _logger.warning(
            "%s: %d tensors of its weights are not used, as the model has no place for them (%s). If answers "
            "are poor, check that config.json belongs to these weights.",
            name,
            len(tensors),
            ", ".join(tensors[:_NAMED]) + (", ..." if len(tensors) > _NAMED else ""),
        )


def _sizes(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What must be at least 1 in a configuration and those inside it: names and values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{where}", size) for where, size in _sizes(value))
        elif key in _SIZES:
            several = value if isinstance(value, list | tuple) else [value]
            yield from ((key, size) for size in several if isinstance(size, int))
