"""How many tokens a picture is to a provider, as its documentation says. Pure.

These are the rules as of 2026, in the providers' guides:
- OpenAI, "Images and vision": tiles of GPT-4o, 85 and 170 for each of 512 pixels, after fitting into
  2048 x 2048 and a short side of 768; patches of GPT-4.1 mini and its like, of 32 pixels, at most 1536;
- Anthropic, "Vision": width x height / 750, after a long side of 1568;
- Google, "Understand and count tokens": 258 for both sides up to 384, else 258 for each tile of 768.
Some models multiply them, and rules change: ``SendConfig.picture_tokens`` takes a rule of one's own
(``PatchTokens``), and what was charged is in the answer's usage.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sgl_engine.config import PatchTokens, PictureTokens


def count_picture_tokens(rule: PictureTokens, width: int, height: int) -> int:
    """Counts the tokens of one picture of so many pixels."""
    if isinstance(rule, PatchTokens):
        return rule.base + math.ceil(_patches(width, height, rule.side, rule.most) * rule.per_patch)
    return _RULES[rule](width, height)


def _patches(width: int, height: int, side: int, most: int | None) -> int:
    """Patches that cover it, after it is scaled down to ``most`` of them."""
    count = math.ceil(width / side) * math.ceil(height / side)
    if most is None or count <= most:
        return count
    factor = math.sqrt(side * side * most / (width * height))
    # Rounding up may take one row or column too many: a little smaller, so that whole ones fit.
    across, down = width * factor / side, height * factor / side
    factor *= min(math.floor(across) / across or 1.0, math.floor(down) / down or 1.0)
    return min(most, math.ceil(width * factor / side) * math.ceil(height * factor / side))


def _openai_tiles(width: int, height: int) -> int:
    fit = min(1.0, 2048 / max(width, height))
    fit *= min(1.0, 768 / (min(width, height) * fit))
    across, down = round(width * fit), round(height * fit)
    return 85 + 170 * max(1, math.ceil(across / 512)) * max(1, math.ceil(down / 512))


def _openai_patches(width: int, height: int) -> int:
    return _patches(width, height, 32, 1536)


def _anthropic(width: int, height: int) -> int:
    fit = min(1.0, 1568 / max(width, height))
    return max(1, math.ceil(width * fit * height * fit / 750))


def _gemini(width: int, height: int) -> int:
    if max(width, height) <= 384:
        return 258
    return 258 * math.ceil(width / 768) * math.ceil(height / 768)


_RULES: dict[str, Callable[[int, int], int]] = {
    "openai-tiles": _openai_tiles,
    "openai-patches": _openai_patches,
    "anthropic": _anthropic,
    "gemini": _gemini,
}
