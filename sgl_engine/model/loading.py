"""Loading a configuration and weights: safetensors only, and errors that say what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.utils import logging

from sgl_engine.errors import (
    ConfigError,
    ModelNotFoundError,
    ProcessorError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from sgl_engine.families.processors import image_only_class, load_image_only, obey_thumbnail_switch
from sgl_engine.model.checks import check_config, check_folder, check_format, check_unexpected
from sgl_engine.model.settings import (
    LoadSettings,
    check_settings,
    of_the_hub,
    of_the_weights,
    path_or_name,
)
from sgl_engine.prompt.sources import shorten

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and its processor, as they were read.

    Attributes:
        model: On its device.
        processor: Its own.
        source: The folder, or the hub id.
        revision: Commit on the hub, where it is known.
    """

    model: Any
    processor: Any
    source: str
    revision: str | None


def load(path_or_hub_id: str | Path, settings: LoadSettings) -> LoadedModel:
    """Loads a model and its processor; settings and errors are those of ``VLM.from_pretrained``."""
    check_settings(settings, "The call")
    source, hub, device = path_or_name(path_or_hub_id), of_the_hub(settings), settings.get("device")
    check_folder(source)
    with _bars_on_terminals_only():
        config = load_config(source, hub)
        check_config(config, source)  # before gigabytes of weights are read
        processor = load_processor(source, **hub)
        check_parts(processor, source)
        model = load_model(source, config, hub=hub, more=of_the_weights(settings))
    if device is not None:
        move(model, device)
    revision = getattr(config, "_commit_hash", None) or settings.get("revision")
    return LoadedModel(model, processor, source, revision)


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
        check_format(PreTrainedConfig.get_config_dict(name, **hub)[0], name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **hub)
    except OSError as error:
        raise ModelNotFoundError(
            f"The configuration of {name} cannot be loaded ({_first_line(error)}).",
            remedy="Check the path or hub id, the revision and the network.",
        ) from error
    except (MemoryError, UnsupportedModelError):
        raise
    except Exception as error:
        # A config.json may hold anything (a list, numbers for names, a thousand brackets), and transformers'
        # checks of it raise anything, plain Exception included.
        raise UnsupportedModelError(
            f"The configuration of {name} cannot be used ({type(error).__name__}: {_first_line(error)}).",
            remedy="Use a supported family in transformers format, and a transformers version that knows it.",
        ) from error
    return config


def load_model(
    name: str, config: PreTrainedConfig, *, hub: Mapping[str, Any], more: Mapping[str, Any]
) -> Any:
    """The model, with all of its weights, from safetensors files only.

    Args:
        name: Path or hub id.
        config: Its configuration.
        hub: Revision, trust and the like, as transformers takes them.
        more: What else its ``from_pretrained`` is told: dtype, device map, quantization, ...

    Raises:
        ModelNotFoundError: Weights are missing or damaged.
        UnsafeWeightsError: They are pickled, or lie outside the model's folder.
        UnsupportedModelError: They do not fit the configuration, or cannot be loaded as the settings say.
    """
    _check_index(name, config, hub)
    try:
        auto: Any = AutoModelForImageTextToText
        model, loading = auto.from_pretrained(
            name, **more, **hub, config=config, use_safetensors=True, output_loading_info=True
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
    except (torch.OutOfMemoryError, MemoryError):  # nothing is wrong with the model
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"The weights of {name} cannot be loaded as configured "
            f"({type(error).__name__}: {_first_line(error)}).",
            remedy="Use weights, config.json and settings (dtype, device_map, attn_implementation, "
            "quantization_config) that fit each other; a device_map needs accelerate.",
        ) from error
    check_unexpected(name, sorted(loading["unexpected_keys"]))
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelNotFoundError(
            f"The weights of {name} lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}).",
            remedy="Use all files of one checkpoint; a tensor that is missing would be random.",
        )
    _keep_special_tokens(model, name, hub)
    return model


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keeps the progress bars of transformers and of the hub out of logs and notebooks' error streams."""
    shown = logging.is_progress_bar_enabled()
    if not shown or sys.stderr is None or sys.stderr.isatty():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _check_index(name: str, config: PreTrainedConfig, hub: Mapping[str, Any]) -> None:
    """Refuses an index of weights that names anything but safetensors files beside it.

    transformers follows whatever an index names, pickles and absolute paths too.
    """
    index = getattr(config, "transformers_weights", None) or _INDEX  # a configuration may name its own file
    _check_names([index], f"The configuration of {name}", ending=(".safetensors", ".safetensors.index.json"))
    if not index.endswith(".index.json"):
        return
    path = _file(name, index, hub)
    if path is not None:
        _check_names(_names_in(path, name), f"The index {index} of {name}", ending=(".safetensors",))


def _file(name: str, file: str, hub: Mapping[str, Any]) -> Path | None:
    """A model's file; None where it has none, or there is no such model: loading says so with its reason."""
    from transformers.utils.hub import cached_file

    settings = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **settings)
    except OSError:
        return None
    return Path(path) if path is not None and Path(path).is_file() else None


def _keep_special_tokens(model: Any, name: str, hub: Mapping[str, Any]) -> None:
    """Reads ``skip_special_tokens`` of a generation_config.json that transformers takes for a model's own.

    Where it says ``_from_model_config``, as many on the hub do, transformers drops what it does not know.
    """
    settings = model.generation_config
    if not getattr(settings, "_from_model_config", None) or hasattr(settings, "skip_special_tokens"):
        return
    path = _file(name, "generation_config.json", hub)
    try:
        content = {} if path is None else json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return  # transformers has not read it either
    if isinstance(content, Mapping) and "skip_special_tokens" in content:
        settings.skip_special_tokens = content["skip_special_tokens"]


def _names_in(index: Path, name: str) -> list[Any]:
    """The files that an index of weights names."""
    try:
        content = json.loads(index.read_bytes())
        dict(content["metadata"])  # transformers reads it too
        return sorted(set(content["weight_map"].values()), key=str)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise ModelNotFoundError(
            f"The index {index.name} of {name} cannot be read "
            f"({type(error).__name__}: {_first_line(error)}).",
            remedy="Save the model again with model.save_pretrained(folder).",
        ) from error


def _check_names(names: list[Any], who: str, *, ending: tuple[str, ...]) -> None:
    for name in names:
        # As both systems read it: a folder may be made on one and opened on the other.
        readings = (PurePosixPath(str(name)), PureWindowsPath(str(name)))
        leads_out = any(path.is_absolute() or path.anchor or ".." in path.parts for path in readings)
        if leads_out or not (isinstance(name, str) and name.endswith(ending)):
            reason = "lies outside the folder" if leads_out else "is no safetensors file"
            raise UnsafeWeightsError(
                f"{who} names the weights {shorten(str(name))!r}, which {reason}.",
                remedy="Use a checkpoint whose weights are safetensors files beside their index.",
            )


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
    # An AssertionError where torch was built without CUDA, a ValueError where the weights are quantized.
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The device {str(device)!r} cannot be used ({_first_line(error)}).",
            remedy="Use cpu, or a device that this build of torch knows and this machine has; device_map for "
            "quantized weights.",
        ) from error


def load_processor(name: str, **hub: Any) -> Any:
    """The processor saved with a model.

    Without torchvision, a processor that also owns a video processor cannot be built as transformers does it;
    it is then built for images alone, with the Pillow image processor.

    Args:
        name: Path or hub id.
        hub: Revision, trust and the like, as transformers takes them; code that comes with a model is not run
            by default.

    Raises:
        ProcessorError: It is missing or cannot be loaded.
    """
    from transformers import AutoProcessor
    from transformers.processing_utils import ProcessorMixin
    from transformers.utils.import_utils import is_torchvision_available

    auto: Any = AutoProcessor
    hub = {"revision": "main", "trust_remote_code": False, **hub}
    try:
        if is_torchvision_available():
            return obey_thumbnail_switch(auto.from_pretrained(name, **hub))
        settings, _ = ProcessorMixin.get_processor_dict(name, **hub)
        cls = image_only_class(settings.get("processor_class") or _class_named_elsewhere(name, hub))
        if cls is None:
            return obey_thumbnail_switch(auto.from_pretrained(name, **hub))
        return obey_thumbnail_switch(load_image_only(cls, settings, name, hub))
    except MemoryError:
        raise
    except Exception as error:  # its files may hold anything; tokenizers raises plain Exception
        raise ProcessorError(
            f"The processor of {name} cannot be loaded ({type(error).__name__}: {_first_line(error)}).",
            remedy="Install torchvision, which it needs: pip install torchvision."
            if "torchvision" in str(error).lower()
            else "Save it next to the weights with processor.save_pretrained(folder).",
        ) from error


def _class_named_elsewhere(name: str, hub: Mapping[str, Any]) -> str:
    """The processor's class where processor_config.json does not name it: as transformers looks for it.

    Many repositories are older than that file, and name the class beside the image processor's settings.
    """
    from transformers.models.auto import processing_auto
    from transformers.utils.hub import cached_file

    of_files = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    for file in ("preprocessor_config.json", "tokenizer_config.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **of_files)
        named = None if path is None else json.loads(Path(path).read_bytes()).get("processor_class")
        if named:
            return str(named)
    config: Any = AutoConfig.from_pretrained(name, **hub)
    by_type: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
    return getattr(config, "processor_class", None) or by_type.get(config.model_type) or ""


def check_parts(processor: Any, name: str) -> None:
    """Raises ProcessorError where a tokenizer was loaded in place of a processor, as unknown classes give."""
    missing = [part for part in ("tokenizer", "image_processor") if getattr(processor, part, None) is None]
    if missing:
        raise ProcessorError(
            f"The processor of {name} is a {type(processor).__name__} and has no {' and no '.join(missing)}.",
            remedy="Save the model's own processor next to the weights with save_pretrained(folder).",
        )
