"""A key-value cache that can go back behind tokens that turned out not to be the answer's.

Keys and values are cropped, by the same number of tokens in every layer, which is right for the shorter
caches of pruned layers too; layers with a sliding window keep what has left it until a forward is judged. The
state of a recurrent layer cannot be cropped: it is copied before a forward that may have to be undone, and
the whole cache goes back to there.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import DynamicCache


class Rewinding:
    """How the cache of one generation goes back.

    Args:
        cache: An empty one.
        enabled: False leaves the cache alone; it then never goes back.

    Attributes:
        crops: Whether it can go back to any place; else only to where the last forward began.
    """

    def __init__(self, cache: DynamicCache, *, enabled: bool) -> None:
        self._layers: Any = cache.layers
        self._recurrent = [layer for layer, linear in enumerate(cache.is_linear) if linear]
        self._enabled = enabled
        self._marked = 0
        self._copies: dict[int, Any] = {}
        self.crops = not self._recurrent
        if enabled:
            for layer in self._layers:
                if isinstance(layer, DynamicSlidingWindowLayer):
                    layer.activate_past_recording()

    def mark(self, position: int, *, guesses: bool) -> None:
        """Comes before every forward.

        Args:
            position: Columns in the cache.
            guesses: Whether the forward may have to be undone.
        """
        self._marked = position
        if self._enabled and guesses:
            self._copies = {layer: copy.deepcopy(self._layers[layer]) for layer in self._recurrent}

    def back_to(self, wanted: int, position: int) -> int:
        """Comes after every forward.

        Args:
            wanted: How many columns are right.
            position: How many are in the cache.

        Returns:
            How many are in it now: at most ``wanted``.
        """
        if not self._enabled:
            return position
        target = min(wanted, position)
        if target < position and self._recurrent:
            target = self._marked
            for layer, before in self._copies.items():
                self._layers[layer] = before
        self._copies = {}
        for index, layer in enumerate(self._layers):
            if index not in self._recurrent:
                layer.crop(target - position)  # by 0, too: what has left a window goes
        return target
