"""`dinov3 demo`: look at a model in the browser, on one of the demo pages (Spaces) that come with the package."""

import argparse
import importlib
import os
import socket
from dataclasses import dataclass, field
from typing import Literal

from dinov3_hf.provenance import is_local

from ..errors import Refused
from ..recipe import Recipe, add_recipe_flags, described, recipe_from_flags, require


DEMOS = {
    "dense_features": "PCA map of an image's patches; click a patch to see which others are similar",
    "open_vocabulary_segmentation": "type words and see where they are in the image",
    "correspondence": "click a point in one image and see the matching point in another",
    "video_tracking": "mark an object in the first frame and track it through a clip",
    "image_search": "search a folder of images by an image or by words",
}


@dataclass
class DemoArguments:
    """Which demo is served, for which model, and at which address."""

    name: (
        Literal["dense_features", "open_vocabulary_segmentation", "correspondence", "video_tracking", "image_search"]
        | None
    ) = described("one of the demos below; null: print the list of demos", None, positional=True)
    model: str | None = described(
        "directory, hub id or weights file; null: the small model bundled with the package", None, common=True
    )
    data: str | None = described(
        "for image_search: folder of images, Parquet files or hub data set to search; null: rendered scenes",
        None,
        common=True,
    )
    host: str = described(
        "address to serve at; 127.0.0.1 can be reached from this machine only", "127.0.0.1", common=True
    )
    port: int | None = described(
        "port to serve at; null: the first free port from 7860 on", None, at_least=1, at_most=65535, common=True
    )
    no_browser: bool = described("print the address, but do not open a browser", False, common=True)

    def validate(self) -> None:
        require(self.data is None or self.name == "image_search", "data", self.data, "null, except with image_search")
        good = self.model is None or not is_local(self.model) or os.path.exists(os.path.expanduser(self.model))
        require(good, "model", self.model, "an existing directory or weights file, or a hub id")


@dataclass
class DemoRecipe(Recipe):
    """All fields of a demo."""

    demo: DemoArguments = field(default_factory=DemoArguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listing = "\n".join(f"  {name:<30}{text}" for name, text in DEMOS.items())
    parser.epilog = f"demos:\n{listing}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_recipe_flags(parser, DemoRecipe)


def run(arguments: argparse.Namespace) -> int:
    if arguments.name_given is not None:
        arguments.name_given = arguments.name_given.replace("-", "_")
    settings = recipe_from_flags(arguments, DemoRecipe).demo
    if settings.name is None:
        print("\n".join(f"dinov3 demo {name:<30}{text}" for name, text in DEMOS.items()))
        return 0
    check_address(settings.host, settings.port)
    app = importlib.import_module(f"dinov3_hf.spaces.{settings.name}.app")
    from dinov3_hf.spaces.layout import launch

    blocks = app.build(settings.model, **({"data": settings.data} if settings.data else {}))
    options = {"inbrowser": not settings.no_browser, "prevent_thread_lock": True, "quiet": True}
    try:
        launch(blocks, settings.host, settings.port, **options)
    except OSError as error:
        tried = settings.port or "7860 to 7959"
        raise Refused(f"port: got {tried}, accepted: one that is free at {settings.host} ({error})") from None
    print(f"{settings.name}: {blocks.local_url} (Ctrl+C ends it)", flush=True)
    blocks.block_thread()
    return 0


def check_address(host: str, port: int | None) -> None:
    """Raise `Refused` if nothing can be served at this address; called before the model is loaded, to fail early."""
    field = "host" if port is None else "port"
    try:
        kind, what, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, what, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        got = repr(host) if port is None else f"{port} at {host!r}"
        raise Refused(f"{field}: got {got}, accepted: an address of this machine that is free ({error})") from None
