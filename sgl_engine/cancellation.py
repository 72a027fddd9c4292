"""When an answer is not wanted any more: it was cancelled, or its deadline has passed."""

from __future__ import annotations

import time

from sgl_engine.errors import DeadlineError, RequestCancelledError
from sgl_engine.types import Decoding, Request


def check_wanted(wish: Request | Decoding, where: str) -> None:
    """Fails when the answer is not wanted any more.

    Args:
        wish: Whose ``cancel`` and ``deadline`` count.
        where: How far it got, for the message: "after 3 of 10 answer tokens".

    Raises:
        RequestCancelledError: It was cancelled.
        DeadlineError: It is late.
    """
    if wish.cancel is not None and wish.cancel.is_set():
        raise RequestCancelledError(
            f"The request was cancelled {where}.", remedy="Send it again if the answer is wanted after all."
        )
    if wish.deadline is None:
        return
    late_s = time.monotonic() - wish.deadline
    if late_s > 0:
        raise DeadlineError(
            f"The deadline passed {late_s:.3f} s ago, {where}.",
            remedy="Set a later deadline, ask for fewer tokens, or keep less of the image.",
        )
