"""Render the glyph atlas that the demo generator draws with (run once, its result is in git).

    python -m training.make_glyphs FONT_DIR

Every glyph of every face is rendered into a fixed cell, so that pictures need no system font and look the
same on every machine. The faces are from the DejaVu fonts, whose licence allows redistribution of what is
rendered with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgl_engine.demo.glyphs import ALPHABET, ATLAS_PATH, CELL_HEIGHTS, CELL_WIDTH

FACES = ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSansMono-Oblique.ttf")
OVERSAMPLE = 4


def render(font_file: Path, width: int, height: int) -> np.ndarray:
    """Alpha of every character of ``ALPHABET`` in cells of one size, uint8 (characters, height, width)."""
    font = ImageFont.truetype(str(font_file), int(height * OVERSAMPLE * 0.82))
    ascent, _ = font.getmetrics()
    glyphs = []
    for character in ALPHABET:
        # Squeeze what is wider than the cell, centre what is narrower.
        advance = max(1, int(np.ceil(font.getlength(character))))
        tall = Image.new("L", (advance + 2 * OVERSAMPLE, height * OVERSAMPLE), 0)
        ImageDraw.Draw(tall).text(
            (OVERSAMPLE, height * OVERSAMPLE * 0.83 - ascent), character, fill=255, font=font
        )
        cell_width = width * OVERSAMPLE
        if tall.width > cell_width:
            tall = tall.resize((cell_width, tall.height), Image.Resampling.LANCZOS)
        cell = Image.new("L", (cell_width, tall.height), 0)
        cell.paste(tall, ((cell_width - tall.width) // 2, 0))
        glyphs.append(np.asarray(cell.resize((width, height), Image.Resampling.BOX)))
    return np.stack(glyphs).astype(np.uint8)


def main() -> None:
    """Write the atlas to where the package reads it."""
    fonts = Path(sys.argv[1])
    atlas = {
        f"{index}_{CELL_WIDTH}x{height}": render(fonts / name, CELL_WIDTH, height)
        for index, name in enumerate(FACES)
        for height in CELL_HEIGHTS
    }
    np.savez_compressed(ATLAS_PATH, **atlas)
    print(f"{ATLAS_PATH}: {len(atlas)} sheets, {ATLAS_PATH.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
