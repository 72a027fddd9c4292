"""What fields of settings and calls are made of: environment variables, names of torch, hosted models, ..."""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.utils import from_env
from pydantic import BeforeValidator

from langchain_sgl.chat.hosted import LangChainModel
from sgl_engine import ConfigError, HostedModel

UnknownOptions: TypeAlias = Literal["refuse", "warn", "ignore"]
_PROVIDER = re.compile(r"[a-z][a-z0-9_-]+:[^/\\]")
"""How ``init_chat_model`` is told of a provider: "openai:gpt-..."; no hub id holds a colon."""
_NOT_TOLD = frozenset("token use_auth_token cache_dir local_files_only headers proxies".split())
"""Of what ``from_pretrained`` takes: secrets, and where files lie. No answer depends on them."""


def environment(name: str) -> Callable[[], str | None]:
    """Returns a function that reads a variable; an empty one, as container set-ups have them, is none."""
    read = from_env(name, default=None)
    return lambda: read() or None


def _torch_name(value: Any) -> Any:
    """Writes a ``torch.dtype`` or ``torch.device`` as text, without importing torch."""
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value


def send_config(value: Any) -> Any:
    """Writes a mode as the configuration with it."""
    return {"mode": value} if isinstance(value, str) else value


TorchName: TypeAlias = Annotated[Any, BeforeValidator(_torch_name)]


def names_provider(large: object) -> bool:
    """Whether a name is one for ``init_chat_model``, and not of a folder or on the hub."""
    return isinstance(large, str) and bool(_PROVIDER.match(large)) and not Path(large).exists()


def is_hosted(large: object) -> bool:
    """Whether what is given as the large model is not loaded here."""
    return names_provider(large) or not (large is None or isinstance(large, str | Path))


def as_hosted(large: Any) -> HostedModel:
    """Returns the hosted model that is meant by a name, a LangChain chat model, or one that is there already.

    Raises:
        ConfigError: It is nothing of these, or the provider's package is missing.
    """
    if isinstance(large, str):
        large = _made(large)
    if isinstance(large, BaseChatModel):
        return LangChainModel(large)
    if isinstance(getattr(large, "name", None), str) and callable(getattr(large, "stream", None)):
        model: HostedModel = large
        return model
    raise ConfigError(
        f"A {type(large).__name__} is no large model.",
        remedy='Give a folder, a hub id, a LangChain chat model, its name ("openai:gpt-...") or OpenAIModel.',
    )


def _made(name: str) -> BaseChatModel:
    """Makes the chat model of a name like "openai:gpt-..."."""
    try:
        from langchain.chat_models import init_chat_model

        model: BaseChatModel = init_chat_model(name)
    except ImportError as error:
        raise ConfigError(
            f"{name!r} needs a package that is not installed ({error.name}).",
            remedy="Install langchain and the provider's package, or give the chat model itself.",
        ) from error
    except (ValueError, TypeError) as error:  # of LangChain, or of the provider's integration
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{name!r} is no chat model that LangChain can make ({type(error).__name__}: {reason:.300}).",
            remedy="Check the provider and its key, or give the chat model itself.",
        ) from error
    return model


def provider_of(model: HostedModel | None) -> str:
    """What LangSmith calls the provider of a large model, which it may have prices of."""
    return "sgl" if model is None else str(getattr(model, "provider", "openai"))


def hosted_label(large: Any) -> str:
    """What a hosted model is called, as far as that can be told without making it."""
    return large if isinstance(large, str) else as_hosted(large).name


def hosted_identity(large: Any) -> str:
    """Tells hosted models apart in a cache's key: without keys, and not to be read."""
    model = large.model if isinstance(large, LangChainModel) else large
    if not isinstance(model, BaseChatModel):
        return str(getattr(model, "identity", None) or repr(model))
    written = model._get_llm_string()  # noqa: SLF001  # LangChain's own: all settings, and no key
    return hashlib.sha256(f"{type(model).__name__} {written}".encode()).hexdigest()[:16]


def file_identity(path: Path) -> str:
    """Tells files apart in a cache's key by what they hold: one of the same name may be made anew."""
    try:
        return hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
    except OSError:  # whoever reads it will say so
        return str(path)


def told_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What traces and cache keys may hold of the settings by which a model is loaded: no key of the hub."""
    return {
        name: told_settings(value) if name == "model_kwargs" and isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in _NOT_TOLD
    }


def without_unknown(
    options: Mapping[str, Any], known: Container[str], policy: UnknownOptions | None
) -> dict[str, Any]:
    """Leaves out options that do not exist, where ``unknown_options`` says so."""
    if policy not in {"warn", "ignore"}:
        return dict(options)
    unknown = [name for name in options if name not in known]
    if unknown and policy == "warn":
        warnings.warn(
            f"ChatSGL has no option {', '.join(map(repr, unknown))}, and answers without.", stacklevel=2
        )
    return {name: value for name, value in options.items() if name not in unknown}


def with_attributes_of(described: type, *owners: type) -> str:
    """Writes a class's docstring, with the attributes that the docstrings of other classes describe."""
    sections = [
        (inspect.getdoc(owner) or "").partition("Attributes:\n")[2].partition("\n\n")[0] for owner in owners
    ]
    return f"{inspect.getdoc(described)}\n\nAttributes:\n" + "\n".join(filter(None, sections))
