"""What a model's own classes do around its decoder, asked of them instead of written again.

A method of the model runs with another object as ``self``, which answers as the model does but for the one
part that is replaced. Nothing of the model is changed, so other threads may run it meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def own_logits(model: Any, hidden: Tensor) -> Tensor:
    """The LM head as the model's own forward applies it, with its factors and caps.

    Args:
        model: The whole model, whose ``model`` gives hidden states.
        hidden: (B, N, hidden).

    Returns:
        Logits (B, N, vocab).
    """
    ids = hidden.new_zeros(hidden.shape[:2]).long()
    stand_in = _Instead(model, model=lambda *_, **__: _Hidden(hidden))
    logits: Tensor = type(model).forward(stand_in, input_ids=ids, return_dict=True).logits
    return logits


def forward_with(model: Any, inputs: Mapping[str, Any], **parts: Any) -> Tensor:
    """Logits of the model's own forward, with other functions in place of some of its parts."""
    logits: Tensor = type(model).forward(_Instead(model, **parts), **inputs, return_dict=True).logits
    return logits


def decoder_call(inner: Any, decoder: str, **inputs: Any) -> dict[str, Any]:
    """What a model hands to its decoder: masks, embeddings, further features.

    Args:
        inner: The part of the model that holds tower and decoder.
        decoder: The decoder's attribute there.
        inputs: What ``inner`` takes.
    """
    stand_in = _Instead(inner, **{decoder: _Called(getattr(inner, decoder))})
    try:
        type(inner).forward(stand_in, **inputs)
    except _CalledError as call:
        return call.settings
    raise AssertionError(f"{type(inner).__name__} does not call its {decoder}")


def as_the_tower(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vision inputs with pixels in the precision of the tower's weights; some towers do not cast them."""
    named: Iterator[tuple[str, Tensor]] = getattr(model, "model", model).named_parameters()
    tower = (each for name, each in named if not name.startswith(("language_model", "text_model")))
    dtype = next((each.dtype for each in tower if each.is_floating_point()), model.dtype)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


class _Instead:
    """Answers as another object does, but for what is given."""

    def __init__(self, of: Any, **given: Any) -> None:
        self.__dict__.update(given, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_of"], name)


class _Hidden:
    """The output of a decoder, of which only the hidden states are there."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key in {0, "last_hidden_state"} else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _CalledError(Exception):
    """Carries what a decoder was called with."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings


class _Called(_Instead):
    """A decoder that does not run."""

    def __init__(self, decoder: Any) -> None:
        super().__init__(decoder)

    def __call__(self, **settings: Any) -> Any:
        raise _CalledError(settings)
