"""What is known of a pair before its weights are there; ``model_dump(mode="json")`` is plain JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION: Literal["1"] = "1"


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelCheck(_Result):
    """One model; what could not be found out is None.

    Attributes:
        name: Path or hub id.
        revision: Commit on the hub.
        runs: Whether the engine takes it, as far as its small files tell.
        problem: Why it does not, with the remedy.
        notes: What is worth knowing, a sentence each.
        architecture: ``config.model_type``.
        family: The engine's name for it; "generic" is checked by running it when it is loaded.
        attention: Which of transformers' implementations it will run.
        stored_dtype: Of the checkpoint, by its configuration.
        download_bytes: Weights on the hub, or those that an index in the folder names.
        parameters: Values of all weights; shared ones count once.
        weights_bytes: Memory of the weights by dtype; "int8" is ``quantization="int8"`` over 16 bits.
        context_tokens: Longest sequence.
        page_tokens: Visual tokens of the page.
        page_tiles: Tiles that it is cut into, the small picture of the whole among them.
        prompt_tokens: The page and the question together.
        cache_bytes: Memory of keys and values by dtype: the prompt and an answer, unpruned.
        working_bytes: The same of what one layer computes at once, at most.
    """

    name: str
    revision: str | None = None
    runs: bool
    problem: str | None = None
    notes: tuple[str, ...] = ()
    architecture: str | None = None
    family: str | None = None
    attention: str | None = None
    stored_dtype: str | None = None
    download_bytes: int | None = None
    parameters: int | None = None
    weights_bytes: dict[str, int] | None = None
    context_tokens: int | None = None
    page_tokens: int | None = None
    page_tiles: int | None = None
    prompt_tokens: int | None = None
    cache_bytes: dict[str, int] | None = None
    working_bytes: dict[str, int] | None = None


class Saving(_Result):
    """What a cascade saves where it escalates so often.

    Attributes:
        escalated_fraction: Of the questions.
        saved_fraction: Of the operations of the large model alone, as in ``RunReport``; negative where the
            cascade costs more.
    """

    escalated_fraction: float
    saved_fraction: float


class PresetCheck(_Result):
    """One of ``PRESETS`` on the page.

    Attributes:
        retention: Its name.
        layer: First pruned layer.
        kept_visual_tokens: What the large model sees from there on.
        average_retention: Visual tokens seen, averaged over its layers.
        large_tflops: 1e12 operations of the large model, where nothing of the small answer could be taken
            over.
        accepted_tflops: The same where all of it was.
        savings: At several rates of escalation, with ``large_tflops``.
    """

    retention: str
    layer: int
    kept_visual_tokens: int
    average_retention: float
    large_tflops: float
    accepted_tflops: float
    savings: tuple[Saving, ...]


class CascadeCheck(_Result):
    """Both models together, on the page.

    Attributes:
        small_tflops: 1e12 operations of the small model: answer, attention, consistency pass if it runs.
        large_alone_tflops: The large model alone.
        cost_ratio: The first over the second.
        presets: With pruning.
    """

    small_tflops: float
    large_alone_tflops: float
    cost_ratio: float
    presets: tuple[PresetCheck, ...]


class Placement(_Result):
    """How the pair would be loaded on this machine.

    Attributes:
        devices: What there is, in words.
        fits: Whether the pair fits at all.
        reason: Why so, a sentence.
        needed_bytes: Weights, caches, kept pictures and work of both models, as placed.
        available_bytes: Free memory of the devices that are used.
        missing: Packages that this needs and that are not installed.
        small_settings: ``LoadSettings`` of the small model.
        large_settings: Of the large one.
    """

    devices: tuple[str, ...]
    fits: bool
    reason: str
    needed_bytes: int
    available_bytes: int
    missing: tuple[str, ...] = ()
    small_settings: dict[str, Any]
    large_settings: dict[str, Any]


class PairCheck(_Result):
    """What ``check_pair`` found.

    Attributes:
        schema_version: Version of this schema.
        runs: Whether both models run, together.
        problem: Why they do not run together, though each runs.
        page: (width, height) in pixels of the page that is asked about.
        answer_tokens: Length of the answers.
        small: The small model.
        large: The large model.
        cascade: Operations; None where one of the models does not run.
        placement: None for the same reason.
        python: Code to start with.
    """

    schema_version: Literal["1"] = SCHEMA_VERSION
    runs: bool
    problem: str | None = None
    page: tuple[int, int]
    answer_tokens: int
    small: ModelCheck
    large: ModelCheck
    cascade: CascadeCheck | None = None
    placement: Placement | None = None
    python: str | None = None
