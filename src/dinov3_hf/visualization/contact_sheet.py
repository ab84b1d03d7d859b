"""A contact sheet: many small pictures on one page, with a caption under each."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


GAP, CAPTION, TEXT_SIZE = 8, 16, 11
INK, PALE = "#1b1f24", "#f2f4f6"


def draw_contact_sheet(pictures: Sequence[tuple[np.ndarray, str]], columns: int = 8, cell: int = 112) -> Image.Image:
    """Lay pictures [h,w,3] (uint8, at most `cell` pixels a side) out row by row, each centred over its caption.

    Captions that are too long are cut. Pillow draws it, so that it needs no library for charts.
    """
    lines = max(1, -(-len(pictures) // columns))
    step, height = cell + GAP, cell + CAPTION + GAP
    sheet = Image.new("RGB", (GAP + columns * step, GAP + lines * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for index, (picture, caption) in enumerate(pictures):
        left, top = GAP + index % columns * step, GAP + index // columns * height
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=PALE)
        tile = Image.fromarray(picture)
        sheet.paste(tile, (left + (cell - tile.width) // 2, top + (cell - tile.height) // 2))
        draw.text((left + cell / 2, top + cell + 2), shorten(caption, font, cell), fill=INK, font=font, anchor="ma")
    return sheet


def shorten(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    """Return a text, or its start and an ellipsis, that is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
