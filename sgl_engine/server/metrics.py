"""What ``/metrics`` says: our own names, and vLLM's where dashboards read those.

Counted from the reports, so that numbers here and in answers agree. Each server has a registry of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sgl_engine import Response, RunReport
from sgl_engine.server.chat import Writer, finish_reason, usage_of
from sgl_engine.server.errors import UNFORESEEN, code_of

if TYPE_CHECKING:
    from sgl_engine import SGLEngine
    from sgl_engine.decisions import DecisionReport

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_SCORES: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """Counters, gauges and histograms of one server.

    Args:
        model: The pair's name, a label of vLLM's metrics.
        vllm_names: Whether vLLM's are kept too.
    """

    def __init__(self, model: str, *, vllm_names: bool) -> None:
        self.registry = CollectorRegistry()
        self._model, self._vllm = model, VLLMMetrics(self.registry, model) if vllm_names else None
        self.answers = self._counter("sgl_answers", "Answers", "route", "finish_reason")
        self.errors = self._counter("sgl_errors", "Requests that ended in an error", "code")
        self.escalations = self._counter("sgl_escalations", "Calls of the large model", "reason")
        self.tokens = self._counter("sgl_tokens", "Tokens of either model", "model", "kind")
        self.visual = self._counter("sgl_visual_tokens", "Visual tokens of escalated requests", "kind")
        self.tflops = self._counter("sgl_tflops", "1e12 operations of answered requests", "of")
        self.drafts = self._counter("sgl_draft_tokens", "Draft tokens that the large model was given", "kind")
        self.known = self._counter("sgl_known_pictures", "Pictures that no tower ran on again", "model")
        self.lists = self._counter("sgl_lists", "Lists that were ranked or scored", "path", "route")
        self.documents = self._counter("sgl_documents", "Documents of these lists", "route")
        self.decisions = self._counter("sgl_decisions", "Typed questions", "type", "route")
        self.score = Histogram(
            "sgl_score", "The small model's score", buckets=_SCORES, registry=self.registry
        )
        self.seconds = Histogram(
            "sgl_stage_seconds", "Seconds by stage", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.load = Gauge("sgl_load", "What is under way", ["kind"], registry=self.registry)
        self.ready = Gauge("sgl_ready", "1 once answers can be had", registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Counts what nobody foresaw inside; other errors are counted where they become answers."""
        try:
            yield
        except Exception as error:
            if code_of(error) == UNFORESEEN:
                self.errors.labels(UNFORESEEN).inc()
            raise

    def count(self, response: Response, streamed: Writer | None = None) -> None:
        """Takes one answer in, and when its pieces came, where it was streamed."""
        report = response.report
        self.answers.labels(report.route, finish_reason(response)).inc()
        self.score.observe(max(0.0, report.score))
        self.tflops.labels("large_alone").inc(report.large_alone_tflops)
        self._count_run(report, "uncovered" if report.uncovered else "forced" if report.forced else "score")
        for stage, milliseconds in report.stage_ms.items():
            self.seconds.labels(stage).observe(1e-3 * milliseconds)
        if self._vllm is not None:
            self._vllm.count(response, streamed)

    def count_list(
        self, path: str, report: Mapping[str, Any], runs: Sequence[RunReport], *, seconds: float
    ) -> None:
        """Takes in lists that were ranked.

        Args:
            path: Where they were sent.
            report: Of ``ranking.answers.list_report``.
            runs: Of every run that it took, those that were overruled too.
            seconds: From the request to its answer.
        """
        self.seconds.labels("list").observe(seconds)
        self.lists.labels(path, report["route"]).inc()
        for route, number in report["documents"].items():
            self.documents.labels(route).inc(number)
        if report["score"] is not None:
            self.score.observe(report["score"])
        self.tflops.labels("large_alone").inc(report["large_alone_tflops"])
        for run in runs:
            self._count_run(run, "list")
        if self._vllm is not None:
            self._vllm.count_prompts([usage_of(run) for run in runs])

    def count_decisions(
        self, types: Sequence[str], reports: Sequence[DecisionReport | None], *, seconds: float
    ) -> None:
        """Takes in the questions of one request.

        Args:
            types: Their types, as clients name them.
            reports: One for each; None where it was refused.
            seconds: From the request to its answer.
        """
        self.seconds.labels("decisions").observe(seconds)
        for kind, report in zip(types, reports, strict=True):
            self.decisions.labels(kind, "refused" if report is None else report.route).inc()
            if report is None:
                continue
            self.score.observe(report.score)
            if report.escalated:
                self.escalations.labels("decision").inc()
            for model in ("small", "large"):
                self.tokens.labels(model, "input").inc(getattr(report, f"{model}_input_tokens"))
                self.tokens.labels(model, "output").inc(getattr(report, f"{model}_output_tokens"))
                self.tflops.labels(model).inc(getattr(report, f"{model}_tflops"))
            self.tflops.labels("large_alone").inc(report.large_alone_tflops)

    def _count_run(self, report: RunReport, reason: str) -> None:
        """Takes in what both models did for one question; ``reason`` is why the large one was called."""
        if report.escalated:
            self.escalations.labels(reason).inc()
            self.visual.labels("prompt").inc(report.visual_tokens)
            self.visual.labels("kept").inc(report.kept_visual_tokens or 0)
            self.drafts.labels("given").inc(report.drafted_tokens or 0)
            self.drafts.labels("accepted").inc(report.accepted_tokens or 0)
        for model in ("small", "large"):
            self.tokens.labels(model, "input").inc(getattr(report, f"{model}_input_tokens") or 0)
            self.tokens.labels(model, "output").inc(getattr(report, f"{model}_output_tokens") or 0)
            self.known.labels(model).inc(getattr(report, f"{model}_known_pictures") or 0)
            self.tflops.labels(model).inc(getattr(report, f"{model}_tflops"))

    def text(self, engine: SGLEngine | None, *, is_ready: bool) -> bytes:
        """All of it as Prometheus reads it."""
        self.ready.set(is_ready)
        for kind, number in ({} if engine is None else engine.load()).items():
            self.load.labels(kind).set(number)
            if self._vllm is not None:
                self._vllm.set_load(kind, number)
        return generate_latest(self.registry)


class VLLMMetrics:
    """The names that dashboards and load tools made for vLLM read, with its labels."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        names = ("model_name", "engine")

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Any:
            made = Histogram(f"vllm:{name}", text, names, buckets=buckets, registry=registry)
            return made.labels(**self._labels)

        def counter(name: str, text: str) -> Any:
            return Counter(f"vllm:{name}", text, names, registry=registry).labels(**self._labels)

        self._success = Counter(
            "vllm:request_success", "Answers", [*names, "finished_reason"], registry=registry
        )
        self._prompt = counter("prompt_tokens", "Prompt tokens of the models that answered")
        self._written = counter("generation_tokens", "Tokens that they wrote")
        self._queries = counter("prefix_cache_queries", "Prompt tokens that were looked up")
        self._hits = counter("prefix_cache_hits", "Those that were known")
        self._first = histogram("time_to_first_token_seconds", "To the first piece of a streamed answer")
        self._between = histogram("inter_token_latency_seconds", "Between tokens of a streamed answer")
        self._whole = histogram("e2e_request_latency_seconds", "The whole request")
        self._queue = histogram("request_queue_time_seconds", "Waiting")
        self._prompts = histogram("request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._answers = histogram("request_generation_tokens", "Tokens written for a request", _TOKENS)
        gauges = {"num_requests_running": "Requests that models work on", "num_requests_waiting": "Others"}
        self._gauges = {
            name: Gauge(f"vllm:{name}", text, names, registry=registry).labels(**self._labels)
            for name, text in gauges.items()
        }
        self._waiting: dict[str, int] = {}

    def count(self, response: Response, streamed: Writer | None) -> None:
        """Takes one answer in, as ``Metrics.count`` does."""
        report, usage = response.report, usage_of(response.report)
        total_s = 1e-3 * report.stage_ms.get("total", 0.0)
        written = usage["completion_tokens"]
        self._success.labels(**self._labels, finished_reason=response.finish_reason).inc()
        self._written.inc(written)
        self.count_prompts([usage])
        self._whole.observe(total_s)
        self._queue.observe(1e-3 * report.stage_ms.get("queue", 0.0))
        self._prompts.observe(usage["prompt_tokens"])
        self._answers.observe(written)
        first_s, last_s = (streamed.first_token_s, streamed.last_token_s) if streamed else (None, None)
        if first_s is not None and last_s is not None:
            self._first.observe(first_s)
            if written > 1:
                self._between.observe((last_s - first_s) / (written - 1))

    def count_prompts(self, usages: Sequence[Mapping[str, Any]]) -> None:
        """Takes the prompts of some runs in."""
        for usage in usages:
            self._prompt.inc(usage["prompt_tokens"])
            self._queries.inc(usage["prompt_tokens"])
            self._hits.inc(usage["prompt_tokens_details"]["cached_tokens"])

    def set_load(self, kind: str, number: int) -> None:
        """Takes one of ``SGLEngine.load`` in."""
        if kind == "running":
            self._gauges["num_requests_running"].set(number)
        elif kind.startswith("waiting_"):
            self._waiting[kind] = number
            self._gauges["num_requests_waiting"].set(sum(self._waiting.values()))
