"""What a decision asks of the pair, as runs of LangChain: budgets, usage and traces count each of them.

A question is one run of the small model for each order of its answers, and as many again where it goes to
the large one. Callbacks hear of them when the decision is made; limits on escalation are asked before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from uuid import UUID, uuid4

from langchain_core.callbacks import CallbackManager, CallbackManagerForLLMRun
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config

from langchain_sgl.budget.gate import permissions
from langchain_sgl.reranking.scored_run import to_message
from sgl_engine import RunReport


class QuestionRuns:
    """The runs of one decision.

    Attributes:
        may_escalate: What has to be asked before each run of the large model; None without limits.
    """

    def __init__(self) -> None:
        config = ensure_config()
        self._manager = CallbackManager.configure(
            config.get("callbacks"),
            inheritable_tags=config.get("tags"),
            inheritable_metadata={
                **(config.get("metadata") or {}),
                "ls_provider": "sgl",
                "ls_model_type": "chat",
            },
        )
        self._lock = threading.Lock()
        self._takers: dict[bool, list[UUID]] = {True: [], False: []}
        self.may_escalate = permissions(self._asked)

    def _asked(self, taker: UUID, *, allowed: bool) -> None:
        with self._lock:
            self._takers[allowed].append(taker)

    def end(self, reports: Iterable[RunReport]) -> None:
        """Tells callbacks of every run, with its report."""
        for report in reports:
            # Who asked is not known, but of those that got the same reply one is as good as another.
            takers = self._takers[report.escalated]
            run = self._begin(takers.pop() if takers else uuid4())
            message = to_message("", report, run.run_id)
            run.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]))

    def fail(self, error: BaseException) -> None:
        """Tells callbacks of runs that asked for the large model and have not ended."""
        for taker in self._takers[True] + self._takers[False]:
            self._begin(taker).on_llm_error(error)
        self._takers = {True: [], False: []}

    def _begin(self, run_id: UUID) -> CallbackManagerForLLMRun:
        # Nothing of what was asked: it is in the run around these.
        (run,) = self._manager.on_chat_model_start({"name": "SGLDecisionModel"}, [[]], run_id=run_id)
        return run
