"""VLM = model + processor + family: loading, encoding, embedding, and one step of the decoder.

The vision tower runs in ``embed`` and nowhere else, so that a caller decides how often it runs. ``forward``
is the decoder alone, on embeddings and explicit positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from transformers import DynamicCache

from sgl_engine.chat.template import with_template
from sgl_engine.config import NO_REUSE, LimitsConfig, PictureConfig, ReuseConfig
from sgl_engine.families import Family, find_family
from sgl_engine.families.measured import measured
from sgl_engine.families.shape import ModelShape
from sgl_engine.model.encoding import check_features, encode, resized, shrink_factor, wrap_inputs
from sgl_engine.model.loading import load
from sgl_engine.model.lock import ModelLock
from sgl_engine.model.settings import LoadSettings
from sgl_engine.model.store import ReuseStore
from sgl_engine.model.thoughts import SpeltTags, ThoughtTags, frame_tokens, thought_tags
from sgl_engine.prompt.encoded import EncodedPrompt, PromptBatch
from sgl_engine.request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class VLM:
    """A vision-language model, ready to be run step by step, from any thread: one step at a time.

    Args:
        model: A model of a supported family; put into evaluation mode.
        processor: Its processor.
        name: What reports call it.
        revision: Commit on the hub, for reports.

    Attributes:
        is_checked: False for an architecture without a family of its own, until an engine has seen this
            model captured and pruned exactly (``sgl_engine.passes.exactness``).
        store: What it has computed of pictures, for requests that may reuse it (``ReuseConfig``). To be
            cleared by whoever changes the weights or the processor.

    Raises:
        UnsupportedModelError: No family knows the architecture.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, *, name: str, revision: str | None = None
    ) -> None:
        self.family: Family = find_family(model.config, name)
        self.model: Any = model
        self.model.eval()
        self.processor = with_template(processor, self.family.plain_template)
        self.name = name
        self.revision = revision
        self.is_checked = not self.family.needs_check
        self.store = ReuseStore()
        self._lock, self._processor_lock = ModelLock(), ModelLock()

    def __repr__(self) -> str:
        family, layers = self.family.name, self.num_layers
        return f"VLM({self.name!r}, {family=}, {layers=}, device={self.device})"

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        name: str | None = None,
        **settings: Unpack[LoadSettings],
    ) -> VLM:
        """Loads a model and its processor. Only safetensors weights are read.

        Args:
            path_or_hub_id: A local folder, or "owner/name" on the hub.
            name: What reports call it; None is ``path_or_hub_id``.
            settings: dtype, device, quantization, ...: ``sgl_engine.model.LoadSettings`` describes them.

        Raises:
            ModelNotFoundError: No such folder or hub id, or no whole model in it.
            UnsafeWeightsError: The weights are pickled.
            UnsupportedModelError: No family knows the architecture, or the weights cannot be loaded into it.
            ProcessorError: The processor cannot be loaded.
            ConfigError: There is no such device or setting, or both ``device`` and ``device_map`` are given.
        """
        loaded = load(path_or_hub_id, settings)
        return cls(loaded.model, loaded.processor, name=name or loaded.source, revision=loaded.revision)

    @contextmanager
    def exclusive(self, still_wanted: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within the context, no other thread runs this model or its patches.

        Whoever patches the model holds it from before the patch until after it. Re-entrant.

        Args:
            still_wanted: Called now and then while waiting; what it raises ends the wait.
        """
        with self._lock.held(still_wanted):
            yield

    @contextmanager
    def processing(self, still_wanted: Callable[[], None] = lambda: None) -> Iterator[None]:
        """As ``exclusive``, for the tokenizer alone: requests are read while the model runs others."""
        with self._processor_lock.held(still_wanted):
            yield

    def check_not_mine(self) -> None:
        """Raises EngineError where the current thread holds the model (``exclusive``) that it asks for."""
        self._lock.check_not_mine(self.name)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        config: PreTrainedConfig = self.model.config
        return config

    @property
    def device(self) -> torch.device:
        """Where embeddings live, and so where inputs go."""
        embeddings = self.model.get_input_embeddings()
        device: torch.device = embeddings.weight.device
        if device.type == "meta" and hasattr(embeddings, "_hf_hook"):
            # Offloaded by a device_map: accelerate fetches them to where they are used.
            device = torch.device(embeddings._hf_hook.execution_device)  # noqa: SLF001  # the only place that says so
        return device

    @property
    def text_model(self) -> Any:
        """The decoder."""
        return self.family.text_model(self.model)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.family.decoder_layers(self.model))

    @property
    def has_sliding_layers(self) -> bool:
        """Whether some decoder layers see only the last tokens."""
        config = self.text_model.config
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return getattr(config, "sliding_window", None) is not None
        return "sliding_attention" in kinds

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes, for counting operations; measured where no test holds the decoder's counts."""
        shape = self.family.shape(self.config)
        if not self.family.needs_check:
            return shape
        layers = self.family.decoder_layers(self.model)
        return replace(shape, decoder=measured(shape.decoder, layers, self.text_model.config))

    @property
    def context_tokens(self) -> int:
        """Longest sequence: that the decoder's positions cover, and that can be pruned."""
        return self.family.context_tokens(self.text_model.config)

    @property
    def vocab_size(self) -> int:
        """Width of the logits; wider than the tokenizer where they are padded."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of generation_config.json, and the tokenizer's."""
        ids = self.model.generation_config.eos_token_id
        several = ids if isinstance(ids, list | tuple) else [ids]
        own = self.processor.tokenizer.eos_token_id
        return frozenset(int(token) for token in (*several, own) if token is not None)

    @cached_property
    def thought_tags(self) -> ThoughtTags | SpeltTags | None:
        """What parts its thoughts from its answers; None where it answers at once."""
        return thought_tags(self.processor)

    def shrink_factor(self, width: int, height: int, pictures: PictureConfig | None = None) -> int:
        """How far a picture may be scaled down while it is read; see ``model.processor.shrink_factor``."""
        processor = resized(self.family, self.config, self.processor, pictures or PictureConfig())
        return shrink_factor(self.family, self.config, processor, width, height)

    def encode(
        self,
        request: Request,
        limits: LimitsConfig | None = None,
        reuse: ReuseConfig = NO_REUSE,
        pictures: PictureConfig | None = None,
    ) -> EncodedPrompt:
        """Loads the request's images and turns messages into tokens and pixels.

        Args:
            request: What is asked.
            limits: What it may bring; None is ``LimitsConfig()``.
            reuse: What may be kept for, or known from, another request.
            pictures: How large they are shown to the model; None is ``PictureConfig()``.

        Raises:
            RequestError: A bad image, an empty request, a prompt longer than the context, or a request that
                was cancelled or late while the model was busy.
            ProcessorError: The processor fails.
        """
        return encode(self, request, limits or LimitsConfig(), reuse, pictures or PictureConfig())

    def prompt(
        self, inputs: Mapping[str, Tensor], *, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> EncodedPrompt:
        """Wraps raw model inputs: finds the visual tokens, moves everything to the model's device.

        Args:
            inputs: At least "input_ids", int64 (1, S); as the processor returns them.
            image_sizes: (width, height) in pixels per image. Without it, boxes of tiled images are unknown.

        Raises:
            InvalidRequestError: A batch, or a padded prompt.
            PromptTooLongError: S leaves no room for an answer.
            ProcessorError: The image tokens do not fit the images.
        """
        return wrap_inputs(self, self.processor, inputs, image_sizes)

    def batch(self, prompts: Sequence[EncodedPrompt]) -> PromptBatch:
        """Prompts that run together, padded with a token that stands for no image."""
        return PromptBatch.of(prompts, pad_token=int(self.family.image_token_id(self.config) == 0))

    def tower_patches(self, prompt: EncodedPrompt) -> tuple[int, ...]:
        """Patches in each pass of the vision tower, for counting operations."""
        return self.family.tower_patches(self.config, prompt.inputs)

    @torch.inference_mode()
    def embed(self, prompt: EncodedPrompt) -> Tensor:
        """Embeddings (1, S, width) with the visual features in place; runs the vision tower once.

        The width is the decoder's, or a multiple of it where the decoder takes further visual features.

        Raises:
            InvalidRequestError: The images do not give one feature for each image token.
        """
        with self.exclusive():
            features = self.family.image_features(self.model, prompt.inputs)
        return self.merge(prompt, features)

    @torch.inference_mode()
    def merge(self, prompt: EncodedPrompt, features: Tensor | None) -> Tensor:
        """``embed`` without the vision tower: with features (V, width) that are known.

        Raises:
            InvalidRequestError: They are not one for each image token.
        """
        check_features(features, int((prompt.input_ids == self.family.image_token_id(self.config)).sum()))
        return self.family.embed(self.model, prompt.input_ids, features)

    @torch.inference_mode()
    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Embeddings (B, T, hidden) of text tokens, int64 (B, T); or (1, T, hidden) of (T,)."""
        return self.family.embed(self.model, torch.atleast_2d(token_ids.to(self.device)), None)

    @torch.inference_mode()
    def append_tokens(self, embeddings: Tensor, token_ids: Tensor) -> Tensor:
        """Prompts' embeddings, (B, S, width), and those of text tokens, int64 (B, T) or (T,), after them."""
        text = self.embed_tokens(token_ids)
        text = torch.nn.functional.pad(text, (0, embeddings.shape[-1] - text.shape[-1]))
        return torch.cat((embeddings, text), dim=1)

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache."""
        return DynamicCache(config=self.text_model.config)

    def cache_tokens(self, cache: DynamicCache) -> tuple[int, ...]:
        """Tokens that each layer's cache has seen (L,); 0 where it has one size, or is another layer's."""
        keys, text = self.family.keys_of, self.text_model.config
        return tuple(
            0 if recurrent or keys(text, layer) != layer else cache.get_seq_length(layer)
            for layer, recurrent in enumerate(cache.is_linear)
        )

    @torch.inference_mode()
    def forward(
        self,
        embeddings: Tensor,
        *,
        prompt: EncodedPrompt,
        first_position: int,
        cache: DynamicCache | None,
        logit_rows: int = 1,
    ) -> Tensor:
        """``forward_batch`` of one prompt; returns logits, float32 (logit_rows, vocab)."""
        batch = PromptBatch.of([prompt])
        return self.forward_batch(
            embeddings, batch=batch, first_position=first_position, cache=cache, logit_rows=logit_rows
        )[0]

    @torch.inference_mode()
    def forward_batch(
        self,
        embeddings: Tensor,
        *,
        batch: PromptBatch,
        first_position: int,
        cache: DynamicCache | None,
        logit_rows: int = 1,
        branches: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """One pass of the decoder over several prompts.

        Args:
            embeddings: (B, N, width): the padded prompts from some column on and perhaps tokens after them,
                or tokens after them.
            batch: The prompts that they belong to.
            first_position: Index of the first column. Given explicitly, because the length of a pruned cache
                is not the position.
            cache: Extended in place; None for a pass on its own.
            logit_rows: How many of the last columns go through the LM head; 0 fills the cache only.
            branches: Positions and mask of columns that do not simply follow each other (``attention.trie``).

        Returns:
            Logits, float32 (B, logit_rows, vocab).
        """
        positions = branches[0] if branches else batch.positions(first_position, embeddings.shape[1])
        given = self.family.decoder_inputs(
            self.model, embeddings, batch.inputs, positions, cache, first=first_position
        )
        if branches:
            given["attention_mask"] = branches[1]
        elif batch.is_padded:
            given.setdefault("attention_mask", batch.attention_mask(first_position + embeddings.shape[1]))
        output = self.text_model(**given, position_ids=positions, cache=cache, use_cache=cache is not None)
        hidden = output.last_hidden_state
        return self.family.logits(self.model, hidden[:, hidden.shape[1] - logit_rows :]).float()

    def text(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of generated tokens; special tokens are left out, or only those that frame it.

        From any thread: what a tokenizer keeps as state, padding and truncation, is not for decoding.
        """
        if not skip_special:
            frame = frame_tokens(self.processor.tokenizer, self.eos_token_ids)
            token_ids = [token for token in token_ids if token not in frame]
        settings = {"skip_special_tokens": skip_special, "clean_up_tokenization_spaces": False}
        return str(self.processor.tokenizer.decode(list(token_ids), **settings))
