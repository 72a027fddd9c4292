"""What lmms-eval asks -> requests of the engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgl_engine import ConfigError, ImagePart, ImageSource, Message, Request

_KNOWN = {"max_new_tokens", "temperature", "top_p", "do_sample", "until", "num_beams", "image_aspect_ratio"}
"""Keys of generation_kwargs that are read, or of which the default is what happens here."""


def chat_request(messages: Sequence[Any], settings: Mapping[str, Any]) -> Request:
    """Makes a request of a conversation.

    Args:
        messages: ``ChatMessages.messages``.
        settings: A task's generation_kwargs.

    Raises:
        ConfigError: It holds a video or sound, or asks for beams.
    """
    return Request(messages=tuple(map(_message, messages)), **decoding(settings))


def _message(message: Any) -> Message:
    return Message(message.role, tuple(_part(content) for content in message.content))


def _part(content: Any) -> str | ImagePart:
    if content.type == "text":
        return str(content.text)
    if content.type != "image":
        raise ConfigError(
            f"A task asks about a {content.type}, and the engine reads pictures and texts.",
            remedy="Choose tasks about pictures.",
        )
    return ImagePart(picture(content.url))


def picture(source: Any) -> ImageSource:
    """Makes a source of what a task calls a picture: a PIL image, an address, or a path."""
    if isinstance(source, str) and not source.startswith(("http:", "https:", "data:")):
        return Path(source)
    found: ImageSource = source
    return found


def decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translates generation_kwargs to fields of a ``Request``; greedy unless ``do_sample`` is true.

    Raises:
        ConfigError: Beams are asked for.
    """
    if settings.get("num_beams") not in {None, 1}:
        raise ConfigError(
            f"num_beams is {settings['num_beams']}; the engine has no beam search.",
            remedy="Set it to 1 with --gen_kwargs num_beams=1.",
        )
    until = settings.get("until") or ()
    found: dict[str, Any] = {"stop": (until,) if isinstance(until, str) else tuple(until)}
    if settings.get("max_new_tokens"):
        found["max_new_tokens"] = int(settings["max_new_tokens"])
    # Tasks write a temperature beside do_sample: false; transformers does not look at it then, either.
    samples = bool(settings.get("do_sample", False))
    found["temperature"] = float(settings.get("temperature") or 0.0) if samples else 0.0
    if samples and settings.get("top_p"):
        found["top_p"] = float(settings["top_p"])
    return found


def unread(settings: Mapping[str, Any]) -> list[str]:
    """Names settings that are not looked at."""
    return sorted(set(settings) - _KNOWN)
