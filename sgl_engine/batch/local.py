"""Answers rows with one engine, in this process: several at once, and told in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

from sgl_engine import Response, SGLEngine
from sgl_engine.batch.forms import Json, RowForm, Written, check_row_error
from sgl_engine.batch.inputs import Rows

WAITING_BATCHES = 4
"""Full batches of rows under way: while some wait for the large model, others keep the small one busy."""


def answer_rows(engine: SGLEngine, rows: Rows, form: RowForm, start: int = 0) -> Iterator[Written]:
    """Asks about rows, from number ``start`` on, and yields what is written about each, in order.

    No more rows are held than are under way, and those are at most ``WAITING_BATCHES`` batches: whoever
    reads slowly is waited for.

    Args:
        engine: Whose worker runs both models for all of them; nobody else should fill its queue meanwhile.
        rows: What is asked.
        form: What the rows are.
        start: Rows before it are left out.

    Raises:
        EngineError: The engine cannot go on; rows that were not told have no answer.
    """
    limits = engine.config.scheduler
    most = min(limits.max_queue, WAITING_BATCHES * limits.max_batch_size)
    waiting: deque[tuple[Json, Future[Response] | Exception]] = deque()
    try:
        for index in range(start, len(rows)):
            if len(waiting) == most:
                yield _told(form, *waiting.popleft())
            waiting.append(_asked(engine, rows, form, index))
        while waiting:
            yield _told(form, *waiting.popleft())
    finally:
        for _, outcome in waiting:  # nobody waits any more
            if isinstance(outcome, Future):
                outcome.cancel()


def _asked(
    engine: SGLEngine, rows: Rows, form: RowForm, index: int
) -> tuple[Json, Future[Response] | Exception]:
    """Hands one row over."""
    row = rows[index]
    head = form.head(index, row)
    try:
        chosen, request = form.request(engine, head, row)
        return head, chosen.submit(request)
    except Exception as error:  # noqa: BLE001  # whatever a row holds, the others go on
        return head, error


def _told(form: RowForm, head: Json, outcome: Future[Response] | Exception) -> Written:
    """Waits for one row."""
    if isinstance(outcome, Future):
        try:
            return form.answered(head, outcome.result())
        except Exception as error:  # noqa: BLE001  # the same
            outcome = error
    return form.failed(head, check_row_error(outcome, f"row {head['row']}"))
