"""OpenAIModel: a large model behind any server with OpenAI's chat completions, vLLM's above all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from sgl_engine.chat.tool_stream import Delta
from sgl_engine.errors import ConfigError, HostedAnswerError
from sgl_engine.hosted.connection import Endpoint
from sgl_engine.hosted.model import HostedAnswer, HostedCall
from sgl_engine.hosted.openai_body import AnswerStream, request_body
from sgl_engine.request import check_wanted

if TYPE_CHECKING:
    from typing import Self

    import httpx

_HEADER_NAME = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
"""A word, as HTTP has it."""


class OpenAIModel:
    """A large model behind an OpenAI-compatible server: ``SGLEngine(small, OpenAIModel(url, "name"))``.

    Questions are sent as they are, but for their pictures (``SendConfig``); what a request leaves open is
    left to the server. They are repeated, with growing pauses or after what ``Retry-After`` says, on 408,
    409, 425, 429, 5xx and where no connection comes about, as long as no answer has begun. Redirects are not
    followed. May be shared between threads and engines.

    Args:
        base_url: The part before ``/chat/completions``: ``"https://host/v1"``.
        model: As the server calls it.
        api_key: Sent as a bearer token; no error, report or ``repr`` shows it. None sends none.
        name: What reports and prices call it; None is ``model``.
        headers: Sent too; they are treated like the key.
        extra_body: Fields that this interface does not have, laid over every body.
        timeout_s: How long the server may say nothing, before an answer and within it.
        max_retries: How often a question is repeated.
        max_wait_s: A server that asks to wait longer is not asked again.
        max_connections: Questions under way at once; more wait.
        limit_name: What the server calls the limit of answer tokens.
        detail: OpenAI's wish for pictures; None is not sent.
        transport: Of httpx, for tests, proxies and sockets.

    Raises:
        ConfigError: The address is none, or holds a user or password; or the key or a header cannot be sent.
    """

    provider = "openai"
    """What spans call the provider: whose interface it is."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: SecretStr | str | None = None,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 2,
        max_wait_s: float = 60.0,
        max_connections: int = 32,
        limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_tokens",
        detail: Literal["auto", "low", "high"] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.model, self.name = model, name or model
        self.base_url = _checked(base_url)
        key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        _check_headers(key or "", headers or {})
        sent = {"authorization": f"Bearer {key}"} if key else {}
        self._endpoint = Endpoint(
            f"{self.base_url}/chat/completions",
            headers={**sent, **(headers or {})},
            secrets=tuple(filter(None, (key, *(headers or {}).values()))),
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_wait_s=max_wait_s,
            max_connections=max_connections,
            transport=transport,
        )
        self._extra = dict(extra_body or {})
        self._limit_name, self._detail = limit_name, detail

    def __repr__(self) -> str:
        return f"OpenAIModel({self.base_url!r}, {self.model!r})"

    @property
    def identity(self) -> str:
        """Tells apart, in a cache's key, models that may answer differently; holds no key and no header."""
        said = [self.base_url, self.model, self._extra, self._limit_name, self._detail]
        written = json.dumps(said, sort_keys=True, default=repr)
        return hashlib.sha256(f"{type(self).__name__} {written}".encode()).hexdigest()[:16]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; a later question opens new ones."""
        self._endpoint.close()

    def body(self, call: HostedCall) -> dict[str, Any]:
        """What is sent for a question: everything that leaves the machine, but for the headers."""
        body = request_body(call, self.model, limit_name=self._limit_name, detail=self._detail)
        return {**body, **self._extra}

    def stream(self, call: HostedCall) -> Generator[Delta, None, HostedAnswer]:
        """Asks, and yields the answer piece by piece; returns it whole.

        Raises:
            HostedError: There is no answer.
            DeadlineError: The deadline has passed.
            RequestCancelledError: The answer is not wanted any more.
        """
        wanted = partial(check_wanted, call.request, f"while {self.name} was asked")
        wanted()
        answer = AnswerStream()
        body = json.dumps(self.body(call)).encode()
        try:
            for line in self._endpoint.ask(body, wanted):
                yield from answer.push(line)
                if answer.ended:
                    break
            return (yield from answer.finish())
        except HostedAnswerError as error:
            # Servers may repeat what they were sent; the key must not come back in an error.
            problem = self._endpoint.cleaned(error.problem)
        raise HostedAnswerError(problem, remedy="Ask again, or look into the server's log.")


def _checked(base_url: str) -> str:
    """The address without a slash at its end."""
    if not _is_readable(base_url):  # and so is not shown: nobody knows where in it a password stands
        raise ConfigError(
            "The server's address has a host or a port that is none.",
            remedy='Give one like "https://host/v1".',
        )
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = urlunsplit(parts._replace(netloc=parts.hostname or "", query=""))
        shown = shown.rpartition("@")[2]  # without a scheme, a user and a password are part of the path
        raise ConfigError(
            f"{shown!r:.100} is not a server's address.",
            remedy='Give one like "https://host/v1".',
        )
    if parts.username is not None or parts.password is not None or {"?", "#"} & {*base_url}:
        raise ConfigError(
            f"The address of {parts.hostname} holds a user, a password, a query or a fragment.",
            remedy="Give keys as api_key or headers: addresses are shown in errors.",
        )
    return base_url.rstrip("/")


def _is_readable(base_url: str) -> bool:
    """Whether both urllib and httpx can read an address; each refuses some that the other takes."""
    import httpx

    try:
        _ = urlsplit(base_url).port, httpx.URL(base_url).host
    except (ValueError, httpx.InvalidURL):
        return False
    return True


def _check_headers(key: str, headers: Mapping[str, str]) -> None:
    """Raises ConfigError for what HTTP cannot carry; no value is shown, and no cause that would show it."""
    if not _is_sendable(key):
        raise ConfigError(
            "The api_key holds what no header can: a line break, spaces around it, or what is not ASCII.",
            remedy="Give the key alone, as its owner wrote it.",
        )
    for name, value in headers.items():
        texts: tuple[object, object] = (name, value)
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError("A header is no text.", remedy="Write its name and its value as str.")
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(
                "The name of a header is none.",
                remedy="Write it in letters, digits and hyphens, as in x-key.",
            )
        if not _is_sendable(value):
            raise ConfigError(
                f"The header {name} holds what none can: a line break, outer spaces, or what is not ASCII.",
                remedy="Give its value alone, in ASCII.",
            )


def _is_sendable(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()
