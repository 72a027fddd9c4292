"""How many replicas a deployment of a model has: as many as those who wait are worth."""

from __future__ import annotations

import math
from typing import Any

from sgl_engine.cluster.settings import Replicas


class WaitingPolicy:
    """A policy of Ray Serve's autoscaler.

    Requests of the large model's deployment are escalations, so those that wait there are escalations that
    wait. What is answered already holds its replica, and asks for no other.

    Args:
        slots: Requests that one replica has at once.
        waiting: So many that wait are worth one more replica.
    """

    def __init__(self, slots: int, waiting: int) -> None:
        self._slots, self._waiting = slots, waiting

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Decides; limits and delays are the autoscaler's.

        Args:
            context: An ``AutoscalingContext``.

        Returns:
            Replicas, and what is to be known the next time: nothing.
        """
        return wanted_replicas(
            running=context.total_running_requests,
            waiting=context.total_queued_requests,
            slots=self._slots,
            worth=self._waiting,
        ), {}


def wanted_replicas(*, running: float, waiting: float, slots: int, worth: int) -> int:
    """How many replicas there should be. Pure.

    Args:
        running: Requests that replicas have, on average over the last seconds.
        waiting: Requests that wait for a place, on average.
        slots: Requests that one replica has at once.
        worth: So many that wait are worth one more replica.
    """
    if not (running or waiting):
        return 0
    return max(1, math.ceil(running / slots) + int(waiting // worth))


def scale(replicas: Replicas) -> dict[str, Any]:
    """What Ray Serve is told about how many there are."""
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.most}
    policy = f"{WaitingPolicy.__module__}:{WaitingPolicy.__name__}"
    return {
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "upscale_delay_s": replicas.up_s,
            "downscale_delay_s": replicas.idle_s,
            "look_back_period_s": 15.0,  # longer than Ray takes from one look to the next
            "policy": {
                "policy_function": policy,
                "policy_kwargs": {"slots": replicas.slots, "waiting": replicas.waiting},
            },
        }
    }
