"""Scored lists -> vLLM's answers, with our report. Pure."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sgl_engine import ExitConfig, RunReport
from sgl_engine.relevance import Judged, order
from sgl_engine.server.chat import usage_of
from sgl_engine.server.errors import code_of
from sgl_engine.server.ranking.documents import echo
from sgl_engine.server.ranking.fields import RerankBody
from sgl_engine.server.ranking.lists import ScoredList

JSON = dict[str, Any]


def rerank_answer(body: RerankBody, model: str, scored: ScoredList, report: JSON) -> JSON:
    """The answer to ``/rerank``: documents by their relevance, the most relevant first.

    Args:
        body: What the client wants.
        model: The name that the client gave.
        scored: The list.
        report: Of ``list_report``.
    """
    judged, own = scored.judged, body.sgl
    chosen = order(judged, min_score=own.min_score, top_n=body.top_n or None, unreadable="drop")
    results: list[JSON] = [{"index": index, "relevance_score": judged[index].score} for index in chosen]
    if body.return_documents is not False:
        for result in results:
            document = body.documents[result["index"]]
            result["document"] = echo(document, whole=body.return_documents is True)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": model,
        "usage": usage_of_lists([scored]),
        "results": results,
        "sgl": report,
    }


def score_answer(model: str, lists: Sequence[ScoredList], report: JSON) -> JSON:
    """The answer to ``/score``: one score for each pair, in their order; dropped ones are missing."""
    judged = [each for scored in lists for each in scored.judged]
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": index, "object": "score", "score": each.score}
            for index, each in enumerate(judged)
            if each.score is not None
        ],
        "usage": usage_of_lists(lists),
        "sgl": report,
    }


def list_report(lists: Sequence[ScoredList], runs: Sequence[RunReport], rule: ExitConfig) -> JSON:
    """What it took, and how it was decided.

    Args:
        lists: What came out.
        runs: Of all runs, those whose scores were overruled too.
        rule: How lists were settled.
    """
    judged = [each for scored in lists for each in scored.judged]
    routes = Counter(each.report.route for each in judged if each.report is not None)
    scores = [scored.score for scored in lists if scored.score is not None]
    small, large = sum(run.small_tflops for run in runs), sum(run.large_tflops for run in runs)
    alone = sum(each.report.large_alone_tflops for each in judged if each.report is not None)
    return {
        "route": "large" if routes["large"] else "small",
        "score": min(scores) if scores else None,
        "threshold": rule.threshold,
        "forced": rule.escalate != "auto",
        "documents": {"small": routes["small"], "large": routes["large"]},
        "small_tflops": small,
        "large_tflops": large,
        "large_alone_tflops": alone,
        "saved_fraction": 1 - (small + large) / alone if alone else 0.0,
        "unreadable": [
            {"index": index, "code": code_of(each.error), "message": str(each.error)}
            for index, each in enumerate(judged)
            if each.error is not None
        ],
        "reports": [
            None if each.report is None else json.loads(each.report.model_dump_json()) for each in judged
        ],
    }


def usage_of_lists(lists: Sequence[ScoredList]) -> JSON:
    """Tokens of the prompts by which the scores were found: of the model whose score it is."""
    usages = [usage_of(report) for scored in lists for report in map(_report, scored.judged) if report]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    details = Counter[str]()
    for usage in usages:
        details.update(usage["prompt_tokens_details"])
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt,
        "completion_tokens": 0,
        "prompt_tokens_details": {name: details[name] for name in ("cached_tokens", "image_tokens")},
    }


def _report(judged: Judged) -> RunReport | None:
    return judged.report


def headers_of_list(report: JSON) -> dict[str, str]:
    """Headers as of a chat; without ``x-sgl-score`` where the small model was not asked by itself."""
    headers = {"x-sgl-route": report["route"], "x-sgl-saved": f"{report['saved_fraction']:.4f}"}
    return headers if report["score"] is None else headers | {"x-sgl-score": f"{report['score']:.4f}"}
