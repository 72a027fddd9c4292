"""What decisions of the bundled pair are worth, and what they cost: ``python -m benchmarks.decisions``.

Every line is measured here and now: labels compared in three ways, what the order of a list does,
calibration (ECE, Brier; it draws docs/decisions-calibration.png), boxes against their controls, and processor
time against ``ChatSGL.invoke``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgl_engine import ImagePart, SGLEngine
from sgl_engine.calibration.decisions import (
    calibrate_boxes,
    calibrate_type,
    collect_boxes,
    collect_decisions,
)
from sgl_engine.decisions import (
    SCORED_TYPES,
    BoxAnswer,
    ChoiceAnswer,
    ChoiceQuestion,
    DecisionAnswer,
    DecisionConfig,
    ScoreAnswer,
    YesNoAnswer,
    brier,
    decide,
    expected_calibration_error,
    overlap,
    said,
)
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.demo.decisions import DEMO_DECISIONS, GeneratedDecision, generated_decisions

COLORS = "red green blue yellow purple orange pink black".split()
SHAPES = "circle square triangle diamond star cross".split()
NUMBERS = (18, 59, 89, 21, 46, 5, 7, 8, 9, 10)
CENTRE, WHOLE = (0.25, 0.25, 0.75, 0.75), (0.0, 0.0, 1.0, 1.0)


def distribution(answer: DecisionAnswer) -> list[float]:
    """Probabilities of all that could be answered."""
    if isinstance(answer, YesNoAnswer):
        return [answer.probability, 1 - answer.probability]
    assert not isinstance(answer, BoxAnswer)
    shares = answer.probabilities  # type: ignore[union-attr]
    return list(shares) if isinstance(answer, ScoreAnswer) else list(shares.values())  # type: ignore[union-attr]


def asked(
    engine: SGLEngine, cases: Sequence[GeneratedDecision], config: DecisionConfig
) -> list[tuple[GeneratedDecision, DecisionAnswer]]:
    """Answers to all cases, each about its own page."""
    found = []
    for case in cases:
        made = decide(engine, [ImagePart(case.image)], {"q": case.question}, config)
        found.append((case, made.answers["q"]))
    return found


def row(name: str, results: Sequence[tuple[GeneratedDecision, DecisionAnswer]]) -> str:
    """Accuracy, ECE and Brier of one way."""
    tops = [max(distribution(answer)) for _, answer in results]
    right = [said(answer) == case.truth for case, answer in results]
    return (
        f"| {name} | {len(results)} | {np.mean(right):.3f} | {np.mean(tops):.3f} | "
        f"{expected_calibration_error(tops, right):.3f} | {brier(tops, right):.3f} |"
    )


def labels(engine: SGLEngine, count: int) -> list[str]:
    """How labels are compared, with either model; and orders."""
    cases = list(generated_decisions("choice", count))
    lines = ["| labels | n | right | mean top | ECE | Brier |", "|---|---|---|---|---|---|"]
    for route in ("never", "always"):
        forced = engine.with_config(engine.config.escalating(route))  # type: ignore[arg-type]
        for way, orders in (("mean", 1), ("sum", 1), ("letters", 1), ("letters", 4)):
            config = DEMO_DECISIONS.model_copy(update={"labels": way, "permutations": orders})
            name = f"{'small' if route == 'never' else 'large'}, {way}, {orders} order(s)"
            lines.append(row(name, asked(forced, cases, config)))
    return lines


def calibration(engine: SGLEngine, count: int) -> list[str]:
    """What a calibration makes of probabilities and boxes, on the half that it was not fitted on."""
    lines = ["| type, model | n | right | by | ECE before, after | Brier before, after |"]
    lines.append("|---|---|---|---|---|---|")
    kept = ["", "| type | risk | threshold | exits | differ from the large model |", "|---|---|---|---|---|"]
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for kind in SCORED_TYPES:
        records = collect_decisions(engine, generated_decisions(kind, count), DEMO_DECISIONS)
        of_type = calibrate_type(records, [0.05, 0.1, 0.2], 0.9)
        ways = dict(each.split(" by ") for each in of_type.describe().split(", "))
        for model in ("small", "large"):
            told = [(getattr(each, model), each.right) for each in records[1::2]]
            right = [shares.index(max(shares)) == truth for shares, truth in told]
            tops = [
                [max(shares) for shares, _ in told],
                [max(of_type.calibrated(shares, model)) for shares, _ in told],  # type: ignore[arg-type]
            ]
            errors = ", ".join(f"{expected_calibration_error(each, right):.3f}" for each in tops)
            scores = ", ".join(f"{brier(each, right):.3f}" for each in tops)
            lines.append(
                f"| {kind}, {model} | {len(told)} | {np.mean(right):.3f} | {ways[model]} | {errors} | "
                f"{scores} |"
            )
            for when, each in zip(("before", "after"), tops, strict=True):
                panels.setdefault(kind, {})[f"{model}, {when}"] = each, [float(one) for one in right]
        kept += [
            f"| {kind} | {point.target_risk} | {point.threshold or 0:.3f} | {point.exit_share:.2f} | "
            f"{point.observed_risk:.3f} |"
            for point in of_type.points
        ]
    found = collect_boxes(engine, generated_decisions("box", count), DEMO_DECISIONS)
    of_boxes, fresh = calibrate_boxes(found[::2], DEMO_DECISIONS), found[1::2]
    overlaps = [each for _, each in fresh]
    before, after = ([c for c, _ in fresh], [of_boxes.expected(c) for c, _ in fresh])
    panels["box"] = {"small, before": (before, overlaps), "small, after": (after, overlaps)}
    even = float(np.mean([each for _, each in found[::2]]))
    kept += ["", "| confidence of a box | mean | mean overlap | squared distance to the overlap |"]
    kept += ["|---|---|---|---|"]
    for name, each in (("before", before), ("after", after), ("the mean for all", [even] * len(fresh))):
        off = np.mean(np.square(np.subtract(each, overlaps)))
        kept.append(f"| {name} | {np.mean(each):.3f} | {np.mean(overlaps):.3f} | {off:.3f} |")
    draw(panels, Path("docs") / "decisions-calibration.png")
    return lines + kept


def draw(panels: dict[str, dict[str, tuple[list[float], list[float]]]], path: Path) -> None:
    """Draws what was promised against what held, in five bins of equal size, a panel for each type."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(panels), 3.4), layout="constrained")
    for place, (kind, curves) in zip(
        figure.subplots(1, len(panels), sharex=True), panels.items(), strict=True
    ):
        place.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        for name, (promised, held) in curves.items():
            order = np.argsort(promised, kind="stable")
            bins = np.array_split(order, 5)
            x, y = ([np.mean(np.asarray(each)[one]) for one in bins] for each in (promised, held))
            color = "tab:blue" if name.startswith("small") else "tab:orange"
            place.plot(x, y, "o--" if "before" in name else "o-", color=color, markersize=3, label=name)
        place.set(
            title=kind,
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="overlap to expect" if kind == "box" else "probability",
        )
        place.set_aspect("equal")
    figure.axes[0].set_ylabel("right (box: overlap)")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def bias(engine: SGLEngine, count: int) -> list[str]:
    """What the order of a list does: choices of up to 8 labels, as listed and backwards, in 1 to 4 orders."""
    cases = [each for each in generated_decisions("choice", 2 * count) if labels_of(each) <= 8][:count]
    lines = [
        "| list, model | orders | right | changes when reversed | listed first, last | mean change of P |"
    ]
    lines.append("|---|---|---|---|---|---|")
    ways = (("lines", "instructed", "sum"), ("letters", "instructed", "letters"), ("none", "bare", "sum"))
    for name, form, way in ways:
        for route in ("never", "always"):
            forced = engine.with_config(engine.config.escalating(route))  # type: ignore[arg-type]
            for orders in (1, 2, 4) if name != "none" else (1,):
                config = DecisionConfig(form=form, labels=way, permutations=orders)  # type: ignore[arg-type]
                row = ordered(forced, cases, config)
                model = "small" if route == "never" else "large"
                lines.append(f"| {name}, {model} | {orders} | {row} |")
    return lines


def labels_of(case: GeneratedDecision) -> int:
    """How many labels a choice has."""
    assert isinstance(case.question, ChoiceQuestion)
    return len(case.question.labels)


def ordered(engine: SGLEngine, cases: Sequence[GeneratedDecision], config: DecisionConfig) -> str:
    """The cells of one row: accuracy, changed choices, mass of the first and last listed, mean change."""
    right, changed, ends, moved = [], [], [], []
    for case in cases:
        assert isinstance(case.question, ChoiceQuestion)
        labels = list(case.question.labels)
        both = {"as": case.question, "back": ChoiceQuestion(case.question.instructions, labels[::-1])}
        made = decide(engine, [ImagePart(case.image)], both, config).answers
        one, other = made["as"], made["back"]
        assert isinstance(one, ChoiceAnswer)
        assert isinstance(other, ChoiceAnswer)
        right += [one.choice == case.truth, other.choice == case.truth]
        changed.append(one.choice != other.choice)
        first, last = labels[0], labels[-1]
        ends.append(
            (
                one.probabilities[first] + other.probabilities[last],
                one.probabilities[last] + other.probabilities[first],
            )
        )
        moved.append(np.mean([abs(one.probabilities[each] - other.probabilities[each]) for each in labels]))
    (top, bottom) = np.mean(ends, axis=0) / 2
    return f"{np.mean(right):.3f} | {np.mean(changed):.3f} | {top:.3f}, {bottom:.3f} | {np.mean(moved):.3f}"


def boxes(engine: SGLEngine, count: int) -> list[str]:
    """Boxes of the map against what holds the answer, for several shares, with two controls."""
    cases = list(generated_decisions("box", count))
    lines = ["| box | mean IoU | IoU >= 0.25 | holds the evidence's centre |", "|---|---|---|---|"]

    def line(name: str, found: Sequence[Any]) -> str:
        evidence = [case.evidence or WHOLE for case in cases]
        overlaps = [overlap(box, truth) for box, truth in zip(found, evidence, strict=True)]
        inside = [
            box[0] <= (truth[0] + truth[2]) / 2 <= box[2] and box[1] <= (truth[1] + truth[3]) / 2 <= box[3]
            for box, truth in zip(found, evidence, strict=True)
        ]
        good = np.mean([each >= 0.25 for each in overlaps])
        return f"| {name} | {np.mean(overlaps):.3f} | {good:.3f} | {np.mean(inside):.3f} |"

    for share in (0.1, 0.2, 0.3, 0.5):
        config = DEMO_DECISIONS.model_copy(update={"box_share": share})
        answers = [answer for _, answer in asked(engine, cases, config)]
        found = [answer.box for answer in answers if isinstance(answer, BoxAnswer)]
        lines.append(line(f"map, share {share}", found))
    lines += [line("centre", [CENTRE] * count), line("whole picture", [WHOLE] * count)]
    return lines


def speed(engine: SGLEngine, repeats: int) -> list[str]:
    """Processor time of 20 questions about one picture against 20 calls, and of 100 labels against 10."""
    from langchain_core.messages import HumanMessage

    from langchain_sgl import ChatSGL, image_block

    texts = [f"What color is the shape with number {n}?" for n in NUMBERS]
    texts += [f"What shape has number {n}?" for n in NUMBERS]
    questions = {t: ChoiceQuestion(t, COLORS if "color" in t else SHAPES) for t in texts}
    state, block = [ImagePart(PICTURES / "scene.png")], image_block(PICTURES / "scene.png")
    many = [f"{color} {shape}" for color in COLORS for shape in SHAPES] + [str(n) for n in range(52)]
    lines = ["| what | processor ms | of |", "|---|---|---|"]
    for route in ("never", "auto", "always"):
        own = engine.with_config(engine.config.escalating(route))  # type: ignore[arg-type]
        chat = ChatSGL(engine=own)

        def calls(chat: ChatSGL = chat) -> None:
            for text in texts:
                chat.invoke([HumanMessage([{"type": "text", "text": text}, block])])

        together = best(lambda own=own: decide(own, state, questions, DEMO_DECISIONS), repeats)  # type: ignore[misc]
        one_by_one = best(calls, repeats)
        lines.append(f"| 20 questions, escalate {route} | {together:.0f} | |")
        lines.append(
            f"| 20 calls of ChatSGL, escalate {route} | {one_by_one:.0f} | {together / one_by_one:.2f} |"
        )
    never = engine.with_config(engine.config.escalating("never"))

    def choose(count: int) -> Callable[[], Any]:
        asked = {"q": ChoiceQuestion(texts[0], many[:count])}
        return lambda: decide(never, state, asked, DEMO_DECISIONS)

    few, all_of_them = best(choose(10), repeats), best(choose(100), repeats)
    lines.append(f"| 10 labels | {few:.0f} | |")
    lines.append(f"| 100 labels | {all_of_them:.0f} | {all_of_them / few:.2f} |")
    return lines


def best(run: Callable[[], Any], repeats: int) -> float:
    """The least processor time of several runs, in ms; the first run is not counted."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - began))
    return min(times)


PARTS: dict[str, tuple[Callable[[SGLEngine, int], list[str]], int]] = {
    "labels": (labels, 60),
    "bias": (bias, 40),
    "calibration": (calibration, 200),
    "boxes": (boxes, 60),
    "speed": (speed, 3),
}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--count", type=int, help="questions, or repeats of what is timed")
    parser.add_argument("--out", type=Path, help="also write the lines here, as JSON")
    given = parser.parse_args()
    engine, found = demo_engine(), {}
    for name in given.parts or PARTS:
        measure, count = PARTS[name]
        found[name] = measure(engine, given.count or count)
        print(f"\n## {name}\n", *found[name], sep="\n", flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
