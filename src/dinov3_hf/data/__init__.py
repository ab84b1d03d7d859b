"""Any `datasets` source as rows and pixels: what a folder, a file, a column and a stored value mean."""

from .pixels import decode_image
from .streams import load_source


__all__ = ["decode_image", "load_source"]
