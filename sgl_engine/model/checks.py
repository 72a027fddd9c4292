"""What is wrong with a model's folder or configuration, said before transformers guesses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_engine.errors import ModelNotFoundError, UnsafeWeightsError, UnsupportedModelError
from sgl_engine.families import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SIZES = frozenset(
    "hidden_size head_dim image_size intermediate_size max_position_embeddings num_attention_heads "
    "num_channels num_hidden_layers num_key_value_heads patch_size vocab_size".split()
)
"""What no model has less than 1 of, where its configuration has it."""


def check_folder(name: str) -> None:
    """Says what is wrong with a local folder before transformers guesses.

    Raises:
        ModelNotFoundError: It is not there, or holds no model.
        UnsafeWeightsError: It holds pickled weights only.
        UnsupportedModelError: It holds an adapter to another model.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
            raise ModelNotFoundError(
                f"There is no model folder {name}.",
                remedy="Check the path, or give a hub id such as owner/name.",
            )
        return
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"The folder {name} holds no config.json.",
            remedy="Give the folder that model.save_pretrained() wrote, not the one above it.",
        )
    if (folder / "adapter_config.json").is_file():
        # transformers would load the model that it names instead or, without peft, ignore the adapter.
        raise UnsupportedModelError(
            f"The folder {name} holds an adapter (adapter_config.json) to a model that lies elsewhere.",
            remedy="Merge it first: model.merge_and_unload().save_pretrained(folder).",
        )
    if any(folder.glob("*.safetensors")):
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


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Refuses a configuration that no model can have, which transformers would load all the same.

    Raises:
        UnsupportedModelError: No family knows the architecture, a size is below 1, or the image token
            is none.
    """
    family = find_family(config, name)
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


def _sizes(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What must be at least 1 in a configuration and those inside it: names and values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{where}", size) for where, size in _sizes(value))
        elif key in _SIZES:
            several = value if isinstance(value, list | tuple) else [value]
            yield from ((key, size) for size in several if isinstance(size, int))
