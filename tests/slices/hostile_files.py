"""Five hundred files of the kinds that break pipelines."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

LONG = "x" * 200
SCRIPTS = (
    "ελληνικά", "кириллица", "עברית", "العربية", "हिन्दी", "中文图片", "日本語", "한국어", "ไทย", "emoji 🦊🐉",
    "combining e\u0301", "rtl \u202e gnp", "space  two", "quote'\"", "semi;colon", "per%cent", "hash#tag", "tab\tname",
    "line\nbreak", "dot.dot.dot", "-rf", "star*", "question?", "[brackets]", "line\u2028separator", "a" * 120,
)  # fmt: skip


def encoded(kind: str, image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = (150, 140), mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1}[mode]
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    return Image.fromarray(small.squeeze(), mode).resize(size, Image.Resampling.BICUBIC)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def text_bomb() -> bytes:
    """A PNG with a comment that unpacks to 200 MB."""
    whole = encoded("PNG", noise(1))
    comment = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000)))
    return whole[:33] + comment + whole[33:]


def hostile_files(folder: Path, count: int = 500) -> set[str]:
    """Write ``count`` files and return the names of those that are read as pictures by their extension."""
    written: dict[str, bytes] = {}
    jpg, png, webp = (encoded(kind, noise(7)) for kind in ("JPEG", "PNG", "WEBP"))
    exif = Image.Exif()
    exif[0x0112] = 6
    broken_exif = encoded("JPEG", noise(3), exif=b"Exif\0\0" + b"\xff" * 60)
    frames = [noise(seed) for seed in range(4)]
    animated = encoded("GIF", frames[0], save_all=True, append_images=frames[1:])
    whole = {
        "cmyk.jpg": encoded("JPEG", noise(1, mode="CMYK")),
        "turned.jpg": encoded("JPEG", noise(2), exif=exif),
        "odd exif.jpg": broken_exif,
        "animated.gif": animated,
        "animated.webp": encoded("WEBP", frames[0], save_all=True, append_images=frames[1:]),
        "palette.png": encoded("PNG", noise(4).convert("P")),
        "bilevel.png": encoded("PNG", noise(5).convert("1")),
        "sixteen.png": encoded("PNG", Image.fromarray(np.full((140, 150), 40_000, np.uint16))),
        "alpha.png": encoded("PNG", noise(6, mode="RGBA")),
        "grey.tif": encoded("TIFF", noise(8).convert("L")),
        "float.tif": encoded("TIFF", noise(8).convert("F")),
        "one pixel.png": encoded("PNG", Image.new("RGB", (1, 1))),
        "line.png": encoded("PNG", Image.new("RGB", (30_000, 1))),
        "panorama.png": encoded("PNG", noise(9, (30_000, 140)), compress_level=1),
        "bomb.png": bomb(60_000),
        "just too large.png": bomb(13_400),
        "lie.png": bomb(300),
        "text bomb.png": text_bomb(),
        "zero.jpg": b"",
        "one byte.png": b"\x89",
        "page.webp": b"<!DOCTYPE html><html><body>404</body></html>",
        "archive.png": b"PK\x03\x04" + bytes(100),
        "program.jpg": b"\x7fELF" + bytes(500),
        "pdf.jpg": b"%PDF-1.4\n",
        "really png.jpg": png,
        "really jpg.png": jpg,
        "UPPER.JPG": jpg,
        "two.ends.png.jpg": jpg,
        f"{LONG}.png": png,
    }
    written |= whole
    written |= {f"{name}.png": encoded("PNG", noise(50 + index)) for index, name in enumerate(SCRIPTS)}
    sources = {"jpg": jpg, "png": png, "webp": webp, "gif": animated}
    rng = np.random.default_rng(0)
    index = 0
    while len(written) < count - 8:
        extension = ("jpg", "png", "webp", "gif")[index % 4]
        data = bytearray(sources[extension])
        if index % 2:
            data = data[: rng.integers(1, len(data))]
        else:
            for place in rng.integers(0, len(data), 1 + index % 30):
                data[place] = rng.integers(0, 256)
        written[f"damaged/{index:03d}.{extension}"] = bytes(data)
        index += 1
    for name, data in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return set(written) | _special(folder)


def _special(folder: Path) -> set[str]:
    """What is no file, links in circles, and a name that is no text."""
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "linked.png").symlink_to(folder / "alpha.png")
    names = {"pipe.jpg", "gone.png", "round.png", "device.png", "linked.png"}
    if sys.platform == "linux":
        raw = os.fsencode(folder) + b"/caf\xe9.png"
        with open(raw, "wb") as stream:
            stream.write((folder / "alpha.png").read_bytes())
        names.add(os.fsdecode(b"caf\xe9.png"))
    return names
