"""What a calibration holds for: this pair, these settings, prompts like these; and what differs from it.

Two kinds of things are told apart. The *binding* is what a request cannot change (models, pruning, scorer,
prompt format): an engine that differs refuses the calibration. The *conditions* are what each request brings
(sampling, tools, pictures): one that differs is not covered, and its small answer is not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from sgl_engine.config import GenerationConfig, PictureConfig, PruningConfig
from sgl_engine.exit.decision import DEFAULT_SCORER
from sgl_engine.request import Request

if TYPE_CHECKING:
    from sgl_engine.config import EngineConfig
    from sgl_engine.model.vlm import VLM

_VALUES_PER_TENSOR = 16
_PROBE_SIZE = (320, 240)
_VOLATILE = ("transformers_version", "dtype", "torch_dtype")  # and what begins with an underscore
_identities: WeakKeyDictionary[VLM, ModelIdentity] = WeakKeyDictionary()


class _BindingPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelIdentity(_BindingPart):
    """Which model, told by what it is and not by where it lies.

    Attributes:
        name: For people; a model that was moved is still the same.
        revision: Commit on the hub, for people: the fingerprint tells revisions apart.
        dtype: What it computes in.
        fingerprint: Hash of the configuration, of every tensor's name and shape, and of 16 values of each.
        prompt_format: Hash of the chat template and of the visual grids that a picture of 320 x 240 becomes.
    """

    name: str
    revision: str | None
    dtype: str
    fingerprint: str
    prompt_format: str


class Binding(_BindingPart):
    """What a request cannot change.

    Attributes:
        small: The small model.
        large: The large model.
        pruning: Where the large model is pruned.
        scorer: What computes the small model's score.
        consistency_keep_ratio: Visual tokens that its consistency pass sees.
        empty_answers: What becomes of empty answers; of files that do not say, they were scored.
        small_pictures: How large the small model sees pictures.
        large_pictures: How large the large model sees them.
        thoughts_counted: Whether thoughts are among the ``answer_tokens``, as in files that do not say. False
            where the small model thinks; where it does not, there are none.
    """

    small: ModelIdentity
    large: ModelIdentity
    pruning: PruningConfig
    scorer: str
    consistency_keep_ratio: float
    empty_answers: str = "score"
    small_pictures: PictureConfig = PictureConfig()
    large_pictures: PictureConfig = PictureConfig()
    thoughts_counted: bool = True

    def differences(self, other: Binding) -> list[str]:
        """Lists what is not as here, in phrases: "exit.scorer is 'confidence', not 'mean_product'"."""
        found = [each for size in ("small", "large") for each in self._of_model(size, other)]
        for name in PruningConfig.model_fields:
            mine, theirs = getattr(self.pruning, name), getattr(other.pruning, name)
            if mine != theirs:
                found.append(f"pruning.{name} is {theirs}, not {mine}")
        for name in ("scorer", "consistency_keep_ratio"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"exit.{name} is {theirs!r}, not {mine!r}")
        if other.empty_answers == "score" != self.empty_answers:  # the other way round is the stricter one
            found.append(f"exit.empty_answers is {other.empty_answers!r}, not {self.empty_answers!r}")
        return found

    def lengths_differ(self, other: Binding) -> list[str]:
        """Says whether answers are measured in another way here: for whoever goes by their length."""
        if self.thoughts_counted == other.thoughts_counted:
            return []
        counts = "counts" if self.thoughts_counted else "does not count"
        return [f"it {counts} the small model's thoughts among answer_tokens"]

    def _of_model(self, size: str, other: Binding) -> Iterator[str]:
        """Yields what is not as here in one of the models, or in how it sees pictures."""
        mine, theirs = getattr(self, size), getattr(other, size)
        if mine.fingerprint != theirs.fingerprint:
            yield f"the {size} model is {_label(theirs)}, not {_label(mine)}"
        elif mine.prompt_format != theirs.prompt_format:
            yield f"the {size} model's chat template or image processing is another one"
        if mine.dtype != theirs.dtype:
            yield f"the {size} model computes in {theirs.dtype}, not {mine.dtype}"
        own, given = getattr(self, f"{size}_pictures"), getattr(other, f"{size}_pictures")
        if own != given:
            yield f"{size}_pictures is {_set(given)}, not {_set(own)}"


class Conditions(_BindingPart):
    """What requests were like: plain text answers to one user turn, pictures first, and this.

    Attributes:
        generation: Length limit and sampling.
        system: Hash of the system prompt; None where there was none.
        min_images: Fewest pictures of a request.
        max_images: Most pictures of a request.
    """

    generation: GenerationConfig
    system: str | None = None
    min_images: int = 0
    max_images: int = 0


def bind(small: VLM, large: VLM, config: EngineConfig) -> Binding:
    """Describes what a calibration of this pair, so configured, is tied to; milliseconds, once per model."""
    return Binding(
        small=identify(small),
        large=identify(large),
        pruning=config.pruning,
        scorer=config.exit.scorer or DEFAULT_SCORER,
        consistency_keep_ratio=config.exit.consistency_keep_ratio,
        empty_answers=config.exit.empty_answers,
        small_pictures=config.small_pictures,
        large_pictures=config.large_pictures,
        thoughts_counted=small.thought_tags is None,  # files of models that do not think stay good
    )


def _set(pictures: PictureConfig) -> str:
    """The settings that say something, for messages."""
    given = pictures.model_dump(exclude_none=True)
    return ", ".join(f"{name}={value}" for name, value in given.items()) or "the processor's own size"


def identify(vlm: VLM) -> ModelIdentity:
    """Identifies a model; computed once for each, so weights that change under way go unnoticed."""
    if vlm not in _identities:
        with vlm.exclusive():
            _identities[vlm] = ModelIdentity(
                name=vlm.name,
                revision=vlm.revision,
                dtype=str(vlm.model.dtype).removeprefix("torch."),
                fingerprint=_fingerprint(vlm),
                prompt_format=_prompt_format(vlm),
            )
    return _identities[vlm]


def digest(*pieces: bytes | str) -> str:
    """Hashes the pieces, each set off from the next, into 16 hex digits of SHA-256."""
    total = hashlib.sha256()
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]


def _fingerprint(vlm: VLM) -> str:
    """Hashes the configuration, and of every tensor its name, shape and 16 values.

    So few tell two trainings apart, and cost next to nothing in a model of any size.
    """
    import torch

    pieces: list[bytes | str] = [json.dumps(_stable(vlm.config.to_dict()), sort_keys=True, default=str)]
    for name, tensor in sorted(vlm.model.state_dict().items()):
        pieces.append(f"{name} {tuple(tensor.shape)}")
        if tensor.numel() and tensor.device.type != "meta":
            flat = tensor.detach().reshape(-1)
            places = torch.linspace(0, len(flat) - 1, _VALUES_PER_TENSOR, dtype=torch.float64).long()
            values = flat[places.to(flat.device)].to(device="cpu", dtype=torch.float32)
            pieces.append(np.asarray(values).astype("<f4").tobytes())
    return digest(*pieces)


def _stable(config: Any) -> Any:
    """Drops what differs between two loads of the same files, in nested configurations too."""
    if isinstance(config, dict):
        return {
            name: _stable(value)
            for name, value in config.items()
            if not str(name).startswith("_") and name not in _VOLATILE
        }
    return [_stable(value) for value in config] if isinstance(config, list | tuple) else config


def _prompt_format(vlm: VLM) -> str:
    template = getattr(vlm.processor, "chat_template", None) or getattr(
        vlm.processor.tokenizer, "chat_template", None
    )
    prompt = vlm.encode(Request.ask("What is shown?", Image.new("RGB", _PROBE_SIZE)))
    # The template's text, and not the prompt: some templates write today's date into it.
    return digest(
        json.dumps(template, sort_keys=True, default=str),
        repr([(span.grid, span.row_gap) for span in prompt.spans]),
    )


def _label(model: ModelIdentity) -> str:
    return f"{model.name}{f'@{model.revision}' if model.revision else ''} ({model.fingerprint})"
