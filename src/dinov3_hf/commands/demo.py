"""`dinov3 demo`: look at a model in the browser, through one of the Spaces that come with the package."""

import argparse
import difflib
import importlib
from pathlib import Path

from dinov3_hf.provenance import is_local


DEMOS = {
    "dense_features": "PCA map of an image's patches; click one to see which are similar",
    "open_vocabulary_segmentation": "type words and see where the image shows them",
    "correspondence": "click in one image and see the same place in another",
    "video_tracking": "mark an object in the first frame and follow it through a clip",
    "image_search": "search a folder of images by an image or by words",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listing = "\n".join(f"  {name:<30}{text}" for name, text in DEMOS.items())
    parser.epilog = f"demos:\n{listing}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", help="one of the demos below; without one they are listed")
    parser.add_argument(
        "--model", help="directory, hub id or file of weights [default the one that comes with the package]"
    )
    parser.add_argument(
        "--data",
        help="image_search: folder of images, Parquet files or hub data set to search [default rendered scenes]",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at [default 127.0.0.1, this machine only]"
    )
    parser.add_argument("--port", type=int, help="[default the first free one from 7860]")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")


def run(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        print("\n".join(f"dinov3 demo {name:<30}{text}" for name, text in DEMOS.items()))
        return 0
    check_arguments(arguments)
    app = importlib.import_module(f"dinov3_hf.spaces.{arguments.name}.app")
    from dinov3_hf.spaces.layout import launch

    blocks = app.build(arguments.model, **({"data": arguments.data} if arguments.data else {}))
    options = {"inbrowser": not arguments.no_browser, "prevent_thread_lock": True, "quiet": True}
    try:
        launch(blocks, arguments.host, arguments.port, **options)
    except OSError as error:
        tried = arguments.port or "7860 to 7959"
        raise ValueError(f"port: {tried} cannot be served at {arguments.host} ({error})") from None
    print(f"{arguments.name}: {blocks.local_url} (Ctrl+C ends it)", flush=True)
    blocks.block_thread()
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a name, a port or a model that cannot be, before anything is loaded."""
    name, model = arguments.name.replace("-", "_"), arguments.model
    if name not in DEMOS:
        close = difflib.get_close_matches(name, DEMOS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"name: got {arguments.name!r}, accepted: {', '.join(DEMOS)}{hint}")
    arguments.name = name
    if arguments.data is not None and name != "image_search":
        raise ValueError(f"data: got {arguments.data!r}, accepted: only with image_search")
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise ValueError(f"port: got {arguments.port}, accepted: 1 to 65535")
    if model and is_local(model) and not Path(model).expanduser().exists():
        raise FileNotFoundError(f"model: {model!r} is not there, accepted: a directory, a hub id or a file of weights")
