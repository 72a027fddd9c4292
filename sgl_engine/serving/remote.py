"""Asks other machines: each question in a thread of its own, side by side with everything else.

The worker's thread is for models that compute here. Whoever waits for a hosted model only waits, and many can
do that at once. A question that nobody wants any more is left alone; its model finds it cancelled.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from functools import partial

from sgl_engine.serving.job import Job, not_of_the_caller
from sgl_engine.serving.worker import Worker


def ask_remotely(worker: Worker, jobs: Sequence[Job]) -> None:
    """Starts all of them, with the caller's context variables.

    Raises:
        EngineClosedError: The interpreter is ending.
    """
    for job in jobs:
        run = partial(contextvars.copy_context().run, partial(_ask, job))
        worker.run_beside(run, name="sgl-hosted", inside=True)


def _ask(job: Job) -> None:
    """Runs one job to its end, and tells whoever waits what comes."""
    steps = job.work.run([job.work.given])
    try:
        for told in steps:
            for _, piece in told:
                job.tell(piece)
            if job.over:
                return
    except BaseException as error:  # noqa: BLE001  # whatever a model raises is its caller's to see
        job.end(error if isinstance(error, Exception) else not_of_the_caller(error))
    finally:
        steps.close()
