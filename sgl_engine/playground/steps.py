"""Asks the engine what the page wants to know, and tells the answers as events, piece by piece.

    small   the small model's answer, its score, and where it looked
    large   what the large model answers, shown so much of the picture, whatever the score
    ranker  the same with another way of choosing what it is shown
    pair    the pair as it runs at these settings, and the large model alone: measured, with nothing known
    tokens  where the small model looked for each token of its answer

All but "pair" share what the engine knows of the picture, so that a slider that moves runs little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeAlias

from PIL import Image

from sgl_engine import (
    Decoding,
    EngineConfig,
    Escalate,
    ExitConfig,
    ExitDecision,
    Price,
    PruningConfig,
    Request,
    Response,
    SGLEngine,
    TextDelta,
)
from sgl_engine.attention import ImportanceMap
from sgl_engine.decoding import AnswerTask
from sgl_engine.explain import focus_box
from sgl_engine.passes import run_large_pass
from sgl_engine.playground import rasters
from sgl_engine.playground.figures import AloneRun, figure_rows
from sgl_engine.playground.pictures import cover, open_picture
from sgl_engine.playground.state import AskBody, PageState, Part
from sgl_engine.prompt import EncodedPrompt
from sgl_engine.pruning import PruningPlan, keep_everything
from sgl_engine.rankers import RANKERS, RankingCase

Event: TypeAlias = dict[str, Any]
Step: TypeAlias = "Callable[[Visit], Iterator[Event]]"

MAX_TOKENS: Final = 64
"""Answer tokens with a map of their own."""


def config_at(state: PageState, config: EngineConfig, num_layers: int) -> EngineConfig:
    """The engine's configuration with what the page is set to."""
    # Half a layer more, so that rounding down gives K itself.
    fraction = min((min(state.k, num_layers) + 0.5) / num_layers, 1 - 1e-9)
    pruning = PruningConfig(layer_fraction=fraction, keep_ratio=state.keep, tiles=config.pruning.tiles)
    leaving = ExitConfig(**{**config.exit.model_dump(), "threshold": state.t})
    return config.model_copy(update={"pruning": pruning, "exit": leaving})


@dataclass(frozen=True)
class Visit:
    """One question of a visitor's.

    Attributes:
        engine: At the page's settings.
        request: The question, with the picture as it was covered.
        body: What the page sent.
    """

    engine: SGLEngine
    request: Request
    body: AskBody

    def events(
        self, escalate: Escalate, request: Request, config: EngineConfig | None = None
    ) -> Iterator[Any]:
        """The engine's own, on one route or as the score decides."""
        config = config or self.engine.config
        return self.engine.with_config(config.escalating(escalate)).stream(request)

    @cached_property
    def large_prompt(self) -> EncodedPrompt:
        """What the large model reads."""
        config = self.engine.config
        return self.engine.large.encode(self.request, config.limits, config.reuse, config.large_pictures)

    @cached_property
    def case(self) -> RankingCase:
        """The small model's pass row by row, for rankers and for the maps of single tokens."""
        return RankingCase.of(self.engine, self.request)

    def on_large(self, importance: ImportanceMap) -> ImportanceMap:
        """A map on the large model's visual tokens."""
        return importance.resample(self.large_prompt.spans)


def ask(engine: SGLEngine, body: AskBody, cancel: threading.Event) -> Iterator[Event]:
    """Reads the picture, and returns the events that are to come.

    Raises:
        RequestError: The picture or a setting is bad.
    """
    picture = open_picture(body.state.picture, body.data, engine.config.limits)
    request = replace(
        Request.ask(body.state.q, _covered(picture, body.state)),
        cancel=cancel,
        cache_salt=body.salt,
        logprobs=True,
    )
    at = engine.with_config(config_at(body.state, engine.config, engine.large.num_layers))
    return _parts(Visit(at, request, body))


def _covered(picture: Image.Image, state: PageState) -> Image.Image:
    return cover(picture, state.cover) if state.cover else picture


def _parts(visit: Visit) -> Iterator[Event]:
    for part, step in STEPS.items():
        if part in visit.body.parts:
            yield from step(visit)
            yield {"event": "done", "part": part}


def small(visit: Visit) -> Iterator[Event]:
    """The small answer, with its score, its tokens, the heat, and when each token's turn comes."""
    for event in visit.events("never", visit.request):
        if isinstance(event, ExitDecision):
            yield {"event": "score", "score": event.score}
        elif isinstance(event, TextDelta):
            yield {"event": "small_text", "text": event.text}
        elif isinstance(event, Response):
            assert event.importance is not None, "the request holds a picture"
            report = event.report
            yield {
                "event": "small",
                "text": event.text,
                "scorer": report.scorer,
                "confidence": report.confidence,
                "tokens": [token.token for token in event.tokens[:MAX_TOKENS]],
                "visual_tokens": visit.large_prompt.num_visual_tokens,
                "heat": rasters.heat(event.importance).as_json(),
                "turns": rasters.turns(visit.on_large(event.importance)).as_json(),
                "focus": focus_box(event.importance, margin=0.0),
            }


def large(visit: Visit) -> Iterator[Event]:
    """The large answer, and what it was shown."""
    for event in visit.events("always", visit.request):
        if isinstance(event, TextDelta):
            yield {"event": "large_text", "text": event.text}
        elif isinstance(event, Response):
            assert event.importance is not None, "the request holds a picture"
            assert event.plan is not None, "it always escalates"
            yield {
                "event": "large",
                "text": event.text,
                "agrees": event.report.large_agreed,
                **_shown(visit, visit.on_large(event.importance), event.plan),
            }


def ranker(visit: Visit) -> Iterator[Event]:
    """What another ranker keeps at the same settings, and what the large model makes of it."""
    name = visit.body.state.ranker
    if name not in RANKERS:
        return
    importance = visit.on_large(RANKERS[name](visit.case))
    plan = visit.engine.plan(visit.large_prompt, importance)
    result = _large_pass(visit, plan)
    yield {
        "event": "ranker",
        "name": name,
        "text": result.generation.text,
        **_shown(visit, importance, plan),
    }


def _shown(visit: Visit, importance: ImportanceMap, plan: PruningPlan) -> Event:
    return {
        "layer": plan.layer,
        "layers": visit.engine.large.num_layers,
        "kept_tokens": plan.kept_visual_tokens,
        "visual_tokens": plan.visual_tokens,
        "kept": rasters.kept(importance, plan).as_json(),
    }


def pair(visit: Visit) -> Iterator[Event]:
    """The pair and the large model alone, one after the other, both as on a picture never seen."""
    state, engine = visit.body.state, visit.engine
    prices = Price.per_hour(state.small_hour), Price.per_hour(state.large_hour)
    names = engine.small.name, engine.large.name
    config = engine.config.without_reuse().model_copy(
        update={"prices": dict(zip(names, prices, strict=True))}
    )
    for event in visit.events("auto", replace(visit.request, logprobs=False), config):
        if isinstance(event, Response):
            alone = visit.body.alone or measure_alone(visit)
            yield {
                "event": "pair",
                "text": event.text,
                "report": event.report.model_dump(mode="json"),
                "alone": alone.model_dump(),
                "rows": [row.model_dump() for row in figure_rows(event.report, alone, prices)],
            }


def measure_alone(visit: Visit) -> AloneRun:
    """Asks the large model by itself: nothing pruned, nothing known."""
    config, vlm = visit.engine.config, visit.engine.large
    started = time.perf_counter()
    vlm.encode(visit.request, config.limits, config.without_reuse().reuse, config.large_pictures)
    reading_ms = 1e3 * (time.perf_counter() - started)
    result = _large_pass(visit, keep_everything(visit.large_prompt))
    return AloneRun(text=result.generation.text, ms=reading_ms + sum(result.stage_ms.values()))


def _large_pass(visit: Visit, plan: PruningPlan) -> Any:
    """Runs the large model under a plan; what it waits for others does not count as its time."""
    vlm, wish = visit.engine.large, Decoding(cancel=visit.request.cancel)
    task = AnswerTask(visit.large_prompt, visit.engine.config.generation.max_new_tokens, wish)
    with vlm.exclusive():
        return run_large_pass(vlm, task, plan)


def tokens(visit: Visit) -> Iterator[Event]:
    """The heat of each answer token: the row of the attention that it was chosen from."""
    rows = visit.case.rows
    # The prompt's last row chooses the first token, each token's own row the next one.
    count = min(rows.plain.shape[1] - rows.prompt_rows + 1, MAX_TOKENS)
    maps = [
        visit.case.small_map(rows.plain[:, rows.prompt_rows - 1 + number].sum(dim=0))
        for number in range(count)
    ]
    yield {"event": "tokens", "heats": [rasters.heat(each).as_json() for each in maps]}


STEPS: Final[dict[Part, Step]] = {
    "small": small,
    "large": large,
    "ranker": ranker,
    "pair": pair,
    "tokens": tokens,
}
"""In the order in which they run."""
