"""How a model is loaded: what can be set, for a pair or for each of its models. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from sgl_engine.errors import ConfigError

if TYPE_CHECKING:
    import torch


class LoadSettings(TypedDict, total=False):
    """What ``VLM.from_pretrained`` can be told; what is left out is transformers' own default.

    Attributes:
        dtype: As in transformers; "auto", the default, is the dtype of the checkpoint.
        device: Where the whole model goes; not together with ``device_map``.
        device_map: As in transformers (needs accelerate).
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.
        attn_implementation: As in transformers: "sdpa", "eager", "flash_attention_2", ...
        quantization: "int8" stores the matrices of linear layers in eight bits, on any device (needs torchao:
            ``pip install "langchain-sgl[quantized]"``).
        quantization_config: Any other format, as in transformers, an object or a dict; a quantized model is
            placed by ``device_map``.
        model_kwargs: What else ``from_pretrained`` of the model takes, as {"max_memory": ...}; "cache_dir",
            "token" and "local_files_only" also go to the processor's.
    """

    dtype: str | torch.dtype
    device: str | torch.device | None
    device_map: str | Mapping[str, Any] | None
    revision: str | None
    trust_remote_code: bool
    attn_implementation: str | None
    quantization: Literal["int8"] | None
    quantization_config: Any
    model_kwargs: Mapping[str, Any] | None


_EITHER_OR = (frozenset(("device", "device_map")), frozenset(("quantization", "quantization_config")))
"""Of each, one says the same as the other."""
QUANTIZATIONS = ("int8",)
_DTYPES = frozenset("auto float16 bfloat16 float32 float64 half float double".split())
_OF_THE_HUB = frozenset("cache_dir token local_files_only".split())
_SET_HERE = frozenset(
    "config torch_dtype use_safetensors output_loading_info state_dict weights_only".split()
).union(LoadSettings.__annotations__)


def settings_of_each(
    common: Mapping[str, Any], small: Mapping[str, Any] | None, large: Mapping[str, Any] | None
) -> tuple[LoadSettings, LoadSettings]:
    """Lays each model's own settings over those of both.

    Args:
        common: Settings of both models; None is not set.
        small: The small model's own; a ``device`` of its own takes the place of a common ``device_map``, and
            a ``quantization`` that of a common ``quantization_config``.
        large: The large model's own.

    Raises:
        ConfigError: There is no such setting.
    """
    return _laid_over(common, small, "small_settings"), _laid_over(common, large, "large_settings")


def _laid_over(common: Mapping[str, Any], own: Mapping[str, Any] | None, whose: str) -> LoadSettings:
    check_settings(own or {}, whose)
    mine = dict(own or {})
    kept = {name: value for name, value in common.items() if value is not None}
    for pair in _EITHER_OR:
        if pair & mine.keys():
            kept = {name: value for name, value in kept.items() if name not in pair}
    both: Any = {**kept, **mine}
    settings: LoadSettings = both
    return settings


def check_settings(settings: Mapping[str, Any], whose: str) -> None:
    """Refuses names of settings that do not exist, and two places or two formats for one model.

    Args:
        settings: Of one model, or of both.
        whose: What they are called, for the message.

    Raises:
        ConfigError: There is no such setting, or the settings contradict each other.
    """
    unknown = [name for name in settings if name not in LoadSettings.__annotations__]
    if unknown:
        raise ConfigError(
            f"{whose} names {unknown[0]!r:.100}, which is no setting of a model.",
            remedy=f"Use {', '.join(LoadSettings.__annotations__)}.",
        )
    dtype = settings.get("dtype")
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise ConfigError(
            f"{whose} names the dtype {dtype!r:.100}, in which no model computes.",
            remedy=f"Use {', '.join(sorted(_DTYPES))}.",
        )
    device, device_map = settings.get("device"), settings.get("device_map")
    if device is not None and device_map is not None:
        raise ConfigError(
            f"Both device={str(device)!r} and device_map={device_map!r} are given.",
            remedy="Use device for the whole model in one place, or device_map to spread it.",
        )
    _check_quantization(settings, whose)
    taken = sorted(_SET_HERE & (settings.get("model_kwargs") or {}).keys())
    if taken:
        raise ConfigError(
            f"model_kwargs names {taken[0]!r}, which is not passed on like that.",
            remedy=f"Only safetensors weights are loaded; settings of their own are "
            f"{', '.join(LoadSettings.__annotations__)}.",
        )


def _check_quantization(settings: Mapping[str, Any], whose: str) -> None:
    asked, other = settings.get("quantization"), settings.get("quantization_config")
    if asked is None:
        return
    if asked not in QUANTIZATIONS:
        raise ConfigError(
            f"{whose} names the quantization {asked!r:.100}, which is not done here.",
            remedy=f"Use {', '.join(QUANTIZATIONS)}, or a quantization_config of transformers.",
        )
    if other is not None:
        raise ConfigError(
            f"Both quantization={asked!r} and a quantization_config are given.",
            remedy="Use one of them.",
        )


def of_the_hub(settings: LoadSettings) -> dict[str, Any]:
    """Picks what configuration, processor and weights are all looked up with."""
    more = settings.get("model_kwargs") or {}
    return {
        "revision": settings.get("revision") or "main",
        "trust_remote_code": settings.get("trust_remote_code", False),
        **{name: more[name] for name in _OF_THE_HUB & more.keys()},
    }


def of_the_weights(settings: LoadSettings) -> dict[str, Any]:
    """Picks what only the weights are loaded with.

    Raises:
        ConfigError: They are to be quantized, and what that needs is not installed.
    """
    more = settings.get("model_kwargs") or {}
    own = {name: settings.get(name) for name in ("device_map", "attn_implementation", "quantization_config")}
    if settings.get("quantization") is not None:
        from sgl_engine.model.quantization import int8_config

        own["quantization_config"] = int8_config()
    return {
        "dtype": settings.get("dtype") or "auto",
        **{name: value for name, value in own.items() if value is not None},
        **{name: value for name, value in more.items() if name not in _OF_THE_HUB},
    }


def same_source(first: str | Path, second: str | Path) -> bool:
    """Whether two folders or hub ids are one."""
    names = [path_or_name(each) for each in (first, second)]
    places = [Path(name).resolve() if Path(name).is_dir() else Path(name) for name in names]
    return names[0] == names[1] or (places[0] == places[1] and places[0].is_dir())


def path_or_name(source: str | Path) -> str:
    """Writes a folder without ``~``, and a hub id as it is."""
    folder = Path(source).expanduser()
    return str(folder) if folder.is_dir() else str(source)
