"""Families whose prompt tokens see later ones: in all of a prompt, or in its pictures.

Which, the model itself says: it makes the masks of a prompt, and hands them to its decoder. What is generated
sees what is older, as everywhere, so the decoder makes the masks of later steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import Scaled, Tile
from sgl_engine.families.generic import Generic
from sgl_engine.families.own import decoder_call
from sgl_engine.families.sizes import axes_of_pictures, side
from sgl_engine.prompt.encoded import PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedConfig


class BothWays(Generic):
    """To be mixed into a family; see the module docstring.

    Attributes:
        kinds: The input that tells the kinds of tokens.
    """

    kinds = "mm_token_type_ids"
    looks_back_only = False

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
        """The masks that the model makes of a prompt; afterwards the decoder's own causal ones do."""
        import torch

        given = self.decoder_embeddings(model, embeddings)
        kinds = self.kinds_of_tokens(inputs)
        if first or kinds is None:
            return given
        following = (0, embeddings.shape[1] - kinds.shape[1])
        handed = decoder_call(
            model.model,
            "language_model",
            **given,
            position_ids=positions,
            cache=cache,
            **{self.kinds: torch.nn.functional.pad(kinds, following, value=self.kind_of_answers)},
        )
        return {**given, "attention_mask": handed["attention_mask"]}

    def kinds_of_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Of the prompt's, int (B, S); None where the decoder's own masks will do."""
        return inputs.get(self.kinds)

    def decoder_embeddings(self, model: Any, embeddings: Tensor) -> dict[str, Any]:
        """What the decoder takes of (B, N, width)."""
        del model
        return {"inputs_embeds": embeddings}


class PaliGemma(BothWays):
    """PaliGemma 1 and 2: one square per picture, in front of a text that is read in both directions.

    It answers one question; it is no chat model, and its repositories have no chat template.
    """

    name = "paligemma"
    kinds = "token_type_ids"
    kind_of_answers = 1  # the prompt is 0, and only that is read in both directions
    plain_template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
        "{% endif %}{% if message.role != 'user' or not loop.first %}"
        "{{ raise_exception('this model takes one question of a user, and no conversation') }}"
        "{% endif %}{% endfor %}"
    )

    def kinds_of_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """All of them are of the prompt, also where the processor was not asked."""
        import torch

        given = inputs.get(self.kinds)
        return torch.zeros_like(inputs["input_ids"]) if given is None else given

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """A square per picture; they touch."""
        del processor
        edge = side(config.vision_config.image_size) // side(config.vision_config.patch_size)
        count = int((inputs["input_ids"] == self.image_token_id(config)).sum()) // edge**2
        return [[Tile((edge, edge))] for _ in (range(count) if sizes is None else sizes)]

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """To one size, whatever it was."""
        del processor, width, height
        edge = side(config.vision_config.image_size)
        return Scaled(edge, edge)

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Numbered from 1 on."""
        import torch

        del model
        ids = inputs["input_ids"]
        return torch.arange(1, ids.shape[1] + 1, device=ids.device).expand(1, *ids.shape)

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """One entry per picture."""
        del spans
        return axes_of_pictures(inputs, ("pixel_values",))


class Molmo2(BothWays):
    """Molmo 2: tokens of all pictures see each other, and are added to what their tokens say."""

    name = "molmo2"

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """The image token's own embedding, and the feature."""
        import torch

        embeddings: Tensor = model.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        is_image = (input_ids == self.image_token_id(model.config)).unsqueeze(-1)
        added = features.to(embeddings.device, embeddings.dtype)
        return embeddings + torch.zeros_like(embeddings).masked_scatter(is_image, added)
