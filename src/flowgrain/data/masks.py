"""Masks: where the loss of a picture counts.

A mask is a grey picture of the picture's aspect ratio (white = train, black = ignore), the picture's own alpha channel
or a file beside it. It goes through the picture's resize and crop, with a bilinear filter instead of Lanczos, so that
its values stay between 0 and 1.
"""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowgrain.data.file_index import FileFacts
from flowgrain.data.images import MASK_ENDINGS, decode_image, open_alpha, open_image, read_bytes, sha1_of_bytes
from flowgrain.data.records import Mask, Slice
from flowgrain.errors import DataError

_BLACK = (0, 0, 0)
"""A mask's own transparent parts are ignored."""
_ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the aspect ratios of a mask and its picture: two pixels in a hundred."""


def find_mask(folder: Path, name: str) -> str | None:
    """Name of the mask file of the picture ``name`` in ``folder``: ``STEM.mask.png`` or ``STEM-masklabel.png``.

    Raises :class:`DataError` where both are there.
    """
    stem = os.path.splitext(name)[0]
    found = [stem + ending for ending in MASK_ENDINGS if os.path.lexists(folder / (stem + ending))]
    if len(found) > 1:
        raise DataError(f"{folder / name}: has two masks, {found[0]} and {found[1]}; remove one")
    return found[0] if found else None


def inspect_mask(path: Path) -> FileFacts:
    """Digest, size and brightest value of a mask file. Raises :class:`DataError` where it cannot be read."""
    data = read_bytes(path)
    image = decode_image(data, path, _BLACK)[0].convert("L")
    return FileFacts(sha1_of_bytes(data), image.width, image.height, int(np.asarray(image).max()))


def fitting_mask(path: Path, facts: FileFacts | DataError, size: tuple[int, int]) -> Mask:
    """The mask in a file; raises :class:`DataError` where it is unreadable, black or of another aspect."""
    if isinstance(facts, DataError):
        raise facts
    width, height = size
    if abs(facts.width * height - facts.height * width) > _ASPECT_TOLERANCE * facts.height * width:
        raise DataError(
            f"{path}: a mask of {facts.width}x{facts.height} px for a picture of {width}x{height}: another aspect ratio"
        )
    if facts.peak == 0:
        raise DataError(f"{path}: a mask that is black everywhere leaves nothing to train on")
    return Mask(path, False, facts.digest)


def read_mask(item: Slice, flip: bool) -> Float[Tensor, "h w"] | None:
    """The mask of a slice in [0, 1] at its bucket's size, mirrored where asked; None where all of it counts.

    Raises :class:`DataError` where the file changed or cannot be read.
    """
    if item.mask is None:
        return None
    grey = open_alpha(item.mask.path) if item.mask.from_alpha else open_image(item.mask.path, _BLACK).convert("L")
    if grey is None:
        raise DataError(f"{item.mask.path}: has lost its alpha channel since the data set was opened; start again")
    across, down = item.bucket
    grey = grey.resize(item.crop.resize if item.crop else item.bucket, Image.Resampling.BILINEAR)
    if item.crop is not None:
        grey = grey.crop((item.crop.left, item.crop.top, item.crop.left + across, item.crop.top + down))
    values = torch.from_numpy(np.asarray(grey).astype(np.float32) / 255.0)
    return values.flip(-1) if flip else values
