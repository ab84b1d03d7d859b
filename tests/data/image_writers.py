"""Writers of image files that Pillow does not write: odd depths, tags and layouts of TIFF and PNG."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def save(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, tags=None, kind=1, bits=None, photometric=1, order="<", deflated=False):
    """A plain TIFF file of one strip; `kind` is its SampleFormat (1 unsigned, 2 signed, 3 float)."""
    values = np.ascontiguousarray(values)
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        nibbles = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
        data = b"".join(np.packbits(row).tobytes() for row in nibbles.reshape(values.shape[0], -1))
    data = zlib.compress(data) if deflated else data
    bits = bits or values.dtype.itemsize * 8
    entries = {
        256: values.shape[1],
        257: values.shape[0],
        259: 8 if deflated else 1,
        262: photometric,
        277: channels,
        278: len(values),
    }
    entries |= {258: (bits,) * channels, 273: 0, 279: len(data), 339: (kind,) * channels} | (tags or {})
    start, extra, body = 8 + 2 + 12 * len(entries) + 4, b"", b""
    sizes = {number: len(np.atleast_1d(value)) for number, value in entries.items()}
    more = sum(
        (4 if isinstance(np.atleast_1d(v)[0], np.floating) else 2) * sizes[n]
        for n, v in entries.items()
        if sizes[n] > 2
    )
    entries[273] = start + more
    for number in sorted(entries):
        found = np.atleast_1d(entries[number])
        letter, code = ("f", 11) if found.dtype.kind == "f" else ("I", 4) if found.max() > 65535 else ("H", 3)
        packed = struct.pack(f"{order}{len(found)}{letter}", *found.tolist())
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", start + len(extra)), extra + packed
        body += struct.pack(f"{order}HHI", number, code, len(found)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    assert len(extra) == more
    return head + body + bytes(4) + extra + data


def planes(values, deflated=False):
    """The same, with each of three colours in a strip of its own."""
    strips = [np.ascontiguousarray(values[..., colour]).tobytes() for colour in range(3)]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    height, width = values.shape[:2]
    entries = {256: width, 257: height, 259: 8 if deflated else 1, 262: 2, 277: 3, 278: height, 284: 2, 339: 1}
    after = 8 + 2 + 12 * (len(entries) + 3) + 4
    places = [after + 30 + sum(map(len, strips[:number])) for number in range(3)]
    lines = {number: struct.pack("<HHIHH", number, 3, 1, value, 0) for number, value in entries.items()}
    for number, code, place in ((258, 3, after), (273, 4, after + 6), (279, 4, after + 18)):
        lines[number] = struct.pack("<HHII", number, code, 3, place)
    extra = struct.pack("<3H3I3I", *[values.dtype.itemsize * 8] * 3, *places, *map(len, strips))
    body = b"".join(lines[number] for number in sorted(lines))
    return struct.pack("<2sHIH", b"II", 42, 8, len(lines)) + body + bytes(4) + extra + b"".join(strips)


# Adam7: first row and column, and the steps of each pass.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values, colour, bits, chunks=(), interlaced=False):
    """A plain PNG file; `chunks` are pairs of name and data, written before the pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def lines(pixels):
        rows = pixels.reshape(len(pixels), -1).astype(">u2" if bits == 16 else np.uint8)
        if bits < 8:
            digits = np.unpackbits(rows[..., None], axis=2)[..., 8 - bits :].reshape(len(rows), -1)
            rows = np.packbits(digits, axis=1)
        return b"".join(b"\0" + row.tobytes() for row in rows)

    parts = [values[a::c, b::d] for a, b, c, d in PASSES] if interlaced else [values]
    data = b"".join(lines(part) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)
