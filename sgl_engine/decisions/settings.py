"""How decisions are made: ``DecisionConfig``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from sgl_engine.config import Fraction

LabelWay: TypeAlias = Literal["mean", "sum", "letters"]
BoxWay: TypeAlias = Literal["map", "generated"]


class DecisionConfig(BaseModel):
    """How questions are put, and what is made of the answers.

    Attributes:
        form: How questions become prompts: "instructed" for models that follow instructions, "bare" for
            models that were trained on bare questions, or a ``PromptForm``.
        labels: How the labels of a choice are compared: "sum" by the probability of the whole label, its end
            included; "mean" by the mean log-probability of its tokens and its end, where long labels lose;
            "letters" by the probability of a letter that stands before it in the prompt.
        permutations: In so many orders a prompt lists what can be answered; probabilities are averaged. Forms
            that list nothing ask once.
        whole_from: From so many unsure questions of one call on, the large model sees all of the pictures,
            once for all of them, instead of what each question needs, for each of them.
        boxes: "map" takes a box from where the small model looked; "generated" asks for coordinates, which
            takes a model that has learnt to point.
        box_share: How much of what stands out in the map the box holds.
        box_margin: Added around it, in fractions of the picture's sides.
        calibration: A file of ``sgl calibrate --task decision``.
        risk: Which of the file's target risks; None is the smallest that could be certified.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    form: Any = "instructed"
    labels: LabelWay = "sum"
    permutations: Annotated[int, Field(ge=1, le=24)] = 1
    whole_from: Annotated[int, Field(ge=1)] = 3
    boxes: BoxWay = "map"
    box_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    box_margin: Fraction = 0.02
    calibration: Path | None = None
    risk: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
