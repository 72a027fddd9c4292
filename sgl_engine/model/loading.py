"""Loading a configuration and weights: safetensors only, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText

from sgl_engine.errors import ConfigError, ModelNotFoundError, UnsafeWeightsError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_folder(name: str) -> None:
    """Says what is wrong with a local folder before transformers guesses.

    Raises:
        ModelNotFoundError: It is not there, or holds no model.
        UnsafeWeightsError: It holds pickled weights only.
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


def load_config(name: str, hub: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration.

    Args:
        name: Path or hub id.
        hub: Revision and trust, as transformers takes them.

    Raises:
        ModelNotFoundError: It cannot be loaded.
        UnsupportedModelError: transformers does not know the architecture.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **hub)
    except OSError as error:
        raise ModelNotFoundError(
            f"The configuration of {name} cannot be loaded ({_first_line(error)}).",
            remedy="Check the path or hub id, the revision and the network.",
        ) from error
    except ValueError as error:
        raise UnsupportedModelError(
            f"The configuration of {name} cannot be used ({_first_line(error)}).",
            remedy="Use a supported family in transformers format, and a transformers version that knows it.",
        ) from error
    return config


def load_model(
    name: str,
    config: PreTrainedConfig,
    *,
    dtype: str | torch.dtype,
    device_map: str | Mapping[str, Any] | None,
    hub: Mapping[str, Any],
) -> Any:
    """The model, with all of its weights, from safetensors files only.

    Args:
        name: Path or hub id.
        config: Its configuration.
        dtype: As in transformers.
        device_map: As in transformers.
        hub: Revision and trust, as transformers takes them.

    Raises:
        ModelNotFoundError: Weights are missing or damaged.
        UnsafeWeightsError: They are pickled.
        UnsupportedModelError: They do not fit the configuration.
    """
    try:
        auto: Any = AutoModelForImageTextToText
        model, loading = auto.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            output_loading_info=True,
            **hub,
        )
    except SafetensorError as error:
        raise ModelNotFoundError(
            f"The weights of {name} are not whole safetensors files ({_first_line(error)}).",
            remedy="Download them again; files of some hundred bytes are git-LFS pointers (git lfs pull).",
        ) from error
    except OSError as error:
        kind = UnsafeWeightsError if "safetensors" in str(error) else ModelNotFoundError
        raise kind(
            f"The weights of {name} cannot be loaded ({_first_line(error)}).",
            remedy="Use a revision with safetensors weights; pickled ones are never loaded.",
        ) from error
    except torch.OutOfMemoryError:  # a RuntimeError, but nothing is wrong with the model
        raise
    except (ValueError, RuntimeError, ImportError) as error:
        raise UnsupportedModelError(
            f"The weights of {name} cannot be loaded as configured ({_first_line(error)}).",
            remedy="Use weights, config.json, dtype and device_map that fit each other; a device_map needs "
            "accelerate.",
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelNotFoundError(
            f"The weights of {name} lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}).",
            remedy="Use all files of one checkpoint; a tensor that is missing would be random.",
        )
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def move(model: Any, device: str | torch.device) -> None:
    """Puts the whole model in one place.

    Raises:
        ConfigError: There is no such device here.
    """
    try:
        model.to(device)
    except torch.OutOfMemoryError:  # a RuntimeError, but there is such a device
        raise
    except (AssertionError, RuntimeError) as error:  # an AssertionError where torch was built without CUDA
        raise ConfigError(
            f"The device {str(device)!r} cannot be used ({_first_line(error)}).",
            remedy="Use cpu, or a device that this build of torch knows and this machine has.",
        ) from error
