"""The engine as a model of lmms-eval: answers in batches, scores of given answers, several rounds.

Needs the extra ``lmms``. Usage and throughput go into lmms-eval's own tables; each row of its sample log
holds the engine's report, under ``token_counts[0]["sgl"]``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.model_utils.usage_metrics import is_budget_exceeded, log_usage
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from sgl_engine import (
    ConfigError,
    EngineConfig,
    Escalate,
    ExitConfig,
    GenerationConfig,
    Request,
    RequestError,
    Response,
    RunReport,
    SGLEngine,
    pruning_preset,
)
from sgl_engine.demo import demo_engine
from sgl_engine.lmms.requests import chat_request, decoding, picture, unread


@dataclass
class ReportedTokens(TokenCounts):  # type: ignore[misc]  # lmms-eval is untyped
    """lmms-eval's token counts, of the model that answered, with the engine's report.

    Attributes:
        report: ``RunReport`` as JSON; or {"error": ...} of a request that failed.
    """

    report: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Is what a row of the sample log holds."""
        return {**super().to_dict(), "sgl": self.report}

    @classmethod
    def of(cls, report: RunReport) -> ReportedTokens:
        """Counts the tokens of the model whose answer it was."""
        by = report.route
        return cls(
            input_tokens=getattr(report, f"{by}_input_tokens"),
            output_tokens=getattr(report, f"{by}_output_tokens"),
            reasoning_tokens=getattr(report, f"{by}_reasoning_tokens") or None,
            report=report.model_dump(mode="json"),
        )


class SGLChatModel(lmms):  # type: ignore[misc]  # lmms-eval is untyped
    """The pair as a chat model: ``--model sgl``.

    Args:
        small: Folder or hub id; goes with ``large``. Without both, the bundled pair.
        large: Folder or hub id.
        retention: Of the visual tokens, as ``sgl ask --retention``.
        threshold: Score from which the small answer is kept, in [0, 1].
        escalate: "auto", "never" (the small model alone) or "always".
        calibration: File of ``sgl calibrate``, instead of a threshold.
        risk: Which of its target risks.
        max_new_tokens: Longest answer where a task sets no limit.
        device: Where both run.
        dtype: Of both.
        batch_size: Questions that are asked together.
        others: lmms-eval hands every model settings of its own; such as are not read are logged.

    Raises:
        ConfigError: A setting is wrong.
        ModelError: A model cannot be used.
    """

    is_simple = False

    def __init__(
        self,
        small: str | None = None,
        large: str | None = None,
        *,
        retention: str = "35%",
        threshold: float = ExitConfig().threshold,
        escalate: Escalate = "auto",
        calibration: str | None = None,
        risk: float | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        super().__init__()
        certified = None if calibration is None else Path(calibration)
        left = ExitConfig(threshold=threshold, escalate=escalate, calibration=certified, risk=risk)
        config = EngineConfig(pruning=pruning_preset(retention), exit=left)
        if max_new_tokens is not None:
            generation = GenerationConfig(max_new_tokens=max_new_tokens)
            config = config.model_copy(update={"generation": generation})
        if (small is None) != (large is None):
            raise ConfigError("Only one of the two models is named.", remedy="Name both, or neither.")
        settings: Any = {"device": device, "dtype": dtype}
        if small is None or large is None:
            self.engine = demo_engine(config, **settings)
        else:
            self.engine = SGLEngine.from_pretrained(small, large, config, **settings)
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 1  # "auto" has no meaning here
        if others:
            logger.warning(f"sgl: not read: {', '.join(sorted(others))}")

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answers, in batches; a request that fails has an empty answer, and its error in the log."""
        return self._answer([(self._read(each), each.args) for each in requests])

    def _read(self, instance: Any) -> Request | Exception:
        """Makes a request of an instance with (context, doc_to_messages, settings, doc_id, task, split)."""
        _, to_messages, settings, doc_id, task, split = instance.args
        try:
            return self._request(to_messages(self.task_dict[task][split][doc_id]), settings)
        except ConfigError as error:
            return error

    @staticmethod
    def _request(messages: Any, settings: Mapping[str, Any]) -> Request:
        if ignored := unread(settings):
            logger.debug(f"sgl: not read: {', '.join(ignored)}")
        return chat_request(ChatMessages(messages=messages).messages, settings)

    def _answer(self, asked: Sequence[tuple[Request | Exception, tuple[Any, ...]]]) -> list[Any]:
        results: list[Any] = []
        reports: list[RunReport] = []
        began = time.perf_counter()
        with tqdm(total=len(asked), disable=self.rank != 0, desc="Model Responding") as bar:
            for first in range(0, len(asked), self.batch_size):
                chunk = asked[first : first + self.batch_size]
                for outcome, (_, args) in zip(self._run([each for each, _ in chunk]), chunk, strict=True):
                    results.append(self._result(outcome, task=args[-2]))
                    if isinstance(outcome, Response):
                        reports.append(outcome.report)
                    self.cache_hook.add_partial("generate_until", args[:2], results[-1].text)
                    bar.update()
        _log(reports, time.perf_counter() - began)
        return results

    def _run(self, requests: Sequence[Request | Exception]) -> Iterator[Response | Exception]:
        """Runs those that are requests side by side; yields an outcome for each, in order."""
        good = [each for each in requests if isinstance(each, Request)]
        done = iter(self.engine.run_batch(good) if good and not is_budget_exceeded() else ())
        for each in requests:
            if isinstance(each, Request):
                yield next(done, ConfigError("The token budget is spent.", remedy="Raise it."))
            else:
                yield each

    def _result(self, outcome: Response | Exception, *, task: str) -> Any:
        if not isinstance(outcome, Response):
            if not isinstance(outcome, RequestError | ConfigError):
                raise outcome  # the engine is harmed, and not this request alone
            logger.warning(f"sgl: {outcome}")
            return GenerationResult("", ReportedTokens(report={"error": str(outcome)}))
        report = outcome.report
        for model in ("small", "large"):
            if getattr(report, f"{model}_input_tokens") is not None:
                log_usage(
                    getattr(report, f"{model}_model").name,
                    task,
                    getattr(report, f"{model}_input_tokens"),
                    getattr(report, f"{model}_output_tokens") or 0,
                    getattr(report, f"{model}_reasoning_tokens") or 0,
                )
        return GenerationResult(outcome.text, ReportedTokens.of(report))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Scores given answers; tasks come here by way of ``SGLScoringModel``."""
        return score(self, requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answers round by round, until the task ends it; one list of texts for each request."""
        found = []
        for instance in requests:
            _, to_messages, settings, doc_id, task, split = instance.args
            doc = self.task_dict[task][split][doc_id]
            texts: list[str] = []
            messages, info, over = to_messages(doc), None, False
            while not over:
                request = self._request(messages, settings)
                [outcome] = self._run([request])
                texts.append(self._result(outcome, task=task).text)
                payload = to_messages(
                    doc, round_idx=len(texts), previous_output=list(texts), previous_round_info=info
                )
                if not (isinstance(payload, tuple) and len(payload) == 4):
                    break  # the task has one round
                messages, over, _, info = payload
            found.append(texts)
        return found


class SGLScoringModel(SGLChatModel):
    """The pair for tasks that compare given answers, as seedbench_ppl: ``--model sgl --force_simple``.

    lmms-eval gives such tasks only to models with its older interface: texts and pictures apart.
    """

    is_simple = True

    def _read(self, instance: Any) -> Request | Exception:
        context, settings, to_visual, doc_id, task, split = instance.args
        visuals = to_visual(self.task_dict[task][split][doc_id]) or ()
        try:
            return Request.ask(context, *map(picture, visuals), **decoding(settings))
        except ConfigError as error:
            return error

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Is for the chat model.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{len(requests)} requests of several rounds, and the older interface.",
            remedy="Leave --force_simple out.",
        )


def score(model: SGLChatModel, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Measures how likely given answers are, all answers to one question at once.

    Args:
        model: Its engine scores.
        requests: With (context, answer or what makes it of the row, doc_to_visual, doc_id, task, split).

    Returns:
        For each, minus the natural log of its probability, and whether it is what the engine answers. Minus,
        because lmms-eval takes the *smallest* number for the best answer: its models return losses.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, instance in enumerate(requests):
        context, _, _, *where = instance.args
        groups.setdefault((context, *where[::-1]), []).append(place)
    found: dict[int, tuple[float, bool]] = {}
    for (context, split, task, doc_id), places in groups.items():
        doc = model.task_dict[task][split][doc_id]
        to_visual = requests[places[0]].args[2]
        request = Request.ask(context, *map(picture, to_visual(doc) or ()))
        wanted = [requests[place].args[1] for place in places]
        answers = [str(each(doc) if callable(each) else each).strip() for each in wanted]
        scores = model.engine.score_answers(request, answers)
        said = model.engine.run(request).text.strip()
        for place, answer, logprob in zip(places, answers, scores.logprobs, strict=True):
            found[place] = -logprob, answer == said
    return [found[place] for place in range(len(requests))]


def _log(reports: Sequence[RunReport], seconds: float) -> None:
    """Adds to lmms-eval's table of throughput."""
    tokens = sum(getattr(each, f"{each.route}_output_tokens") or 0 for each in reports)
    alone = sum(each.large_alone_tflops for each in reports)
    spent = sum(each.small_tflops + each.large_tflops for each in reports)
    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=tokens,
        avg_speed=tokens / seconds if seconds else 0.0,
        additional_metrics={
            "num_requests": len(reports),
            "escalated_share": sum(each.escalated for each in reports) / len(reports) if reports else 0.0,
            "tflops_share_of_large_alone": spent / alone if alone else 0.0,
        },
    )
