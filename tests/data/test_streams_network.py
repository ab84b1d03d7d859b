"""Reading over a network that drops connections: every row comes once, in the order of an undisturbed reading."""

import http.server
import importlib.util
import io
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

import dinov3_hf
from dinov3_hf.data import retries, streams
from dinov3_hf.data.streams import RowStream, StreamError, load_source


needs_aiohttp = pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="plain http needs aiohttp")
FAULTS = ("reset", "cut", 503)
COMMIT = "c0de" * 10


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder over http, with ranges, and as data sets of a hub: each sub-folder is the repository me/NAME.

    `fault` gives the fault of a GET: None, a status, "reset", "cut" (half of the body), or "stall" (the same, but the
    connection stays open).
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.fault, self.served, self.bytes_sent = folder, lambda: None, Counter(), 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def fail_at_random(self, seed=0, share=0.5):
        draw, faults, lock = np.random.default_rng(seed), itertools.cycle(FAULTS), threading.Lock()

        def fault():
            with lock:
                return next(faults) if draw.random() < share else None

        self.fault = fault

    def handle_error(self, request, client_address):
        """Keep broken connections out of the test's output."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in ("/fail", "/mend"):
            self.server.fail_at_random(share=0.4 if path == "/fail" else 0)
            return self.answer(200, b"")
        if found := re.fullmatch(r"/api/datasets/me/(\w+)(/revision/\w+)?", path):
            files = [{"rfilename": entry["path"]} for entry in self.entries(found[1], "", True)]
            return self.answer(200, json.dumps({"id": f"me/{found[1]}", "sha": COMMIT, "siblings": files}).encode())
        if found := re.fullmatch(r"/api/datasets/me/(\w+)/tree/\w+/?(.*)", path):
            return self.answer(200, json.dumps(self.entries(*found.groups(), "recursive=true" in self.path)).encode())
        found = re.fullmatch(r"/datasets/me/(\w+)/resolve/\w+/(.+)", path)
        self.send_file(self.server.folder / (f"{found[1]}/{found[2]}" if found else path[1:]))

    def entries(self, repository, folder, deep):
        root = self.server.folder / repository
        found = sorted((root / folder).rglob("*") if deep else (root / folder).glob("*"))
        return [
            {
                "type": "file" if path.is_file() else "directory",
                "path": str(path.relative_to(root)),
                "size": path.stat().st_size,
                "oid": COMMIT,
            }
            for path in found
        ]

    def send_file(self, path):
        if not path.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        fault = self.server.fault() if self.command == "GET" else None
        self.server.served.update([fault] if self.command == "GET" else [])
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif isinstance(fault, int):
            self.answer(fault, b"")
        else:
            data, headers, status = path.read_bytes(), {"Accept-Ranges": "bytes", "ETag": f'"{COMMIT}"'}, 200
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
                data, status = data[start : end + 1], 206
            self.answer(status, data, headers, fault)

    def answer(self, status, data, headers=None, fault=None):
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, **(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data if fault is None else data[: len(data) // 2])
            self.server.bytes_sent += len(data)
        if fault == "stall":
            self.server.closing.wait(20)
        self.close_connection = self.close_connection or fault is not None


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr(retries, "DELAYS", (0,) * 6)
    quick = {name: 0 if "INTERVAL" in name else 1 for name in retries.DATASETS_RETRIES}
    monkeypatch.setattr(retries, "DATASETS_RETRIES", quick)
    running = Server(tmp_path)
    yield running
    running.closing.set()
    running.shutdown()
    running.server_close()


def picture(number):
    # A few incompressible bytes behind the image, so that files are cut inside images too.
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue() + np.random.default_rng(number).bytes(3000)


def write_files(folder, kind, shards=10, rows=4):
    """Write shards of numbered images; returns the pattern of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        if kind == "parquet":
            features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
            columns = {"image": [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers], "number": list(numbers)}
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(str(folder / f"part-{shard:02d}.parquet"), batch_size=2)
        elif kind == "tar":
            with tarfile.open(folder / f"part-{shard:02d}.tar", "w") as tar:
                for number in numbers:
                    info = tarfile.TarInfo(f"{number}.png")
                    info.size = len(picture(number))
                    tar.addfile(info, io.BytesIO(picture(number)))
        else:
            for number in numbers:
                (folder / "train").mkdir(exist_ok=True)
                (folder / "train" / f"{number:02d}.png").write_bytes(picture(number))
    return f"part-{{00..{shards - 1:02d}}}.{kind}"


def numbers_of(rows):
    """Read the number off the image itself: rows must come whole."""
    read = []
    for row in rows:
        image = row.get("image") or row.get("png")
        read.append(Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0))[0])
        assert image["bytes"] == picture(read[-1])
    return read


def open_rows(server, kind):
    return load_source(f"{server.url}/{write_files(server.folder, kind)}")


@needs_aiohttp
@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("reader, readers", [(0, 1), (1, 3), (4, 5)])
@pytest.mark.parametrize("tries_of_datasets", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_row_comes_once_and_in_order(server, capsys, monkeypatch, kind, reader, readers, tries_of_datasets):
    monkeypatch.setitem(retries.DATASETS_RETRIES, "STREAMING_READ_MAX_RETRIES", tries_of_datasets)
    before = datasets.config.STREAMING_READ_MAX_RETRIES
    rows = open_rows(server, kind)
    whole = numbers_of(itertools.islice(RowStream(rows, 8, 0, reader, readers), 50))
    if readers == 1:
        assert sorted(whole[:40]) == list(range(40))
    assert "failed" not in capsys.readouterr().err
    server.fail_at_random(share=0.4)
    assert numbers_of(itertools.islice(RowStream(rows, 8, 0, reader, readers), 50)) == whole
    assert all(server.served[fault] for fault in FAULTS)
    lines = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    # Of a Parquet file `datasets` itself asks for the failed range again; the stream of a tar is lost.
    assert lines or (kind == "parquet" and tries_of_datasets > 1)
    assert all(re.match(r"data: try \d of 7 failed, the next in 0 s: \w+: ", line) for line in lines)
    assert datasets.config.STREAMING_READ_MAX_RETRIES == before


@needs_aiohttp
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_resuming_under_drops_is_exact(server, kind):
    rows = open_rows(server, kind)
    whole = numbers_of(itertools.islice(RowStream(rows, 8, 0), 60))
    server.fail_at_random(seed=1, share=0.4)
    read, state = [], None
    for _ in range(6):
        stream = RowStream(rows, 8, 0)
        if state is not None:
            stream.load_state_dict(state)
        read += numbers_of(itertools.islice(stream, 10))
        state = json.loads(json.dumps(stream.state_dict()))
    assert read == whole


@needs_aiohttp
def test_a_server_that_stays_broken_ends_the_stream_in_one_line(server, monkeypatch):
    slept = []
    monkeypatch.setattr(retries, "DELAYS", (1, 2, 4, 8, 16, 32))
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: slept.append(seconds) if seconds else None)
    stream = RowStream(open_rows(server, "tar"), 8, 0)
    server.served.clear()
    server.fault = lambda: 503
    with pytest.raises(StreamError, match=r"^data: could not be read in 7 tries: ClientResponseError: 503") as error:
        next(iter(stream))
    assert "\n" not in str(error.value) and slept == [1, 2, 4, 8, 16, 32] and server.served == {503: 7}


@needs_aiohttp
@pytest.mark.parametrize(
    "status, error, message",
    [(404, StreamError, "data: cannot be read: .*part-"), (403, StreamError, "data: cannot be read: .*403")],
)
def test_errors_that_last_are_raised_at_once(server, status, error, message):
    stream = RowStream(open_rows(server, "tar"), 8, 0)
    server.served.clear()
    server.fault = lambda: status
    with pytest.raises(error, match=message):
        next(iter(stream))
    assert server.served == {status: 1}


@needs_aiohttp
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_silent_connection_is_given_up(server, monkeypatch, kind):
    monkeypatch.setattr(streams, "SILENT_SECONDS", 0.3)
    stream, stalls = RowStream(open_rows(server, kind), 8, 0), iter(["stall"])
    server.fault = lambda: next(stalls, None)
    start = time.monotonic()
    assert sorted(numbers_of(itertools.islice(stream, 40))) == list(range(40))
    assert server.served["stall"] == 1 and time.monotonic() - start < 10


@needs_aiohttp
def test_urls_are_opened_or_refused_in_one_line(server, monkeypatch):
    write_files(server.folder, "parquet")
    assert len(list(load_source(f"{server.url}/part-01.parquet?download=true"))) == 4
    assert len(list(load_source(f"{server.url}/part-0{{2..3}}.parquet"))) == 8
    with pytest.raises(ValueError, match="holds .zip files, accepted: .parquet or .tar"):
        load_source(f"{server.url}/part.zip")
    for name in ("missing.parquet", "missing.tar"):
        with pytest.raises(ValueError, match=f"data: '{server.url}/{name}' could not be opened") as error:
            load_source(f"{server.url}/{name}")
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ValueError, match="accepted: after pip install aiohttp, or a hub id"):
        load_source(f"{server.url}/part-01.parquet")


# The hub's address is read when its library is imported: another process. It does without the package's own imports,
# which take longer than all that is tested.
HUB_CLIENT = """
import itertools, json, os, sys, time, types, urllib.request
sys.modules["dinov3_hf"] = package = types.ModuleType("dinov3_hf")
package.__path__ = [os.environ["PACKAGE"]]
from dinov3_hf.data.streams import RowStream, load_source
time.sleep = lambda seconds: None
orders = {}
for kind in ("parquet", "tar", "folder"):
    column = "png" if kind == "tar" else "image"
    def read(stream):
        return [row[column]["bytes"].hex() for row in itertools.islice(stream, 50)]
    rows = load_source(f"me/{kind}", columns=[])
    assert rows.column_names == [column] and set(next(iter(rows))[column]) == {"bytes", "path"}
    whole = read(RowStream(rows, 8, 0))
    urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/fail").read()
    orders[kind] = [whole, read(RowStream(rows, 8, 0))]
    urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mend").read()
print(json.dumps(orders))
"""


def test_hub_data_sets_survive_drops(server, tmp_path):
    for kind in ("parquet", "tar", "folder"):
        write_files(tmp_path / kind, kind)
    hub = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    hub |= {"HF_HUB_DISABLE_XET": "1", "USE_TORCH": "0", "PACKAGE": dinov3_hf.__path__[0]}
    run = subprocess.run([sys.executable, "-c", HUB_CLIENT], env={**os.environ, **hub}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    for kind, (whole, disturbed) in json.loads(run.stdout.splitlines()[-1]).items():
        assert disturbed == whole, kind
        assert sorted(whole[:40]) == sorted(picture(number).hex() for number in range(40)), kind
    assert all(server.served[fault] > 2 for fault in FAULTS)


def caused(error, cause):
    error.__cause__ = cause
    return error


def answered(status):
    error = OSError("server")
    error.response = type("Response", (), {"status_code": status})
    return error


@pytest.mark.parametrize(
    "error, expected",
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError("Unexpected end of stream"), True),
        (EOFError("Compressed file ended"), True),
        (tarfile.ReadError("unexpected end of data"), True),
        (type("Broken", (Exception,), {"__module__": "aiohttp.client"})(), True),
        (answered(500), True),
        (answered(429), True),
        (answered(404), False),
        (caused(ConnectionError("Server Disconnected"), answered(401)), False),
        (caused(ConnectionError("Server Disconnected"), TimeoutError()), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError(), False),
        (KeyError(), False),
        (RuntimeError(), False),
    ],
)
def test_errors_are_told_apart(error, expected):
    assert retries.is_transient(error) is expected
