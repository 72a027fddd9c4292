"""Where the small model looked, drawn over the picture: a heat map, and outlines of the tokens that are kept.

The heat is attention per area, relative to attention spread evenly over all pictures: 1 is what every spot
would get if nothing stood out, and up to there no heat is drawn. Tiles and thumbnails cover the same pixels;
there their densities add up. What pruning drops is dimmed: what stays bright is what the large model sees.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sgl_engine import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sgl_engine.attention import ImportanceMap
    from sgl_engine.prompt import Box
    from sgl_engine.pruning import PruningPlan

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

# ColorBrewer's YlOrRd without its palest and darkest ends: lightness falls steadily, so that more heat never
# looks like less, and red stands out on paper as well as on a dark ground.
_HEAT: Final[Floats] = np.array(
    [
        (255, 237, 160),
        (254, 217, 118),
        (254, 178, 76),
        (253, 140, 60),
        (252, 77, 42),
        (226, 25, 28),
        (187, 0, 38),
    ],
    dtype=np.float64,
)
_MAX_ALPHA: Final = 0.85  # of the hottest spot
_SHADE: Final = (
    0.55  # how much of the picture's own light and dark shows through the heat, so that text stays
)
_DIMMED: Final = 0.5  # brightness of what is dropped
_DARK: Final = 0.25  # of tiles that are left out
_GAMMA: Final = 0.6  # attention is heavy-tailed: without it one spot would be red and the rest blank
_MIN_PEAK: Final = 4.0  # times the average; on a shorter scale an even map would look hot
_PEAK_QUANTILE: Final = 0.995  # one runaway token must not leave everything else blank
_MAX_ROW: Final = 2400  # pixels; pictures that do not fit in one row start another
_MARGIN: Final = 20
_INK: Final = (32, 33, 36)
_PAPER: Final = (250, 250, 250)
_OUTLINE: Final = (0, 224, 255)  # cyan, which is not on the heat scale


def draw_importance(
    images: Image.Image | Sequence[Image.Image],
    importance: ImportanceMap,
    plan: PruningPlan | None = None,
    *,
    question: str = "",
    answer: str = "",
    size: int = 768,
) -> Image.Image:
    """Draw the importance map over the pictures that it was measured on.

    With the plan of a model that cuts pictures differently, the map is drawn as that model's ranking saw it.

    Args:
        images: The request's pictures, in order; any PIL mode.
        importance: Mass per visual token, with the spans that say where each token lies.
        plan: Outlines the visual tokens that it keeps and dims the others; tiles that it leaves out are dark.
        question: For the caption.
        answer: For the caption.
        size: Pixels. Each picture's longer side is brought to at least this, and to at most twice this.

    Returns:
        An RGB picture: the pictures with their heat, and under them a legend and the caption.

    Raises:
        InvalidRequestError: A span names a picture that is not in ``images`` or does not say what it covers;
            or the plan was made for another prompt.
    """
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if plan is not None and plan.spans:
        importance = importance.resample(plan.spans)
    layers = _layers(importance, plan, len(pictures))
    panels = [_panel(picture, layers[index], size) for index, picture in enumerate(pictures)]
    peak = max(_MIN_PEAK, *(float(np.quantile(panel.heat, _PEAK_QUANTILE)) for panel in panels))
    sheet = _lay_out([_render(panel, peak) for panel in panels])
    lines = [f"{label}   {text}" for label, text in (("Q", question), ("A", answer)) if text]
    return _with_caption(sheet, lines, peak, plan)


def colorize(intensity: Floats) -> npt.NDArray[np.uint8]:
    """Map intensities in [0, 1], any shape (...), to RGB (..., 3): pale yellow to dark red."""
    steps = np.linspace(0.0, 1.0, len(_HEAT))
    channels = [np.interp(intensity, steps, _HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _Layer:
    """One span over its picture.

    Attributes:
        box: What it covers, in fractions of the picture.
        density: Attention relative to even attention, float64 (rows, cols).
        kept: With a plan: which cells it keeps, bool (rows, cols).
        skipped: With a plan: which cells lie in tiles that are left out, bool (rows, cols).
    """

    box: Box
    density: Floats
    kept: Flags | None
    skipped: Flags | None


@dataclass(frozen=True, eq=False)
class _Panel:
    """One picture as it is drawn.

    Attributes:
        picture: Enlarged or reduced, RGB.
        heat: Attention relative to even attention, float64 (height, width).
        light: Brightness, 1, ``_DIMMED`` or ``_DARK``, float64 (height, width).
        outlines: Where kept cells border on others, int64 (N, 4): x0, y0, x1, y1 in pixels.
    """

    picture: Image.Image
    heat: Floats
    light: Floats
    outlines: npt.NDArray[np.int64]


def _layers(importance: ImportanceMap, plan: PruningPlan | None, num_pictures: int) -> list[list[_Layer]]:
    """The spans that lie over each picture."""
    even = max(float(importance.mass.nansum()) / max(num_pictures, 1), 1e-12)
    positions = None if plan is None else plan.keep.numpy()
    left_out = np.array([] if plan is None else plan.skipped_positions)
    layers: list[list[_Layer]] = [[] for _ in range(num_pictures)]
    for span, grid in zip(importance.spans, importance.grids(), strict=True):
        if span.image >= num_pictures:
            raise InvalidRequestError(
                f"The importance map covers picture {span.image + 1}, but {num_pictures} were given to draw.",
                remedy="Pass all pictures of the request, in order.",
            )
        if span.box is None:
            raise InvalidRequestError(
                f"The importance map does not say which part of picture {span.image + 1} its tokens see.",
                remedy="Encode the prompt from a Request, which knows the size of its pictures.",
            )
        x0, y0, x1, y1 = span.box
        cell_area = (x1 - x0) * (y1 - y0) / len(span)
        kept = skipped = None
        if positions is not None:
            own = np.array(span.positions)
            kept, skipped = (np.isin(own, some).reshape(span.grid) for some in (positions, left_out))
        layers[span.image].append(
            _Layer(span.box, np.nan_to_num(grid.double().numpy()) / (even * cell_area), kept, skipped)
        )
    if plan is not None:
        _check_same_prompt(layers, plan)
    return layers


def _check_same_prompt(layers: list[list[_Layer]], plan: PruningPlan) -> None:
    found = sum(int(layer.kept.sum()) for group in layers for layer in group if layer.kept is not None)
    if found != plan.kept_visual_tokens:
        raise InvalidRequestError(
            f"The plan keeps {plan.kept_visual_tokens} visual tokens, but {found} at the map's positions.",
            remedy="Make the plan for the prompt of the map: plan_pruning(prompt, importance, ...).",
        )


def _panel(picture: Image.Image, layers: list[_Layer], size: int) -> _Panel:
    longer = max(picture.size)
    scale = min(max(longer, size), 2 * size) / longer
    width, height = (max(1, round(side * scale)) for side in picture.size)
    heat, seen, entering = (np.zeros((height, width)) for _ in range(3))
    outlines = [np.zeros((0, 4))]
    for layer in layers:
        _add(heat, layer.density, layer.box)
        if layer.kept is not None:
            _add(seen, layer.kept.astype(np.float64), layer.box)
            _add(entering, 1.0 - np.asarray(layer.skipped), layer.box)
            outlines.append(_boundary(layer.kept, layer.box) * [width, height, width, height])
    planned = any(layer.kept is not None for layer in layers)
    light = np.where((seen > 0) | (not planned), 1.0, np.where(entering > 0, _DIMMED, _DARK))
    scaled = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return _Panel(scaled, heat, light, np.concatenate(outlines).round().astype(np.int64))


def _add(canvas: Floats, cells: Floats, box: Box) -> None:
    """Add cells (rows, cols), spread over the box, to the canvas (height, width), in place."""
    x0, y0, x1, y1 = box
    rows, cols = cells.shape
    row = _cell_of_pixel(canvas.shape[0], y0, y1, rows)
    col = _cell_of_pixel(canvas.shape[1], x0, x1, cols)
    ys = np.flatnonzero((row >= 0) & (row < rows))
    xs = np.flatnonzero((col >= 0) & (col < cols))
    canvas[np.ix_(ys, xs)] += cells[np.ix_(row[ys], col[xs])]


def _cell_of_pixel(pixels: int, low: float, high: float, count: int) -> npt.NDArray[np.int64]:
    """In which of ``count`` cells from ``low`` to ``high`` (fractions) a pixel lies; out of range: none."""
    centres = (np.arange(pixels) + 0.5) / pixels
    return np.floor((centres - low) / (high - low) * count).astype(np.int64)


def _boundary(kept: Flags, box: Box) -> Floats:
    """Edges between kept and other cells, (rows, cols) -> (N, 4): x0, y0, x1, y1 in picture fractions."""
    rows, cols = kept.shape
    padded = np.pad(kept, 1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([x, y, x + 1, y], axis=1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([x, y, x, y + 1], axis=1)
    x0, y0, x1, y1 = box
    extent = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    edges: Floats = np.concatenate([level, upright]) / [cols, rows, cols, rows] * extent + [x0, y0, x0, y0]
    return edges


def _render(panel: _Panel, peak: float) -> Image.Image:
    """Blend the heat over the picture, then draw the outlines: a dark line with a bright one on top."""
    intensity = np.clip((panel.heat - 1) / (peak - 1), 0.0, 1.0) ** _GAMMA
    alpha = (_MAX_ALPHA * intensity)[..., None]
    picture = np.asarray(panel.picture, dtype=np.float64)
    shade = 1 - _SHADE * (1 - picture.mean(axis=-1, keepdims=True) / 255)
    blended = (1 - alpha) * picture * panel.light[..., None] + alpha * shade * colorize(intensity)
    drawn = Image.fromarray(blended.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    width = max(2, max(drawn.size) // 256)
    inset = width // 2 + 1  # lines on the rim would otherwise lie half outside
    limits = np.array([drawn.width, drawn.height, drawn.width, drawn.height]) - 1 - inset
    segments = np.clip(panel.outlines, inset, limits).tolist()
    for colour, line in ((_INK, width + 4), (_OUTLINE, width)):
        for x0, y0, x1, y1 in segments:
            pen.line((x0, y0, x1, y1), fill=colour, width=line)
            for x, y in ((x0, y0), (x1, y1)):  # lines end bluntly: a square closes the corner
                pen.rectangle(
                    (x - line // 2, y - line // 2, x + (line - 1) // 2, y + (line - 1) // 2), fill=colour
                )
    return drawn


def _lay_out(drawn: list[Image.Image]) -> Image.Image:
    """Rows of pictures, left to right."""
    rows: list[list[Image.Image]] = [[]]
    for image in drawn:
        if rows[-1] and sum(other.width + _MARGIN for other in rows[-1]) + image.width > _MAX_ROW:
            rows.append([])
        rows[-1].append(image)
    widths = [sum(image.width for image in row) + _MARGIN * (len(row) - 1) for row in rows]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (max(widths), sum(heights) + _MARGIN * (len(rows) - 1)), _PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + _MARGIN
        top += height + _MARGIN
    return sheet


def _with_caption(sheet: Image.Image, lines: list[str], peak: float, plan: PruningPlan | None) -> Image.Image:
    """Frame the sheet, with the legend and the caption under it."""
    font = ImageFont.load_default(20)
    columns = max(20, int(sheet.width / font.getlength("n")))
    wrapped = [
        part
        for line in lines
        for part in textwrap.wrap(line, columns, subsequent_indent="      ", max_lines=6, placeholder=" ...")
    ]
    line_height, legend_height = 28, 44
    height = _MARGIN + sheet.height + legend_height + line_height * len(wrapped) + _MARGIN // 2
    framed = Image.new("RGB", (sheet.width + 2 * _MARGIN, height), _PAPER)
    framed.paste(sheet, (_MARGIN, _MARGIN))
    top = _MARGIN + sheet.height
    _draw_legend(framed, top + 14, peak, plan)
    pen = ImageDraw.Draw(framed)
    for number, text in enumerate(wrapped):
        pen.text((_MARGIN, top + legend_height + line_height * number), text, fill=_INK, font=font)
    return framed


def _draw_legend(framed: Image.Image, top: int, peak: float, plan: PruningPlan | None) -> None:
    """The heat scale, and what the outlines mean."""
    font = ImageFont.load_default(15)
    pen = ImageDraw.Draw(framed)
    scale = np.linspace(0.0, 1.0, 120)[None, :, None] ** _GAMMA  # linear in attention, as it is labelled
    bar = (1 - _MAX_ALPHA * scale) * 255 + _MAX_ALPHA * scale * colorize(scale[..., 0])
    framed.paste(Image.fromarray(np.repeat(bar.round().astype(np.uint8), 14, axis=0)), (_MARGIN, top))
    pen.rectangle((_MARGIN, top, _MARGIN + 119, top + 13), outline=_INK)
    left = _MARGIN + 130.0
    text = f"attention, 1 to {peak:.{0 if peak >= 10 else 1}f} times the average"
    pen.text((left, top - 3), text, fill=_INK, font=font)
    if plan is None:
        return
    left += font.getlength(text) + 30
    pen.rectangle((left, top, left + 13, top + 13), outline=_OUTLINE, width=3)
    text = f"kept from layer {plan.layer} on: {plan.kept_visual_tokens} of {plan.visual_tokens} visual tokens"
    if plan.tiles is not None and plan.chosen_tiles is not None:
        text += f", in {len(plan.chosen_tiles)} of {len(plan.tiles)} tiles"
    pen.text((left + 24, top - 3), text, fill=_INK, font=font)
