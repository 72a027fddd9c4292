"""Carries a map of the picture from one model's visual tokens onto another's. Pure.

Both sides are grids over boxes of the image. The source says how dense importance is at each point: the sum,
over the grids that show the point, of a cell's mass divided by its area. The target's tokens share what is
there. Where several of them see a point (a tile and the thumbnail), each takes a share in proportion to its
resolution, which is 1 / area of its cell. So mass is never invented, all of it arrives where the target shows
the whole image, and evenly spread importance gives every token the same mass, however coarse or fine it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from sgl_engine.errors import IncompatiblePairError

if TYPE_CHECKING:
    from torch import Tensor


class Cells(Protocol):
    """Equal cells over a box of an image, row-major; ``sgl_engine.prompt.encoded.VisualSpan`` is one."""

    @property
    def image(self) -> int:
        """Which image."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols)."""

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """(x0, y0, x1, y1) in fractions of the image; None where it is unknown."""


def resample(mass: Tensor, source: Sequence[Cells], target: Sequence[Cells]) -> Tensor:
    """Returns the mass of each cell of ``target``.

    Images that both sides cut alike keep their mass as it is, bit for bit.

    Args:
        mass: float32 (V,), per cell of ``source``, in order.
        source: Grids that the mass belongs to.
        target: Grids that it is carried onto; of the same images.

    Returns:
        float32 (V',), in order of ``target``.

    Raises:
        IncompatiblePairError: Other images, or boxes that are needed and unknown.
    """
    import torch

    if _images(source) != _images(target):
        raise IncompatiblePairError(
            f"The importance map covers {_describe(source)}, but the prompt {_describe(target)}.",
            remedy="Take the map from the request that the prompt was made of.",
        )
    masses = mass.split([rows * cols for rows, cols in (cells.grid for cells in source)])
    found: dict[int, Tensor] = {}
    for image in sorted(_images(source)):
        old = [index for index, cells in enumerate(source) if cells.image == image]
        new = [index for index, cells in enumerate(target) if cells.image == image]
        if [(source[i].grid, source[i].box) for i in old] == [(target[i].grid, target[i].box) for i in new]:
            carried = [masses[index] for index in old]  # cut alike: nothing moves, so nothing is rounded
        else:
            boxes = _Boxes([source[index] for index in old], [target[index] for index in new])
            carried = boxes.carry([masses[index] for index in old])
        found |= dict(zip(new, carried, strict=True))
    return torch.cat([found[index] for index in range(len(target))]) if target else mass.new_zeros(0)


class _Boxes:
    """One image, cut along every edge of every cell of both sides.

    So each rectangle between the cuts lies in one cell of every grid, or outside of it.
    """

    def __init__(self, source: Sequence[Cells], target: Sequence[Cells]) -> None:
        import torch

        self._source, self._target = source, target
        edges = [torch.cat([_edges(cells, axis) for cells in (*source, *target)]).unique() for axis in (0, 1)]
        self._centres = [(along[1:] + along[:-1]) / 2 for along in edges]
        self._area = torch.outer(edges[1].diff(), edges[0].diff())  # (Y, X)

    def carry(self, masses: Sequence[Tensor]) -> list[Tensor]:
        """Carries the masses of the source's grids to the target's; each is float32 (rows * cols,)."""
        import torch

        # Both (Y, X), float64: mass per area, and how finely the target's tokens see it, all together.
        density, resolution = torch.zeros_like(self._area), torch.zeros_like(self._area)
        for cells, mass in zip(self._source, masses, strict=True):
            cell, inside = self._cells(cells)
            density += torch.where(inside, mass.double()[cell] / _cell_area(cells), 0.0)
        for cells in self._target:
            resolution += self._cells(cells)[1] / _cell_area(cells)
        # What a token of resolution 1 gets of each rectangle; 0 / tiny is 0 where no target token looks.
        shared = self._area * density / resolution.clamp_min(torch.finfo(torch.float64).tiny)
        carried = []
        for cells in self._target:
            cell, inside = self._cells(cells)
            received = torch.zeros(cells.grid[0] * cells.grid[1], dtype=torch.float64)
            received.index_add_(0, cell[inside], shared[inside] / _cell_area(cells))
            carried.append(received.float())
        return carried

    def _cells(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Finds the cell in which each rectangle lies, int64 (Y, X), and whether it lies in one, bool."""
        import torch

        (rows, cols), (left, top, right, bottom) = cells.grid, _box(cells)
        col = ((self._centres[0] - left) / (right - left) * cols).floor().long()
        row = ((self._centres[1] - top) / (bottom - top) * rows).floor().long()
        inside = torch.logical_and(((row >= 0) & (row < rows))[:, None], ((col >= 0) & (col < cols))[None])
        # Clamped so that they can be used as indices; what is outside is not read, or masked.
        return row.clamp(0, rows - 1)[:, None] * cols + col.clamp(0, cols - 1)[None], inside


def _edges(cells: Cells, axis: int) -> Tensor:
    """Returns the edges of a grid's cells, float64: along x for axis 0, along y for axis 1."""
    import torch

    box, count = _box(cells), cells.grid[1 - axis]
    return torch.linspace(box[axis], box[axis + 2], count + 1, dtype=torch.float64)


def _cell_area(cells: Cells) -> float:
    """Returns the area of one cell, as a fraction of the image."""
    (rows, cols), (left, top, right, bottom) = cells.grid, _box(cells)
    return (right - left) * (bottom - top) / (rows * cols)


def _box(cells: Cells) -> tuple[float, float, float, float]:
    if cells.box is None:
        raise IncompatiblePairError(
            f"Which part of image {cells.image + 1} some of its visual tokens show is unknown.",
            remedy="Encode both prompts from a Request, which knows the size of its pictures.",
        )
    return cells.box


def _images(grids: Sequence[Cells]) -> set[int]:
    return {cells.image for cells in grids}


def _describe(grids: Sequence[Cells]) -> str:
    shapes = ", ".join(sorted({f"{rows} x {cols}" for rows, cols in (cells.grid for cells in grids)}))
    return f"{len(_images(grids))} images in {len(grids)} tiles of {shapes or 'no'} tokens"
