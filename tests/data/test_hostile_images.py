"""Odd, damaged and hostile files: the pixels a viewer shows, or a reason, found when the folder is opened."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from flowgrain.data.dataset import DataConfig, open_dataset
from flowgrain.data.images import check_whole, decode_image, list_images, open_alpha, open_image, sha1_of
from flowgrain.errors import DataError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
CORNERS = np.array([[10, 80, 80], [150, 80, 80], [220, 80, 80]], np.uint8)
"""Grey values with different corners, so that all 8 orientations differ."""
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}
"""What the EXIF standard asks a viewer to do with the stored rows, by orientation."""


def encoded(kind: str, image: Image.Image = NOISE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(tmp_path / "a.png", exif=exif)
    seen = np.asarray(open_image(tmp_path / "a.png"))
    assert np.array_equal(seen[..., 0], UPRIGHT[orientation](CORNERS))
    alpha = Image.fromarray(np.stack([CORNERS, CORNERS], -1), "LA")
    alpha.save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(np.asarray(open_alpha(tmp_path / "b.png")), UPRIGHT[orientation](CORNERS))


def test_a_profile_with_other_primaries_is_converted(tmp_path):
    """Swapped red and green primaries: the colours a viewer shows are swapped too."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    described = bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    described = described.replace(b"sRGB built-in", b"swap built-in")
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=described)
    red_seen, green_seen, blue_seen = open_image(tmp_path / "a.png").getpixel((1, 1))
    assert green_seen > 250 and red_seen < 5 and blue_seen < 5


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.jpg", b"", "empty (0 bytes)"),
        ("page.jpg", b"\n<!DOCTYPE html><html>404</html>", "HTML page"),
        ("text.webp", b"hello", "not an image that can be read"),
        ("cut.jpg", encoded("JPEG", quality=95)[:-400], "truncated"),
        ("cut.png", encoded("PNG")[:-400], "truncated"),
        ("cut.webp", encoded("WEBP", lossless=True)[:-400], ""),
        ("cut.gif", encoded("GIF")[:-600], "truncated"),
        ("bomb.png", bomb(), "pixels; scale it down first"),
        ("lie.png", bomb(64), "truncated"),
    ],
)
def test_bad_files_are_quarantined_at_opening(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    dataset = open_dataset(DataConfig(path=tmp_path, resolution=32), 16)
    assert [s.image for s in dataset.slices] == ["good.png"]
    [(path, reason)] = dataset.problems
    assert path.name == name and words in reason and str(tmp_path) not in reason and "\n" not in reason


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "round.jpg").symlink_to(tmp_path / "round.jpg")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked.png").symlink_to(tmp_path / "folder.jpg" / "inside.png")
    dataset = open_dataset(DataConfig(path=tmp_path, resolution=32), 16)
    assert [s.image for s in dataset.slices] == ["folder.jpg/inside.png", "linked.png"]
    reasons = {path.name: reason for path, reason in dataset.problems}
    assert set(reasons) == {"pipe.jpg", "gone.jpg", "round.jpg"}
    assert reasons["pipe.jpg"] == "not a regular file" and reasons["gone.jpg"] == "no such file"
    for read in (open_image, sha1_of):
        with pytest.raises(DataError, match=r"pipe\.jpg: not a regular file"):
            read(tmp_path / "pipe.jpg")


def test_a_pipe_as_caption(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "b.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "a.txt")
    dataset = open_dataset(DataConfig(path=tmp_path, resolution=32), 16)
    assert [(p.name, r) for p, r in dataset.problems] == [("a.png", "a.txt: cannot be read (not a regular file)")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "b.png").write_bytes(encoded("PNG"))
    (tmp_path / "a.png").chmod(0)
    [(path, reason)] = open_dataset(DataConfig(path=tmp_path, resolution=32), 16).problems
    assert path.name == "a.png" and "Permission denied" in reason


def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))

    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/sub"))
        yield from ()

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(DataError, match="sub: the folder cannot be read"):
        list_images(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_check_whole_finds_every_shortened_file(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(kind, **options)
    assert check_whole(data, tmp_path / "x") == NOISE.size
    for length in range(0, len(data) - 8, max(len(data) // 40, 1)):
        with pytest.raises(DataError):
            check_whole(data[:length], tmp_path / "x")


def test_check_whole_finds_a_flipped_bit(tmp_path):
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 4
    with pytest.raises(DataError, match="damaged"):
        check_whole(bytes(data), tmp_path / "x")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0.05, 1),
)
def test_any_damage_gives_a_picture_or_a_data_error(tmp_path, kind, edits, cut):
    data = bytearray(encoded(kind))
    for place, value in edits:
        data[int(place * len(data))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, _ = decode_image(bytes(data[: int(cut * len(data))]), tmp_path / "x")
        except DataError as error:
            assert str(error).startswith(str(tmp_path / "x")) and "\n" not in str(error)
        else:
            assert image.mode == "RGB"
