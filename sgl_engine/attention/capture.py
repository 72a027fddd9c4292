"""Records the attention that visual tokens receive, while the model runs as always.

Within the context, the text model's attention function is another one. It calls the original function for the
output, and then computes probabilities for the few query rows that count: those from the last visual token to
the end of the prompt (A^P), and one per generated token that is fed back (A^D). An S x S map is never built.
(SGL, section 3.2; rows as in its public code.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sgl_engine.attention.recorder import AttentionRecorder, Scoring
from sgl_engine.attention.rows import RowKeeper
from sgl_engine.prompt.encoded import EncodedPrompt, PromptBatch

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

_PREFIX = "sgl_capture_"

_UNPLACED = "sgl_unplaced_"

_RECORDER: ContextVar[AttentionRecorder | None] = ContextVar("sgl_attention_recorder", default=None)

_KEEPER: ContextVar[RowKeeper | None] = ContextVar("sgl_row_keeper", default=None)


@contextmanager
def capture_attention(
    vlm: VLM, prompt: EncodedPrompt | PromptBatch, *, first_row: int | None = None, cached_tokens: int = 0
) -> Iterator[AttentionRecorder]:
    """Records attention to visual tokens while ``vlm`` runs ``prompt`` and decodes, unpruned.

    Works for SDPA and eager attention, and leaves outputs as they are, bit for bit. On leaving, also by an
    exception, the model's attention setting is what it was.

    Args:
        vlm: The model that will run inside the context.
        prompt: The prompt, or the batch, that it will run.
        first_row: First prompt row that counts; None is the last visual token, as in the paper. For studies.
        cached_tokens: Positions that are in the cache already: len(prompt), to record what comes after it.
    """
    batch = prompt if isinstance(prompt, PromptBatch) else PromptBatch.of([prompt])
    first_rows = [
        max(each.visual_positions, default=len(each) - 1) if first_row is None else first_row
        for each in batch.prompts
    ]
    recorder = AttentionRecorder(vlm.num_layers, batch, first_rows, cached_tokens, _KEEPER.get())
    config = vlm.text_model.config
    original = config._attn_implementation  # noqa: SLF001  # transformers has no public setter for one config
    token = _RECORDER.set(recorder)
    try:
        # Where one recording stands in another, the model already runs the capturing twin: wrap it only once.
        config._attn_implementation = _register(  # noqa: SLF001
            original.removeprefix(_PREFIX), _PREFIX, _CapturingAttention
        )
        yield recorder
        # Rows that still wait hold the cache's keys. Add them now, so that the cache can be freed.
        recorder.catch_up()
    finally:
        config._attn_implementation = original  # noqa: SLF001
        _RECORDER.reset(token)


@contextmanager
def keep_rows(vlm: VLM) -> Iterator[RowKeeper]:
    """Keeps every row that ``capture_attention`` records of ``vlm`` within the context.

    For studies of one prompt: memory grows with layers x rows x visual tokens. The sums do not change.

    Args:
        vlm: The model that runs inside the context, on one prompt.
    """
    keeper = RowKeeper(vlm.num_layers)
    token = _KEEPER.set(keeper)
    try:
        yield keeper
    finally:
        _KEEPER.reset(token)


@contextmanager
def capture_hidden(vlm: VLM, layer: int, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """Collects the hidden states that enter a decoder layer, (B, N, hidden) per forward.

    For rankers that compare features.

    Args:
        vlm: The model that will run inside the context.
        layer: Index of the layer.
        stop: Whether the context ends with the first of them; what would come after it is not computed.
    """
    found: list[Tensor] = []

    def look(_: Any, args: tuple[Any, ...], __: dict[str, Any]) -> None:
        found.append(args[0].detach())
        if stop:
            raise _EnoughSeen

    hook = vlm.family.decoder_layers(vlm.model)[layer].register_forward_pre_hook(look, with_kwargs=True)
    try:
        with suppress(_EnoughSeen):
            yield found
    finally:
        hook.remove()


class _EnoughSeen(Exception):  # noqa: N818  # it is no error
    """Ends a forward pass of which only the beginning was wanted."""


def _register(implementation: str, prefix: str, twin: Callable[[str], Any]) -> str:
    """Makes a twin of an attention implementation known to transformers; returns its name.

    It is registered once and stays. Without a recorder, the capturing one only calls the original.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = prefix + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        # The mask function goes by the same name: for an unknown one, transformers silently builds no mask.
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
        AttentionInterface.register(name, twin(implementation))
    return name


class _CapturingAttention:
    """An attention function that calls the original one, then shows queries and keys to the recorder."""

    def __init__(self, implementation: str) -> None:
        self._implementation = implementation

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        attend = original_of(self._implementation, module)
        # The model's output is the original function's, bit for bit; recording only reads what went in.
        output: tuple[Tensor, Tensor | None] = attend(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
        recorder = _RECORDER.get()
        if recorder is not None:  # None where another thread runs the model meanwhile
            scoring = scoring_of(self._implementation, settings)
            recorder.record(module.layer_idx, query, key, value, attention_mask, scaling, scoring)
        return output


def original_of(implementation: str, module: Any) -> Any:
    """The function that an attention setting names, for one attention module."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Eager attention is not registered anywhere: every modelling file brings its own.
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get(implementation, eager)


def scoring_of(implementation: str, settings: Mapping[str, Any]) -> Scoring:
    """What beside scaling shapes the probabilities, of what an attention function is told.

    SDPA knows neither caps nor sinks: where a model runs it all the same, it attends without them.
    """
    if implementation.endswith("sdpa"):
        return Scoring()
    return Scoring(settings.get("softcap"), settings.get("s_aux"))


@contextmanager
def without_positions(vlm: VLM) -> Iterator[None]:
    """Keeps position ids from the text model's attention function, which layers go on to be given.

    Some decoders scale queries by them, and then hand them on.
    """
    config = vlm.text_model.config
    original = config._attn_implementation  # noqa: SLF001
    try:
        config._attn_implementation = _register(original, _UNPLACED, _unplaced)  # noqa: SLF001
        yield
    finally:
        config._attn_implementation = original  # noqa: SLF001


def _unplaced(implementation: str) -> Any:
    """An attention function that is told no positions."""

    def attend(module: Any, *args: Any, **settings: Any) -> Any:
        settings.pop("position_ids", None)
        return original_of(implementation, module)(module, *args, **settings)

    return attend
