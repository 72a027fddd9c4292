"""``check_pair``: everything that is known of a pair before its weights are downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_engine.config import EngineConfig, PictureConfig
from sgl_engine.errors import ConfigError, ModelError, RequestError, SGLError
from sgl_engine.planning.files import find_files
from sgl_engine.planning.placement import Machine, place
from sgl_engine.planning.result import ModelCheck, PairCheck, Placement
from sgl_engine.request import Request

if TYPE_CHECKING:
    from sgl_engine.planning.outline import Outline
    from sgl_engine.prompt.encoded import EncodedPrompt

PAGE = (1240, 1754)
"""Pixels of an A4 page at 150 dots per inch."""
QUESTION = "What is the total?"
ANSWER_TOKENS = 32


@dataclass(frozen=True, eq=False)
class _Model:
    """What was made of one model; outline and prompt are None where it does not run."""

    check: ModelCheck
    outline: Outline | None = None
    prompt: EncodedPrompt | None = None


def check_pair(
    small: str | Path,
    large: str | Path,
    config: EngineConfig | None = None,
    *,
    page: tuple[int, int] = PAGE,
    question: str = QUESTION,
    answer_tokens: int = ANSWER_TOKENS,
    revisions: tuple[str | None, str | None] = (None, None),
    trust_remote_code: bool = False,
    machine: Machine | None = None,
) -> PairCheck:
    """Says from small files alone whether two models run as a pair, what they need, and what they save.

    No weights are read or downloaded. Tokens, operations and caches are counted by the code that reports of
    real runs come from.

    Args:
        small: Folder or hub id of the small model; a folder need not hold weights.
        large: Folder or hub id of the large model.
        config: How the engine would be set up; None is ``EngineConfig()``. Its pruning does not count, as all
            presets are shown.
        page: (width, height) in pixels of the page that is asked about.
        question: What is asked.
        answer_tokens: Length of every answer, the token that ends it included.
        revisions: Branch, tag or commit of each model on the hub.
        trust_remote_code: Run code that comes with the models.
        machine: What they would run on; None is this machine.

    Raises:
        ConfigError: A page without pixels, or answers without tokens.
    """
    config = config or EngineConfig()
    if min(page) < 1 or answer_tokens < 1:
        raise ConfigError(
            f"The page is {page[0]} x {page[1]} pixels, the answers have {answer_tokens} tokens.",
            remedy="Use 1 or more of each.",
        )
    request = _request(page, question)
    models = [
        _look_at(name, revision, request, config, shown, answer_tokens, trust_remote_code=trust_remote_code)
        for name, revision, shown in zip(
            (small, large), revisions, (config.small_pictures, config.large_pictures), strict=True
        )
    ]
    found = PairCheck(
        runs=all(model.check.runs for model in models),
        page=page,
        answer_tokens=answer_tokens,
        small=models[0].check,
        large=models[1].check,
    )
    if not found.runs:
        return found
    return _together(found, models, config, machine or Machine.here())


def _together(found: PairCheck, models: list[_Model], config: EngineConfig, machine: Machine) -> PairCheck:
    from sgl_engine.planning.estimate import count_cascade

    (first, one), (second, other) = ((model.outline, model.prompt) for model in models)
    assert first is not None
    assert second is not None
    assert one is not None
    assert other is not None
    placement = place(found.small, found.large, machine, kept_bytes=config.reuse.max_bytes)
    try:
        cascade = count_cascade((first, second), (one, other), found.answer_tokens, config)
    except SGLError as error:  # such as an IncompatiblePairError
        return found.model_copy(update={"runs": False, "problem": str(error)})
    python = start_with(found.small.name, found.large.name, placement)
    return found.model_copy(update={"cascade": cascade, "placement": placement, "python": python})


def _request(page: tuple[int, int], question: str) -> Request:
    """A white page: how it is cut depends on its size alone."""
    from PIL import Image

    return Request.ask(question, Image.new("RGB", page, "white"))


def _look_at(
    name: str | Path,
    revision: str | None,
    request: Request,
    config: EngineConfig,
    pictures: PictureConfig,
    answer_tokens: int,
    *,
    trust_remote_code: bool,
) -> _Model:
    from sgl_engine.planning import outline

    seen: dict[str, Any] = {"name": str(name)}
    try:
        files = find_files(name, revision=revision)
        seen |= {"name": files.name, "revision": files.revision, "download_bytes": files.download_bytes}
        vlm = outline.outline(files, trust_remote_code=trust_remote_code)
        seen |= _of_the_model(vlm)
        prompt = vlm.encode(request, config.limits, pictures=pictures)
        seen |= _of_the_page(vlm, prompt, answer_tokens)
    except (ModelError, RequestError) as error:
        return _Model(ModelCheck(runs=False, problem=str(error), **seen))
    if files.problem is not None:
        return _Model(ModelCheck(runs=False, problem=str(files.problem), **seen))
    return _Model(ModelCheck(runs=True, **seen), vlm, prompt)


def _of_the_model(vlm: Outline) -> dict[str, Any]:
    from sgl_engine.passes.prefill import attention_of
    from sgl_engine.planning import outline

    stored = getattr(vlm.config, "dtype", None)
    stored = stored or getattr(vlm.text_model.config, "dtype", None)
    return {
        "architecture": vlm.config.model_type,
        "family": vlm.family.name,
        "attention": attention_of(vlm),
        "parameters": outline.parameters(vlm),
        "weights_bytes": outline.weights_bytes(vlm),
        "context_tokens": vlm.context_tokens,
        "stored_dtype": None if stored is None else str(stored).removeprefix("torch."),
        "notes": tuple(_notes(vlm)),
    }


def _of_the_page(vlm: Outline, prompt: EncodedPrompt, answer_tokens: int) -> dict[str, Any]:
    from sgl_engine.planning import outline
    from sgl_engine.planning.estimate import working_bytes

    return {
        "page_tokens": prompt.num_visual_tokens,
        "page_tiles": len(prompt.spans),
        "prompt_tokens": len(prompt),
        # The last token of an answer is not fed back.
        "cache_bytes": outline.cache_bytes(vlm, len(prompt) + answer_tokens - 1),
        "working_bytes": working_bytes(vlm, prompt, answer_tokens),
    }


def _notes(vlm: Outline) -> list[str]:
    """What is worth knowing of a model that runs."""
    from transformers.utils.import_utils import is_torchvision_available

    from sgl_engine.passes.prefill import takes_padding

    notes = []
    if vlm.family.needs_check:
        notes.append("No family of its own: the engine compares it with itself when it is loaded.")
    if not takes_padding(vlm):
        notes.append("Requests run one after the other, not side by side.")
    if vlm.shape.vision.layers == 0:
        notes.append("Its vision tower is not counted.")
    quantized = getattr(vlm.config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        notes.append(f"Its weights are stored quantized ({method}), so their memory is another one.")
    if not is_torchvision_available() and type(vlm.processor.image_processor).__name__.endswith("Pil"):
        notes.append("Pictures are read with Pillow, as torchvision is not installed.")
    return notes


def start_with(small: str, large: str, placement: Placement) -> str:
    """Writes the code that loads a pair as a placement says."""
    own = placement.small_settings, placement.large_settings
    common = {name: value for name, value in own[0].items() if own[1].get(name) == value}
    told = [f"{name}={value!r}" for name, value in common.items()]
    for whose, settings in zip(("small_settings", "large_settings"), own, strict=True):
        rest = {name: value for name, value in settings.items() if name not in common}
        if rest:
            written = ", ".join(f'"{name}": {value!r}' for name, value in rest.items())
            told.append(f"{whose}={{{written}}}")
    given = ", ".join([f'"{small}"', f'"{large}"', *told]).replace("'", '"')
    return f"from sgl_engine import SGLEngine\nengine = SGLEngine.from_pretrained({given})"
