"""What most architectures share: a decoder under ``model.model``, image tokens that tiles are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_engine.config import PictureConfig
from sgl_engine.errors import ProcessorError
from sgl_engine.families.own import as_the_tower
from sgl_engine.families.shape import DecoderShape, ModelShape, VisionShape
from sgl_engine.families.sizes import entries, flat, side, size_of
from sgl_engine.prompt.encoded import Box, PictureAxes, PromptTiles, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_RECURRENCES = frozenset({"linear_attn", "conv", "mamba"})
_FOREIGN = "Use the processor that was saved with this model, and pass all that it returned."


@dataclass(frozen=True)
class Tile:
    """The visual tokens of an image, or of a part of it, before they are found in the prompt.

    Attributes:
        grid: (rows, cols), row-major.
        box: Which part of the image; None where it is unknown.
        row_gap: Tokens after each row but the last that show nothing.
        tail: Tokens after the last row that show nothing and yet carry the image token's id.
    """

    grid: tuple[int, int]
    box: Box | None = WHOLE
    row_gap: int = 0
    tail: int = 0


@dataclass(frozen=True)
class Scaled:
    """What an image processor makes of a picture's size before it cuts and normalises it.

    Attributes:
        width: In pixels, of the largest version that it makes.
        height: The same.
        layout: Whatever else of the prompt depends on the picture's shape.
    """

    width: int
    height: int
    layout: Hashable = None


class BaseFamily:
    """The usual answers to what ``sgl_engine.families.Family`` asks; a family overrides what differs."""

    name = ""
    first_prunable_layer = 0
    separators_are_image_tokens = False
    plane_adder: str | None = None
    plane_inputs: tuple[str, str] | None = None
    plain_template: str | None = None
    needs_check = False
    kind_of_answers = 0
    looks_back_only = True
    tile_inputs: tuple[str, ...] = ("pixel_values",)
    """Vision inputs that have one entry for each tile."""
    tile_axis = 0
    """The axis along which these lie."""

    def text_model(self, model: Any) -> PreTrainedModel:
        """``model.model.language_model``."""
        decoder: PreTrainedModel = model.model.language_model
        return decoder

    def decoder_layers(self, model: Any) -> Sequence[Module]:
        """The decoder's layers."""
        layers: Any = self.text_model(model).layers
        return list(layers)

    def keys_of(self, text: PreTrainedConfig, layer: int) -> int:
        """Its own."""
        del text
        return layer

    def can_be_shortened(self, text: PreTrainedConfig) -> bool:
        """Each layer has all that it needs."""
        del text
        return True

    def recurrence(self, layer: Module) -> Module:
        """What mixes the tokens of a layer that has no attention."""
        return next(part for name, part in layer.named_children() if name in _RECURRENCES)

    def context_tokens(self, text: PreTrainedConfig) -> int:
        """What its positions cover; of layers that see chunks of the prompt, the first chunk.

        Within it, such a layer sees what a plain one does. Beyond it, chunks of what is left would not be
        chunks of the prompt. The same holds for layers that scale queries by how many keys their cache holds.
        """
        limits = [int(text.max_position_embeddings)]
        if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
            limits.append(text.attention_chunk_size)
        if getattr(text, "attn_temperature_tuning", False):
            limits.append(text.floor_scale - 1)
        return min(limits)

    def image_token_id(self, config: PreTrainedConfig) -> int:
        """From the configuration."""
        return int(config.image_token_id)

    def image_text(self, processor: Any, config: PreTrainedConfig) -> str:
        """The image token's text."""
        text: str = processor.tokenizer.decode([self.image_token_id(config)])
        return text

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """The tiles of each image, in prompt order.

        Args:
            config: The model's configuration.
            processor: The model's processor.
            inputs: What the processor returned.
            sizes: (width, height) in pixels per image; None where they are unknown.
        """
        raise NotImplementedError  # how a family tiles is what makes it one: there is no default

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """Unknown: then large pictures are left as they are."""
        del config, processor, width, height
        return None

    def resize(self, config: PreTrainedConfig, images: Any, wanted: PictureConfig) -> None:
        """Nothing can be set: every picture has one size."""

    def spans(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> tuple[VisualSpan, ...]:
        """Finds the tiles in the prompt, and checks that they account for every image token.

        Raises:
            ProcessorError: They do not.
        """
        image = (inputs["input_ids"][0] == self.image_token_id(config)).nonzero()[:, 0].tolist()
        if not image:
            return ()
        tiles = self.tiles(config, processor, inputs, sizes)
        return place_tiles(tiles, image, separators_are_image_tokens=self.separators_are_image_tokens)

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """None: tokens are simply numbered."""
        del model, inputs
        return None

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """One entry per tile, tile after tile."""
        return axes_of_tiles(inputs, spans, self.tile_inputs, axis=self.tile_axis)

    def cut(
        self, model: Any, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]
    ) -> PromptTiles | None:
        """A tile per span, where the inputs hold one entry for each."""
        del model
        if axes_of_tiles(inputs, spans, self.tile_inputs, axis=self.tile_axis) is None:
            return None
        return PromptTiles.of(spans)

    def tile_slices(
        self, config: PreTrainedConfig, inputs: Mapping[str, Tensor], tiles: Sequence[int]
    ) -> dict[str, Tensor]:
        """Their entries."""
        del config
        return {name: entries(inputs[name], tiles, self.tile_axis) for name in self.vision_inputs(inputs)}

    def tile_features(self, model: Any, slices: Mapping[str, Tensor]) -> Tensor:
        """Tower and projector, on these entries."""
        tiles = slices[self.tile_inputs[0]].shape[self.tile_axis]
        rows = self.features(model, slices)
        return rows.reshape(tiles, -1, rows.shape[-1])

    def join_tiles(self, model: Any, inputs: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """One after the other."""
        del model, inputs
        return features.flatten(0, 1)

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """As the model's own forward computes them, one row per image token."""
        if inputs.get("pixel_values") is None:
            return None
        return self.features(model, self.vision_inputs(inputs))

    def features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Rows (V, hidden) of what the vision side is given."""
        seen = model.model.get_image_features(**as_the_tower(model, inputs), return_dict=True)
        return flat(getattr(seen, "pooler_output", seen))

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """The LM head alone."""
        logits: Tensor = model.get_output_embeddings()(hidden)
        return logits

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the vision side takes."""
        return {"pixel_values": inputs["pixel_values"]}

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """As the model's own forward merges them; ``VLM.embed`` has checked that their numbers agree.

        Without features every token is text, a generated image token too.
        """
        embeddings: Tensor = model.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        is_image = (input_ids == self.image_token_id(model.config)).unsqueeze(-1)
        return embeddings.masked_scatter(is_image, features.to(embeddings.device, embeddings.dtype))

    def decoder_inputs(
        self,
        model: Any,
        embeddings: Tensor,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        cache: Cache | None,
        *,
        first: int,
    ) -> dict[str, Any]:
        """Only the embeddings; the decoder makes its own causal masks."""
        del model, inputs, positions, cache, first
        return {"inputs_embeds": embeddings}

    def whole_logits(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The model's own forward."""
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    def first_plain_layer(self, config: PreTrainedConfig) -> int:
        """0: they are in the embeddings."""
        del config
        return 0

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """One pass per picture in ``pixel_values`` (..., channels, height, width), in square patches."""
        if inputs.get("pixel_values") is None:
            return ()
        *pictures, _, height, width = inputs["pixel_values"].shape
        patch = side(config.vision_config.patch_size)
        count = 1
        for size in pictures:
            count *= size
        return (height // patch * (width // patch),) * count

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        """From the text and vision configurations."""
        return ModelShape(decoder=self.decoder_shape(config), vision=self.vision_shape(config))

    def decoder_shape(self, config: PreTrainedConfig) -> DecoderShape:
        """From the text configuration; what differs between layers is measured (``measured.py``)."""
        text = config.get_text_config(decoder=True)
        heads = size_of(text, "num_attention_heads")
        return DecoderShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            query_heads=heads,
            kv_heads=size_of(text, "num_key_value_heads") or heads,
            head_dim=size_of(text, "head_dim") or text.hidden_size // heads,
            intermediate=size_of(text, "intermediate_size"),
            vocab=text.vocab_size,
        )

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """A tower of plain layers with a class token or none, and a projector of two matrices per token."""
        vision, output = config.vision_config, config.text_config.hidden_size
        return VisionShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.num_channels * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=1,
            projector=vision.hidden_size * output + output * output,
        )


def place_tiles(
    tiles: Sequence[Sequence[Tile]], image_positions: Sequence[int], *, separators_are_image_tokens: bool
) -> tuple[VisualSpan, ...]:
    """Lays tiles onto the image tokens of a prompt, one after the other.

    Args:
        tiles: Per image, in prompt order.
        image_positions: Positions of the image token, ascending.
        separators_are_image_tokens: Whether the tokens between rows, and tails, carry the image token's id.

    Raises:
        ProcessorError: A tile's tokens are not where they should be, or image tokens are left over.
    """
    known = set(image_positions)
    spans, claimed, after = [], set(), 0
    for image, tile in ((image, tile) for image, parts in enumerate(tiles) for tile in parts):
        rows, cols = tile.grid
        start = next((position for position in _from(image_positions, after)), None)
        if start is None:
            break
        stop = start + rows * cols + (rows - 1) * tile.row_gap
        spans.append(VisualSpan(image, start, stop, tile.grid, tile.box, tile.row_gap))
        claimed |= set(spans[-1].positions)
        after = stop + tile.tail
        if separators_are_image_tokens:
            claimed |= set(range(start, after))
    if claimed != known or len(spans) != sum(map(len, tiles)):
        grids = ", ".join(sorted({f"{r} x {c}" for r, c in (tile.grid for part in tiles for tile in part)}))
        raise ProcessorError(
            f"The prompt's {len(known)} image tokens are not those of {len(tiles)} images in "
            f"{sum(map(len, tiles))} tiles of {grids or 'no'} tokens.",
            remedy=_FOREIGN,
        )
    return tuple(spans)


def _from(positions: Sequence[int], first: int) -> Iterator[int]:
    from bisect import bisect_left

    yield from positions[bisect_left(positions, first) :]


def axes_of_tiles(
    inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan], names: Sequence[str], *, axis: int
) -> PictureAxes | None:
    """Each picture has as many entries as tiles; None where the inputs hold another number of them."""
    counts = list(Counter(span.image for span in spans).values())
    given = [name for name in names if name in inputs]
    if not given or any(inputs[name].shape[axis] != sum(counts) for name in given):
        return None
    return dict.fromkeys(given, (axis, counts))
