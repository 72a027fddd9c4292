"""Downloads an image without letting its URL reach into the caller's network.

The host is resolved here, every address is checked, and the connection goes to the checked address (the name
is kept for TLS and the Host header), so a second DNS answer cannot lead elsewhere. Redirects are followed by
hand and checked the same way. The body is read in pieces, as sent and never decompressed, and dropped when it
grows too large or too slow. All of this runs in a thread of its own: neither resolving a name nor a server
that sends its headers byte by byte can be timed out from within.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeoutError
from typing import TYPE_CHECKING

from sgl_engine.config import UrlPolicy
from sgl_engine.errors import ImageFetchError, ImageLimitError, MissingImageError, UnsafeUrlError
from sgl_engine.prompt.addresses import is_metadata, is_public
from sgl_engine.prompt.sources import describe_source, shorten

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset((408, 425, 429))  # timeout, too early, too many requests
_USER_AGENT = "langchain-sgl"
_LOOK_UP_S = 0.05  # how soon a caller who is not waited for any more notices


def fetch(
    url: str,
    policy: UrlPolicy,
    *,
    max_bytes: int,
    transport: httpx.BaseTransport | None = None,
    still_wanted: Callable[[], None] = lambda: None,
) -> bytes:
    """The body behind ``url``, within ``policy.timeout_s`` seconds, whatever the network does.

    Args:
        url: Absolute URL.
        policy: What may be reached.
        max_bytes: Larger bodies are refused, whatever their Content-Length says.
        transport: Replaces the network, for tests.
        still_wanted: Called now and then while waiting; what it raises ends the wait.

    Raises:
        UnsafeUrlError: The policy refuses the scheme, host, address or redirect.
        ImageLimitError: The body is larger than ``max_bytes``.
        MissingImageError: The server says that it has no such image, or none for us.
        ImageFetchError: Resolving, connecting or downloading failed or took too long; later it may not.
    """
    import httpx

    deadline = time.monotonic() + policy.timeout_s
    # The environment's proxies are not used: a proxy would resolve the name again.
    client = httpx.Client(transport=transport, trust_env=False, timeout=policy.timeout_s)
    body: Future[bytes] = Future()

    def work() -> None:
        try:
            body.set_result(_download(client, url, policy, max_bytes=max_bytes, deadline=deadline))
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            body.set_exception(error)

    threading.Thread(target=work, name="sgl-fetch", daemon=True).start()
    try:
        while True:
            try:
                return body.result(timeout=_LOOK_UP_S)
            except WaitTimeoutError as error:
                if body.done() and body.exception() is error:  # a time-out of the network's own
                    raise
                still_wanted()
                if not body.done():
                    _remaining_s(url, policy, deadline)
    finally:
        client.close()  # which also ends a download that nobody waits for


def _download(client: httpx.Client, url: str, policy: UrlPolicy, *, max_bytes: int, deadline: float) -> bytes:
    """Follows redirects to the body, by hand; see ``fetch``."""
    import httpx

    try:
        target = httpx.URL(url)
        for _ in range(policy.max_redirects + 1):
            request = _pinned_request(client, target, policy, deadline=deadline)
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if not response.has_redirect_location:
                    return _read_body(response, target, policy, max_bytes=max_bytes, deadline=deadline)
                target = target.join(response.headers["location"])
            finally:
                response.close()
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        # Only what the network said is repeated: the other errors quote parts of the URL.
        said = f": {error}" if isinstance(error, httpx.NetworkError | httpx.TimeoutException) else ""
        raise ImageFetchError(
            f"The image at {describe_source(url)} cannot be downloaded ({type(error).__name__}{said}).",
            remedy="Check the URL, or send the image itself.",
        ) from (error if said else None)
    raise UnsafeUrlError(
        f"The image at {describe_source(str(url))} redirects more than {policy.max_redirects} times.",
        remedy="Give the final URL, or raise UrlPolicy.max_redirects.",
    )


def _pinned_request(
    client: httpx.Client, url: httpx.URL, policy: UrlPolicy, *, deadline: float
) -> httpx.Request:
    """A request that goes to the address that was checked, still names the host, and has the time left."""
    _remaining_s(url, policy, deadline)
    address = _checked_address(url, policy)
    port = "" if url.port is None else f":{url.port}"
    host = f"[{url.host}]" if ":" in url.host else url.host
    return client.build_request(
        "GET",
        url.copy_with(host=address),
        headers={
            "Host": f"{host}{port}",
            "User-Agent": _USER_AGENT,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        },
        extensions={"sni_hostname": url.host},
        timeout=_remaining_s(url, policy, deadline),  # asked again, since resolving took time
    )


def _remaining_s(url: httpx.URL | str, policy: UrlPolicy, deadline: float) -> float:
    """Seconds left of the whole download; fails when none is."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise ImageFetchError(
            f"The image at {describe_source(str(url))} takes longer than {policy.timeout_s} s, the limit.",
            remedy="Send the image itself, or raise UrlPolicy.timeout_s.",
        )
    return remaining_s


def _checked_address(url: httpx.URL, policy: UrlPolicy) -> str:
    """Resolves the host; refuses it when any of its addresses is not a public one."""
    if not policy.enabled or url.scheme not in policy.schemes:
        allowed = ", ".join(policy.schemes) if policy.enabled else "none"
        raise UnsafeUrlError(
            f"The URL {describe_source(str(url))} has the scheme {shorten(url.scheme, 20)!r}; allowed: "
            f"{allowed}.",
            remedy="Send the image itself, or change LimitsConfig.urls.",
        )
    if url.userinfo or not url.host:
        raise UnsafeUrlError(
            f"A URL with {'a user name' if url.userinfo else 'no host'} is refused.",
            remedy="Give a plain URL, or send the image itself.",
        )
    try:
        found = socket.getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ImageFetchError(
            f"The host {shorten(url.host)!r} cannot be resolved ({error}).",
            remedy="Check the URL, or send the image itself.",
        ) from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses:
        raise ImageFetchError(
            f"The host {shorten(url.host)!r} has no address.",
            remedy="Check the URL, or send the image itself.",
        )
    for address in addresses:
        if is_metadata(address):
            raise UnsafeUrlError(
                f"The host {shorten(url.host)!r} has the address {address}, which is not public: a cloud's "
                "metadata service, which gives out credentials.",
                remedy="Send the image itself; this address is never fetched.",
            )
        if not policy.allow_private and not is_public(address):
            raise UnsafeUrlError(
                f"The host {shorten(url.host)!r} has the address {address}, which is not public.",
                remedy="Send the image itself, or set UrlPolicy(allow_private=True) where that is meant.",
            )
    return addresses[0]


def _read_body(
    response: httpx.Response, url: httpx.URL, policy: UrlPolicy, *, max_bytes: int, deadline: float
) -> bytes:
    status = response.status_code
    if status != 200:
        # Asking again may help with a busy or broken server, but not with a page that is not there.
        kind = ImageFetchError if status in _PASSING or status >= 500 else MissingImageError
        raise kind(
            f"The image at {describe_source(str(url))} answers with status {status}; 200 is needed.",
            remedy="Check the URL, or send the image itself.",
        )
    encoding = response.headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise ImageFetchError(
            f"The image at {describe_source(str(url))} has the Content-Encoding {shorten(encoding)!r}; "
            "identity was asked for.",
            remedy="Check the server, or send the image itself.",
        )
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > max_bytes:
            raise ImageLimitError(
                f"The image at {describe_source(str(url))} has more than {max_bytes} bytes, the limit.",
                remedy="Send a smaller image, or raise LimitsConfig.max_image_bytes.",
            )
        _remaining_s(url, policy, deadline)
    return bytes(body)
