"""A task repeated at growing image sizes (DINOv3, section 6.1 and figure 4): do features stay good?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..data.views import check_image_size
from .bench import Bench
from .layers import repeated
from .result import Result


def evaluate_resolution(bench: Bench, evaluate: Callable[[Bench], Result], sizes: Sequence[int]) -> Result:
    """Repeat a task, `evaluate(bench)`, at image sizes in pixels; returns its metrics by size.

    The centre crop keeps the same share of the image at every size. Memory grows with the size unless the bench's
    network is `Windowed`. Raises `Refused` for a size that is no multiple of the patch size.
    """
    view = bench.preprocessing
    for size in sizes:
        check_image_size(size, bench.patch_size)
    results = {}
    for size in sorted(set(sizes)):
        resize = round(size * view.resize_size / view.image_size)
        results[size] = evaluate(replace(bench, preprocessing=replace(view, image_size=size, resize_size=resize)))
    window = getattr(bench.model, "window", None)
    how = f"windows of {window} px, tokens averaged where they overlap" if window else "the whole image at once"
    return repeated(results, "image_size", "resolution", f"image sizes in pixels, seen by the network as {how}")
