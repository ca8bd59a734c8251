"""The only door to pixels: every image that flowgrain reads comes through :func:`open_image`.

An image leaves here as 8-bit sRGB, upright, without alpha, whatever it was on disk, or not at all:
a file that cannot be trusted raises a :class:`DataError` with its name and the reason.
"""

import hashlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from flowgrain.errors import DataError

Colour = tuple[int, int, int]

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels: the number at which Pillow itself calls a file a decompression bomb."""
WHITE: Colour = (255, 255, 255)
MASK_ENDINGS = (".mask.png", "-masklabel.png")
"""Files with these endings are masks of the picture of the same stem (the second is OneTrainer's name)."""

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def list_images(folder: Path, unreadable: list[tuple[str, str]] | None = None) -> list[Path]:
    """Image files in ``folder`` and its subfolders by extension, sorted by their path in it, '/' separated.

    Hidden files and folders (a leading dot) and masks (``MASK_ENDINGS``) are skipped and linked folders not entered.
    Folders in it that cannot be read are put in ``unreadable`` with their reasons; without it they are errors.
    Raises :class:`DataError` where the folder does not exist, cannot be read or holds no image.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; give a folder of images")
    found: list[Path] = []

    def skip_folder(error: OSError) -> None:
        if unreadable is None or error.filename == str(folder):
            raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror})")
        unreadable.append((os.path.relpath(error.filename, folder), f"the folder cannot be read ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=skip_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in files if not name.startswith("."))
        found += [Path(parent, name) for name in visible if is_picture(name)]
    if not found:
        known = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"{folder}: no image in this folder or below it; files ending in {known} are read")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture: by its extension, masks excepted."""
    lower = name.lower()
    return os.path.splitext(lower)[1] in EXTENSIONS and not lower.endswith(MASK_ENDINGS)


def sha1_of(path: Path) -> str:
    """SHA-1 of a file's bytes, 40 hex digits. Raises :class:`DataError` where it cannot be read."""
    try:
        _check_regular(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha1").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def sha1_of_bytes(data: bytes) -> str:
    """SHA-1 of bytes, 40 hex digits."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises :class:`DataError` where it cannot be read or is no regular file (a pipe, a folder)."""
    try:
        _check_regular(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def open_image(path: Path, background: Colour = WHITE) -> Image.Image:
    """The image as upright 8-bit sRGB.

    EXIF orientation is applied, an embedded colour profile is converted to sRGB where Pillow can, transparency is
    flattened over ``background``, 16-bit grey is scaled to 8 bits, and of an animation the first frame is taken.
    Raises :class:`DataError` for a missing, foreign, damaged, truncated or oversized (``MAX_PIXELS``) file.
    """
    with _opened(path) as image:
        return _to_rgb(_upright(image), background, path)


def decode_image(data: bytes, path: Path, background: Colour = WHITE) -> tuple[Image.Image, Image.Image | None]:
    """The image in ``data`` as :func:`open_image` gives it, and its alpha channel (mode L), None where it has none.

    ``path`` is named in errors, which are those of :func:`open_image`.
    """
    with _opened(path, data) as image:
        image = _upright(image)
        return _to_rgb(image, background, path), _alpha(image)


def open_alpha(path: Path) -> Image.Image | None:
    """The upright alpha channel (mode L), None where the file has no transparency. Raises as :func:`open_image`."""
    with _opened(path) as image:
        return _alpha(_upright(image))


def check_whole(data: bytes, path: Path) -> tuple[int, int]:
    """(width, height) of a file that flowgrain wrote; raises :class:`DataError` where it is damaged or cut short.

    Cheaper than decoding where the format allows it: checksums of a PNG, the length of a WebP; others are decoded.
    """
    with _opened(path, data) as image:
        size = image.size
        if image.format == "PNG":
            image.verify()
        elif image.format == "WEBP":
            if len(data) < int.from_bytes(data[4:8], "little") + 8:
                raise DataError(f"{path}: damaged or truncated image (shorter than its header says)")
        else:
            image.load()
        return size


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Pixels of an RGB image as float32 in [-1, 1], channels first."""
    pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def from_tensor(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """RGB image of values in [-1, 1]; what lies outside is clipped. Inverse of :func:`to_tensor`."""
    scaled = (pixels.detach().to("cpu", torch.float32).clamp(-1, 1) + 1.0) * 127.5
    return Image.fromarray(scaled.round().to(torch.uint8).permute(1, 2, 0).numpy())


@contextmanager
def _opened(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """The image of ``path`` (or of ``data``), not yet decoded; whatever goes wrong with it becomes a DataError."""
    try:
        if data is None:
            _check_regular(path)
        with warnings.catch_warnings():
            # between half of MAX_PIXELS and MAX_PIXELS Pillow only warns; our own limit decides below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if data is None else io.BytesIO(data)) as image:
                _check_size(path, image)
                yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: more than {MAX_PIXELS} pixels; scale it down first") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: {_what_it_is(path if data is None else data)}") from None
    except Exception as error:  # decoders raise almost anything (SyntaxError, struct.error, ...) on damaged bytes
        raise DataError(f"{path}: damaged or truncated image ({' '.join(str(error).split())})") from error


def _check_regular(path: Path) -> None:
    """Refuse pipes, devices and folders before they are opened: opening a pipe would wait for a writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: not a regular file")


def _what_it_is(file: Path | bytes) -> str:
    """Why a file is no image, as far as its first bytes tell."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            start = stream.read(256)
    else:
        start = file[:256]
    if not start:
        return "not an image: the file is empty (0 bytes)"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "not an image but an HTML page, probably a failed download"
    return "not an image that can be read, or damaged at its start"


def _check_size(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{path}: {image.width}x{image.height} is more than {MAX_PIXELS} pixels; scale it down first")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError):
        return image.copy()  # damaged EXIF says nothing about orientation, and the pixels were decoded without error


def _alpha(image: Image.Image) -> Image.Image | None:
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _to_rgb(image: Image.Image, background: Colour, path: Path) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        image = _eight_bit(image, path)
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no agreed range; save the image with 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        alpha = layered.getchannel("A")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(_to_srgb(layered.convert("RGB"), profile), mask=alpha)
        return canvas
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    pixels = _to_srgb(image, profile).convert("RGB")
    pixels.info = {}  # Pillow would write profiles (one made here holds the time) and the like into every copy
    return pixels


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{path}: 32-bit pixels have no agreed range; save the image with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert from an embedded profile; an unusable or already-sRGB one leaves the pixels as they are."""
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return image  # the file's profile is broken or of another colour model: read the plain numbers, as viewers do
    return converted if converted is not None else image
