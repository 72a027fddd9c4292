"""One row through every system: both models alone, the engine at each operating point, every ranker.

What the engine does is measured by running it, so costs are those that its users pay. Rankers only differ in
which tokens the large model keeps; their passes run side by side, and so have an answer but no time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgl_engine import (
    VLM,
    EngineConfig,
    PictureConfig,
    PruningConfig,
    Request,
    Response,
    SGLEngine,
    SGLError,
)
from sgl_engine.attention import ImportanceMap
from sgl_engine.decoding import AnswerTask, draft_tokens, resolve
from sgl_engine.evaluation import evidence
from sgl_engine.evaluation.dataset import DataSample
from sgl_engine.evaluation.metrics import JUDGED, METRICS
from sgl_engine.evaluation.records import BenchAnswer, BenchOutcome, DataRow
from sgl_engine.evaluation.studies import STUDIES
from sgl_engine.passes import (
    LargePassResult,
    SmallPass,
    SmallPassResult,
    run_large_batch,
    run_large_pass,
    run_small,
)
from sgl_engine.prompt import MAX_ROWS, resolve_images
from sgl_engine.pruning import PruningPlan, keep_everything
from sgl_engine.rankers import RANKERS, RankingCase
from sgl_engine.report import answer_flops, average_retention, seen_patches


@dataclass(frozen=True)
class Systems:
    """What takes part.

    Attributes:
        points: Operating points by name.
        rankers: Names in ``RANKERS``.
        seed: For rankers that draw lots; each row has its own from there on.
        max_rows: Passes of rankers side by side at most.
        studies: Whether studies measure more on every row.
        compared: Rankers and studies take part in so many rows only, the first; None: in all.
    """

    points: Mapping[str, PruningConfig]
    rankers: tuple[str, ...]
    seed: int = 0
    max_rows: int = MAX_ROWS
    studies: bool = True
    compared: int | None = None

    def compares(self, index: int) -> bool:
        """Whether rankers and studies take part in this row."""
        return self.compared is None or index < self.compared


def measure(engine: SGLEngine, sample: DataSample, systems: Systems) -> BenchOutcome:
    """Asks every system one row.

    Raises:
        SGLError: The row, or a ranker on it, is bad.
    """
    row = sample.row
    request = Request.ask(row.question, *sample.images, max_new_tokens=row.max_new_tokens)
    request = resolve_images(request, engine.config.limits)
    small, large, first, guided = _timed(engine, request, row, systems)
    outcome = BenchOutcome(
        small=small.model_copy(update={"text": first.text, "value": _value(first.text, row)}),
        large=large,
        score=first.report.score,
        parts=first.report.score_parts,
        small_pass_tflops=first.report.small_tflops,
        small_pass_ms=first.report.stage_ms["total"],
        guided=guided,
        pruned={},
    )
    if not systems.rankers and not systems.studies:
        return outcome
    if not systems.compares(row.index):
        config = engine.config
        prompt = engine.large.encode(request, config.limits, pictures=config.large_pictures)
        study = {evidence.STUDY: evidence.about_prompt(prompt, {}, sample.images, None)}
        return outcome.model_copy(update={"study": study, "compared": False})
    case = RankingCase.of(engine, request, seed=systems.seed + row.index)
    plans = plans_by(engine, case, _importances(case, systems.rankers), systems)
    pruned = answer_by(engine, case, plans, row, systems)
    outcome = outcome.model_copy(update={"parts": dict(case.small.parts), "pruned": pruned})
    if not systems.studies:
        return outcome
    return outcome.model_copy(
        update={
            "study": {
                evidence.STUDY: evidence.about_prompt(
                    case.large_prompt, plans, sample.images, sample.evidence
                )
            }
            | {name: study(case, outcome) for name, study in STUDIES.items()}
        }
    )


def _timed(
    engine: SGLEngine, request: Request, row: DataRow, systems: Systems
) -> tuple[BenchAnswer, BenchAnswer, Response, dict[str, BenchAnswer]]:
    """Runs all that is timed: both models alone, the small pass, the guided large passes.

    Each of them as on a picture that nobody has asked about before. The small pass of an escalation is that
    of the early exit, so it runs once.
    """
    config = engine.config.without_reuse()
    small = alone(engine.small, request, row, config, config.small_pictures)
    large = alone(engine.large, request, row, config, config.large_pictures)
    with SGLEngine(engine.small, engine.large, config, small_pass=Once(engine.small_pass)) as asked:
        first = asked.with_config(config.escalating("never")).run(request)
        guided = {name: _guided(asked, request, row, point) for name, point in systems.points.items()}
    return small, large, first, guided


class Once:
    """Runs the small model on one question, and remembers what came of it for every later run.

    Args:
        small_pass: Runs it.
    """

    def __init__(self, small_pass: SmallPass = run_small) -> None:
        self._small_pass = small_pass
        self._results: Any = None

    def __call__(self, *given: Any, **settings: Any) -> Any:
        """What ``small_pass`` has returned the first time."""
        if self._results is None:
            self._results = self._small_pass(*given, **settings)
        return self._results

    @property
    def result(self) -> SmallPassResult | None:
        """What came of it; None where it has not run, or failed."""
        [found] = self._results or [None]
        return found if isinstance(found, SmallPassResult) else None


def at(engine: SGLEngine, point: PruningConfig) -> SGLEngine:
    """Returns the engine at another operating point."""
    return engine.with_config(engine.config.model_copy(update={"pruning": point}))


def _value(text: str, row: DataRow) -> float:
    return math.nan if row.metric == JUDGED else METRICS[row.metric](text, row.answers)


def alone(
    vlm: VLM, request: Request, row: DataRow, config: EngineConfig, pictures: PictureConfig
) -> BenchAnswer:
    """Asks a model on its own: no map, no score, nothing pruned; all else as the engine would ask it."""
    started = time.perf_counter()
    prompt = vlm.encode(request, config.limits, pictures=pictures)
    encoded = time.perf_counter()
    task = AnswerTask(prompt, *resolve(request, config.generation))
    result = run_large_pass(vlm, task, keep_everything(prompt))
    return BenchAnswer(
        text=result.generation.text,
        value=_value(result.generation.text, row),
        tokens=len(result.generation),
        tflops=_tflops(vlm, task, result),
        ms=1e3 * (encoded - started) + sum(result.stage_ms.values()),
    )


def _tflops(vlm: VLM, task: AnswerTask, result: LargePassResult) -> float:
    flops = answer_flops(
        vlm.shape,
        patches=seen_patches(vlm, task.prompt, result.plan),
        prompt_tokens=len(task.prompt),
        output_tokens=len(result.generation),
        plan=result.plan,
    )
    return flops / 1e12


def _guided(engine: SGLEngine, request: Request, row: DataRow, point: PruningConfig) -> BenchAnswer:
    """Measures the large model's part of a run that escalates."""
    pruning = at(engine, point)
    response = pruning.with_config(pruning.config.escalating("always")).run(request)
    report = response.report
    assert report.large_output_tokens is not None, "it always escalates"
    return BenchAnswer(
        text=response.text,
        value=_value(response.text, row),
        tokens=report.large_output_tokens,
        tflops=report.large_tflops,
        ms=sum(ms for stage, ms in report.stage_ms.items() if stage.endswith("_large")),
        retention=1.0 if report.average_retention is None else report.average_retention,
    )


def _importances(case: RankingCase, rankers: Sequence[str]) -> dict[str, ImportanceMap]:
    found = {}
    for name in rankers:
        try:
            found[name] = RANKERS[name](case)
        except SGLError as error:
            raise type(error)(f"Ranker {name}: {error.problem}", remedy=error.remedy) from error
    return found


def plans_by(
    engine: SGLEngine, case: RankingCase, importances: Mapping[str, ImportanceMap], systems: Systems
) -> dict[str, dict[str, PruningPlan]]:
    """Plans what each map keeps at every operating point; maps may be of another model's visual tokens.

    Raises:
        IncompatiblePairError: A map cannot be carried onto the large model's tokens.
    """
    return {
        name: {
            point: at(engine, pruning).plan(case.large_prompt, importance)
            for point, pruning in systems.points.items()
        }
        for name, importance in importances.items()
    }


def answer_by(
    engine: SGLEngine, case: RankingCase, plans: evidence.Plans, row: DataRow, systems: Systems
) -> dict[str, dict[str, BenchAnswer]]:
    """Asks the large model under every plan.

    Args:
        engine: Its large model answers.
        case: What it is asked.
        plans: Ranker -> operating point -> plan.
        row: Says what is right.
        systems: How many passes run side by side.

    Returns:
        The same names -> answer, without a time: the passes ran side by side.

    Raises:
        RequestError: The row is bad.
    """
    flat = [plan for points in plans.values() for plan in points.values()]
    answers = iter(_run(engine, case, flat, row, systems.max_rows))
    return {name: {point: next(answers) for point in points} for name, points in plans.items()}


def _run(
    engine: SGLEngine, case: RankingCase, plans: Sequence[PruningPlan], row: DataRow, max_rows: int
) -> list[BenchAnswer]:
    """Runs the passes side by side; rankers that chose the same tokens share one.

    What the unpruned model says is the draft of all of them: it saves steps, and changes no answer.
    """
    different = {_key(plan): plan for plan in plans}
    draft = draft_tokens(engine.large, engine.large, case.large.generation.token_ids.tolist())
    task = replace(case.task, draft=draft)
    results = run_large_batch(
        engine.large,
        [task] * len(different),
        list(different.values()),
        max_rows=max_rows,
        reuse=engine.config.reuse,
    )
    answers = {}
    for key, result in zip(different, results, strict=True):
        if isinstance(result, SGLError):
            raise result
        answers[key] = BenchAnswer(
            text=result.generation.text,
            value=_value(result.generation.text, row),
            tokens=len(result.generation),
            tflops=_tflops(engine.large, task, result),
            retention=average_retention(result.plan, engine.large.num_layers),
        )
    return [answers[_key(plan)] for plan in plans]


def _key(plan: PruningPlan) -> tuple[int, tuple[int, ...], tuple[int, ...] | None]:
    return plan.layer, tuple(plan.keep.tolist()), plan.chosen_tiles
