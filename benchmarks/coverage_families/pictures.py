"""A processor for any architecture: pictures as its tower takes them, and image tokens for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.coverage_families.sizes import IMAGE, TOKENIZER, token
from sgl_engine.families.sizes import flat
from sgl_engine.families.tiny.tokenizer import chat_template

Inputs: TypeAlias = dict[str, Tensor]
OnePicture: TypeAlias = Callable[[Image.Image], Inputs]
"""What the tower takes of one picture."""


class CountingProcessor:
    """Turns text and pictures into inputs; how many tokens a picture becomes, it asks the model.

    Args:
        model: Whose tower is asked.
        one: Makes the vision inputs of a picture.
        wrap: What a template writes for a picture; holds ``IMAGE`` once.
        more: Makes further inputs of those that there are.
        rows: Text for a picture, from its inputs; None is as many image tokens as it has features.
        joined: The axis along which pictures lie in an input, where it is not the first.
    """

    def __init__(
        self,
        model: Any,
        one: OnePicture,
        *,
        wrap: str = IMAGE,
        more: Callable[[Mapping[str, Tensor]], Inputs] | None = None,
        rows: Callable[[Inputs], str] | None = None,
        joined: Mapping[str, int] = {},
    ) -> None:
        self.tokenizer, self.image_token, self.image_token_id = TOKENIZER, IMAGE, token(IMAGE)
        self.boi_token, self.image_processor = wrap, None
        self.chat_template = chat_template(wrap)
        self._model, self._one, self._more, self._rows, self._joined = model, one, more, rows, joined

    def apply_chat_template(
        self, turns: Any, tools: Any = None, *, add_generation_prompt: bool = True, **settings: Any
    ) -> Any:
        """The text of a conversation."""
        settings = {name: value for name, value in settings.items() if name == "chat_template"}
        return TOKENIZER.apply_chat_template(
            turns,
            chat_template=self.chat_template,
            tools=tools,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def __call__(self, text: Any, images: Any = None, **_: Any) -> Inputs:
        """Inputs of one text and its pictures."""
        [text] = [text] if isinstance(text, str) else text
        pictures = images or []
        if pictures and isinstance(pictures[0], list | tuple):
            pictures = pictures[0]
        head, *tails = text.split(IMAGE)
        if len(tails) != len(pictures):
            raise ValueError(f"{len(tails)} image tokens, {len(pictures)} images")
        each = [self._one(picture) for picture in pictures]
        for one, tail in zip(each, tails, strict=True):
            head += (self._rows(one) if self._rows else IMAGE * self._count(one)) + tail
        inputs: Inputs = {
            name: torch.cat([one[name] for one in each], dim=self._joined.get(name, 0))
            for name in (each[0] if each else ())
        }
        read = TOKENIZER(head, return_tensors="pt", add_special_tokens=False)
        inputs |= {name: read[name] for name in ("input_ids", "attention_mask")}
        return inputs | (self._more(inputs) if self._more else {})

    def _count(self, one: Inputs) -> int:
        inner = getattr(self._model, "model", self._model)
        asked = (inner if hasattr(inner, "get_image_features") else self._model).get_image_features
        taken = inspect.signature(asked).parameters
        dtype = self._model.dtype
        given = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in one.items()
            if name in taken
        }
        with torch.no_grad():
            seen = asked(**given, return_dict=True)
        return len(flat(_features(seen)))


def _features(seen: Any) -> Any:
    """Of what towers return: the features, the first plane of them, or what a projector is still to read."""
    for name in ("pooler_output", "deepstack_features", "last_hidden_state"):
        found = getattr(seen, name, None)
        if found is not None:
            return found[0][1] if name == "deepstack_features" else found
    return seen


def square(edge: int = 32) -> OnePicture:
    """One square, (1, 3, edge, edge)."""

    def one(picture: Image.Image) -> Inputs:
        values = np.asarray(picture.convert("RGB").resize((edge, edge)), dtype=np.float32) / 255.0
        return {"pixel_values": torch.from_numpy((values - 0.5) / 0.5).permute(2, 0, 1)[None].contiguous()}

    return one


def grid(temporal: int = 2, *, patch: int = 4, merge: int = 2, as_pictures: bool = False) -> OnePicture:
    """Patches of a grid of the picture's own shape, in blocks; ``as_pictures``: (N, 3, patch, patch)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=temporal,
        size={"shortest_edge": 256, "longest_edge": 4096},
    )

    def one(picture: Image.Image) -> Inputs:
        made = images(images=[picture], return_tensors="pt")
        values = made["pixel_values"]
        if as_pictures:
            values = values.reshape(len(values), 3, patch, patch)
        return {"pixel_values": values, "image_grid_thw": made["image_grid_thw"]}

    return one


def patch_rows(picture: Image.Image, edge: int = 32, patch: int = 4) -> Tensor:
    """Patches of a square, row by row: (1, N, patch * patch * 3)."""
    values = np.asarray(picture.convert("RGB").resize((edge, edge)), dtype=np.float32) / 255.0
    side = edge // patch
    found = torch.from_numpy(values).reshape(side, patch, side, patch, 3).permute(0, 2, 1, 3, 4)
    return found.reshape(1, side * side, -1).contiguous()


def kinds(inputs: Mapping[str, Tensor]) -> Inputs:
    """Which tokens are of a picture, as some processors tell."""
    return {"mm_token_type_ids": (inputs["input_ids"] == token(IMAGE)).int()}
