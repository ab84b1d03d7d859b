"""The contact sheet."""

import numpy as np
from PIL import ImageFont

from dinov3_hf.visualization.contact_sheet import GAP, draw_contact_sheet, shorten


def test_pictures_lie_in_reading_order_and_in_their_cells():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sizes = [(20, 10), (10, 20), (20, 20)]
    pictures = [(np.full((*size, 3), colour, np.uint8), "x" * 40) for size, colour in zip(sizes, colours, strict=True)]
    sheet = np.asarray(draw_contact_sheet(pictures, columns=2, cell=20))
    for index, (colour, (height, width)) in enumerate(zip(colours, sizes, strict=True)):
        rows, columns = np.nonzero((sheet == colour).all(-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)
        assert (columns.mean() > sheet.shape[1] / 2) == (index % 2 == 1)
        assert (rows.mean() > sheet.shape[0] / 2) == (index >= 2)
    # Nothing is drawn over the edges.
    assert (sheet[:GAP] == 255).all() and (sheet[:, -GAP // 2 :] == 255).all()


def test_captions_are_cut_to_their_width():
    font = ImageFont.load_default(11)
    assert shorten("cat", font, 100) == "cat"
    cut = shorten("a very long caption", font, 40)
    assert cut.endswith("…") and font.getlength(cut) <= 40
    assert draw_contact_sheet([]).size[0] > 0
