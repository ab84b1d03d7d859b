"""Strangers' worst: each wrong upload gets a sentence, none stops the server, and nothing is kept or given away."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from ..ports import free_port


httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")

UNREADABLE, DAMAGED = "This file is no image we can read", "This image is damaged or cut short"
EMPTY, TOO_MANY_PIXELS, OTHERS = "This file is empty", "This image has too many pixels", "Upload the file itself"


class Server:
    """`dinov3 demo` in a process of its own, talked to as its pages do, without a browser's checks."""

    def __init__(self, folder: Path):
        port = free_port()
        self.folder = folder
        command = [sys.executable, "-m", "dinov3_hf.cli", "demo", "open-vocabulary-segmentation"]
        self.process = subprocess.Popen(
            [*command, "--no-browser", "--port", str(port)],
            env=os.environ | {"GRADIO_TEMP_DIR": str(folder)},
            stdout=subprocess.DEVNULL,
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api/", timeout=60)
        for _ in range(300):
            try:
                self.http.get("info")
                return
            except httpx.ConnectError:
                assert self.process.poll() is None, "the server did not start"
                time.sleep(0.2)
        raise TimeoutError

    def upload(self, content: bytes, name: str):
        return self.http.post("upload", files={"files": (name, content)})

    def call(self, handler: str, *data, session: str = "somebody") -> str | list:
        """Return what a handler of the page gives back, or the sentence of its error."""
        asked = self.http.post(f"call/{handler}", json={"data": data, "session_hash": session})
        if asked.status_code != 200:
            return asked.text
        answer = self.http.get(f"call/{handler}/{asked.json()['event_id']}").text
        data = json.loads(answer.rsplit("data: ", 1)[1])
        return data["error"] if "event: error" in answer else data

    def open(self, content: bytes, name: str = "image.png", **options) -> str | list:
        uploaded = self.upload(content, name)
        if uploaded.status_code != 200:
            return uploaded.text
        return self.call("open_upload", {"path": uploaded.json()[0], "orig_name": name, **META}, **options)

    def memory(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


META = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("uploads"))
    yield server
    server.process.terminate()
    server.process.wait(20)


def encoded(kind: str, size=(400, 300), mode="RGB", **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(noise).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        # Over the full range: what 0 to 255 mean in 16 bits is not known.
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes | None = None, more: bytes = b"") -> bytes:
    """A PNG of one bit a pixel that says what it likes about its size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = b"" if pixels is None else chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + header + more + data + chunk(b"IEND", b"")


def black(width: int, height: int) -> bytes:
    return png(width, height, zlib.compress(bytes((width + 7) // 8 + 1) * height))


def patched(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def sized_jpeg(width: int, height: int) -> bytes:
    content = encoded("JPEG")
    return patched(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Files and the beginning of the sentence that each must get."""
    half = {kind: encoded(kind)[: len(encoded(kind)) // 2] for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
    text_bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\nshowpage\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    files = {f"half.{kind.lower()}": (content, DAMAGED) for kind, content in half.items()}
    # Its reader looks at the whole file first.
    files["half.webp"] = half["WEBP"], UNREADABLE
    files |= {
        "empty.png": (b"", EMPTY),
        "empty.gif": (b"", EMPTY),
        "one_byte.jpg": (b"\xff", UNREADABLE),
        "start.jpg": (b"\xff\xd8\xff\xe0", UNREADABLE),
        "signature.png": (b"\x89PNG\r\n\x1a\n", UNREADABLE),
        "header_only.png": (png(64, 64)[:33], UNREADABLE),
        "no_pixels.png": (png(64, 64), DAMAGED),
        "few_pixels.png": (png(64, 64, zlib.compress(b"\0" * 10)), DAMAGED),
        "not_deflated.png": (png(64, 64, b"not deflated at all"), DAMAGED),
        "bad_checksum.png": (patched(encoded("PNG"), 29, b"\0\0\0\0"), UNREADABLE),
        "no_size.png": (png(0, 0, b""), UNREADABLE),
        "bomb.png": (black(30_000, 30_000), TOO_MANY_PIXELS),
        "large.png": (black(8_000, 8_000), TOO_MANY_PIXELS),
        "long.png": (black(50_000_000, 1), TOO_MANY_PIXELS),
        "boast.png": (png(2**31 - 1, 2**31 - 1), TOO_MANY_PIXELS),
        "text_bomb.png": (png(8, 8, zlib.compress(bytes(16)), text_bomb), "This"),
        "boast.jpg": (sized_jpeg(65_500, 65_500), TOO_MANY_PIXELS),
        "boast_less.jpg": (sized_jpeg(7_000, 6_000), TOO_MANY_PIXELS),
        "boast.gif": (patched(encoded("GIF"), 6, b"\xff\xff\xff\xff"), TOO_MANY_PIXELS),
        "boast.bmp": (patched(encoded("BMP"), 18, struct.pack("<ii", 30_000, 30_000)), TOO_MANY_PIXELS),
        "negative.bmp": (patched(encoded("BMP"), 18, struct.pack("<ii", -5, -5)), "This"),
        "words.png": (b"This is no picture." * 100, UNREADABLE),
        "page.jpg": (b"<html><script>alert(1)</script></html>", UNREADABLE),
        "script.svg": (svg, UNREADABLE),
        "script.png": (svg, UNREADABLE),
        "program.eps": (postscript, UNREADABLE),
        "program.png": (postscript, UNREADABLE),
        "paper.pdf": (encoded("PDF"), UNREADABLE),
        "icon.ico": (encoded("ICO", (32, 32)), UNREADABLE),
        "texture.dds": (encoded("DDS"), UNREADABLE),
        "old.pcx": (encoded("PCX"), UNREADABLE),
        "archive.zip": (b"PK\x03\x04" + bytes(100), UNREADABLE),
        "packed.gz": (b"\x1f\x8b\x08" + bytes(100), UNREADABLE),
        "binary.png": (b"\x7fELF" + bytes(1000), UNREADABLE),
        "film.png": (b"\0\0\0\x20ftypisom" + bytes(1000), UNREADABLE),
        "noise.png": (np.random.default_rng(0).bytes(100_000), UNREADABLE),
        "huge.png": (encoded("PNG") + bytes(21 * 2**20), "File size exceeded maximum"),
        "../../../up.png": (b"up", UNREADABLE),
        "name" * 60 + ".png": (b"long", UNREADABLE),
        "half_animation.gif": (animation()[:300], DAMAGED),
    }
    return files


def animation(**options) -> bytes:
    frames = [Image.new("RGB", (300, 200), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


def test_bad_uploads_get_a_sentence_and_leave_nothing_behind(server):
    server.open(encoded("PNG", (2_000, 2_000)))
    server.open(encoded("JPEG", (6_000, 6_000)))
    before, kept = server.memory(), set(server.folder.rglob("*.*"))
    files = bad_files()
    answers = {name: server.open(content, name) for name, (content, _) in files.items()}
    wrong = {
        name: answers[name] for name, (_, sentence) in files.items() if not str(answers[name]).startswith(sentence)
    }
    assert not wrong
    assert server.process.poll() is None
    assert server.memory() - before < 64 * 2**20
    assert set(server.folder.rglob("*.*")) <= kept
    assert len(files) + len(BAD_REQUESTS) >= 50


BAD_REQUESTS = {
    "no image": ("open_upload", [None], "Choose an image first"),
    "a file of the server": ("open_upload", [{"path": "/etc/passwd"}], OTHERS),
    "a file of the server, marked": ("open_upload", [{"path": "/etc/passwd", **META}], None),
    "its own code": ("open_upload", [{"path": __file__}], OTHERS),
    "an address": ("open_upload", [{"path": "http://127.0.0.1:1/a.png", **META}], OTHERS),
    "a picture in an address": (
        "open_upload",
        [{"url": "data:image/png;base64,AAAA", **META}],
        "Choose an image first",
    ),
    "a number for an image": ("open_upload", [7], None),
    "nothing": ("open_upload", [], None),
    "10,000 words": ("segment", ["word, " * 10_000, 3, 0.5], "This text is too long"),
    "no words": ("segment", [" ,\n;", 3, 0.5], "Type at least one word"),
    "invisible words": ("segment", ["\u202e\u200b\0", 3, 0.5], "Type at least one word"),
    "40 words": ("segment", [", ".join(map(str, range(40))), 3, 0.5], "These are 40 words"),
    "a long word": ("segment", ["a" * 300, 3, 0.5], "A phrase has 300 characters"),
    "detail beyond the slider": ("segment", ["tree", 1e9, 0.5], "Value 1000000000.0 is greater"),
    "an example that is none": ("open_example", [99, 3, 0.5], None),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused(name, server):
    handler, data, sentence = BAD_REQUESTS[name]
    server.open(encoded("PNG"), session="requests")
    answer = server.call(handler, *data, session="requests")
    # Requests that no page makes get no sentence, and no more than that it failed.
    assert answer is None if sentence is None else answer.startswith(sentence)
    assert isinstance(server.open(encoded("PNG")), list)


@pytest.mark.parametrize(
    "content",
    [encoded("JPEG", mode="CMYK"), encoded("PNG", mode="P"), encoded("PNG", mode="LA"), encoded("TIFF", mode="I;16")]
    + [encoded("GIF"), animation(), encoded("WEBP"), encoded("BMP", (1, 1)), encoded("PNG", (1, 3000))],
    ids=["CMYK", "palette", "grey with alpha", "16 bits", "GIF", "animation", "WebP", "one pixel", "a line"],
)
def test_unusual_images_are_read(content, server):
    assert isinstance(server.open(content), list)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", __file__, "setup.cfg", "../../../../etc/passwd", "/proc/self/environ"]
)
def test_no_file_of_the_server_is_served(path, server):
    assert server.http.get(f"file={quote(path, safe='')}").status_code == 403


def test_users_do_not_block_each_other_and_a_crowd_is_told_to_wait(server):
    """Many images wait for the network; meanwhile a slider of somebody else is followed."""
    server.open(encoded("PNG"), session="calm")
    server.call("segment", "tree", 3, 0.5, session="calm")
    image = server.upload(encoded("PNG", (900, 900)), "image.png").json()[0]
    for number in range(40):
        server.open(encoded("PNG"), session=str(number))
    assert Path(image).is_file()

    def crowd(number):
        answer = server.call("segment", "tree, house", 2, 0.5, session=str(number))
        return answer, time.monotonic()

    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(crowd, number) for number in range(40)]
        time.sleep(0.5)
        start = time.monotonic()
        painted = server.http.post("run/paint", json={"data": [None, 0.3], "session_hash": "calm"})
        mine = time.monotonic()
        answers = [future.result() for future in waiting]
    assert painted.status_code == 200 and painted.json()["data"][0]["path"]
    assert sum(mine < end for _, end in answers) > 20, f"a slider took {mine - start:.1f} s"
    refused = [answer for answer, _ in answers if isinstance(answer, str)]
    assert all("full" in answer for answer in refused) and len(refused) < 20
    assert isinstance(server.call("segment", "tree", 1, 0.5, session="calm"), list)
