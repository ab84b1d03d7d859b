"""`dinov3 demo`: its list, its refusals before anything is loaded, and the folders it serves."""

import argparse
import socket
import sys
from pathlib import Path

import pytest

import dinov3_hf
from dinov3_hf import tiny_checkpoint
from dinov3_hf.cli import main
from dinov3_hf.commands import demo
from dinov3_hf.errors import Refused


SPACES = Path(__file__).parents[2] / "spaces"


def test_every_space_is_listed(capsys):
    folders = {path.parent.name for path in SPACES.glob("*/app.py")}
    assert set(demo.DEMOS) == folders
    assert main(["demo"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in listed] == list(demo.DEMOS)
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in demo.DEMOS.values())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["dense_feature"], "name: got 'dense_feature', accepted: dense_features,"),
        (["dense_feature"], "did you mean dense_features?"),
        (["dense-features", "--port", "0"], "port: got 0, accepted: a whole number from 1 to 65535"),
        (["dense-features", "--data", "photos"], "data: got 'photos', accepted: null, except with image_search"),
        (
            ["dense_features", "--model", "./nowhere"],
            "model: got './nowhere', accepted: an existing directory or weights file, or a hub id",
        ),
    ],
)
def test_bad_requests_are_one_line_before_anything_is_loaded(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(demo.importlib, "import_module", lambda name: pytest.fail(f"{name} was loaded"))
    monkeypatch.setitem(sys.modules, "dinov3_hf.spaces.layout", None)
    arguments = demo_arguments(arguments)
    with pytest.raises(Refused) as error:
        demo.run(arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def demo_arguments(given):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(given)


def test_a_model_without_words_and_a_taken_port_are_one_line(capsys):
    pytest.importorskip("gradio")
    assert main(["demo", "open_vocabulary_segmentation", "--model", tiny_checkpoint()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dinov3 demo: error: model: got a Dinov3Model, accepted: a model with a text tower")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["demo", "dense_features", "--no-browser", "--port", port]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"dinov3 demo: error: port: got {port} at")


def test_a_missing_gradio_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("dinov3_hf.spaces")]:
        monkeypatch.delitem(sys.modules, name)
    # The import below makes the package anew and enters it in its parent, where later tests would find it.
    monkeypatch.setattr(dinov3_hf, "spaces", None, raising=False)
    assert main(["demo", "dense_features"]) == 2
    assert capsys.readouterr().err == (
        "dinov3 demo: error: gradio is not installed, accepted: after pip install 'dinov3-hf[spaces]'\n"
    )


@pytest.mark.parametrize("folder", sorted(path.parent for path in SPACES.glob("*/app.py")), ids=lambda path: path.name)
def test_folders_are_ready_to_be_pushed(folder):
    yaml = pytest.importorskip("yaml")
    header = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["license"] == "apache-2.0"
    assert header["title"] and len(header["short_description"]) <= 60
    wanted = (SPACES.parent / "setup.cfg").read_text().partition("gradio>=")[2].split()[0]
    assert str(header["sdk_version"]).startswith(wanted)
    assert (folder / "requirements.txt").read_text().split() == ["dinov3-hf[spaces]"]
