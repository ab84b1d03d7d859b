"""Read any `datasets` source as rows and pixels: folders, files, columns and the values they store."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names


if TYPE_CHECKING:
    from .pixels import decode_image
    from .streams import load_source
else:
    __getattr__, __dir__ = lazy_names(__name__, {".pixels": ["decode_image"], ".streams": ["load_source"]})


__all__ = ["decode_image", "load_source"]
