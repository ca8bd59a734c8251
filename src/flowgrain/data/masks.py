"""Masks: where the loss of a picture counts.

A mask is a grey picture of the picture's aspect ratio (white = train, black = ignore), the picture's own alpha channel
or a file beside it. It goes through the picture's resize and crop, with a bilinear filter instead of Lanczos, so that
its values stay between 0 and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowgrain.data.collections import Item
from flowgrain.data.collections.base import stem_of
from flowgrain.data.file_index import FileFacts, FileIndex
from flowgrain.data.images import MASK_ENDINGS, decode_image, sha1_of_bytes
from flowgrain.data.records import Mask, Slice
from flowgrain.errors import DataError

_BLACK = (0, 0, 0)
"""A mask's own transparent parts are ignored."""
_ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the aspect ratios of a mask and its picture: two pixels in a hundred."""


def mask_suffix(item: Item) -> str | None:
    """Ending of the mask file beside a picture: ``.mask.png`` or ``-masklabel.png``; None without one.

    Raises :class:`DataError` where both are there.
    """
    found = [ending for ending in MASK_ENDINGS if item.has(ending)]
    if len(found) > 1:
        stem = PurePath(stem_of(item.name)).name
        raise DataError(f"{item.place()}: has two masks, {stem}{found[0]} and {stem}{found[1]}; remove one")
    return found[0] if found else None


def mask_beside(item: Item) -> tuple[str, bytes] | None:
    """(suffix, bytes) of the mask file beside a picture, None without one. Raises :class:`DataError`."""
    suffix = mask_suffix(item)
    if suffix is None:
        return None
    data = item.beside(suffix)
    if data is None:
        raise DataError(f"{item.place(suffix)}: no such file")
    return suffix, data


def inspect_mask(item: Item) -> FileFacts:
    """Digest, size and brightest value of a mask file. Raises :class:`DataError` where it cannot be read."""
    data = item.read()
    return facts_of_mask(decode_image(data, Path(item.place()), _BLACK)[0].convert("L"), data)


def facts_of_mask(grey: Image.Image, data: bytes) -> FileFacts:
    """The facts of a mask that is decoded already; ``data`` are the bytes of its file."""
    return FileFacts(sha1_of_bytes(data), grey.width, grey.height, int(np.asarray(grey).max()))


def fitting_mask(path: Path, facts: FileFacts | DataError, size: tuple[int, int]) -> FileFacts:
    """The facts of a mask that can be used for a picture of ``size`` (width, height); ``path`` is named in errors.

    Raises :class:`DataError` where it is unreadable, black or of another aspect.
    """
    if isinstance(facts, DataError):
        raise facts
    width, height = size
    if abs(facts.width * height - facts.height * width) > _ASPECT_TOLERANCE * facts.height * width:
        raise DataError(
            f"{path}: a mask of {facts.width}x{facts.height} px for a picture of {width}x{height}: another aspect ratio"
        )
    if facts.peak == 0:
        raise DataError(f"{path}: a mask that is black everywhere leaves nothing to train on")
    return facts


@dataclass(frozen=True)
class MaskFile:
    """A mask file and what is known of it: facts, or why it cannot be used."""

    file: Item
    facts: FileFacts | DataError

    def fitted(self, size: tuple[int, int]) -> Mask:
        """The mask of a picture of ``size`` (width, height). Raises as :func:`fitting_mask`."""
        return Mask(self.file, False, fitting_mask(Path(self.file.place()), self.facts, size).digest)


def mask_files(items: Sequence[Item], index: FileIndex) -> dict[str, MaskFile]:
    """The mask file of each picture that has one, by the picture's name."""
    found: dict[str, Item] = {}
    masks: dict[str, MaskFile] = {}
    for item in items:
        try:
            suffix = mask_suffix(item)
        except DataError as error:
            masks[item.name] = MaskFile(item, error)
        else:
            if suffix is not None:
                found[item.name] = item.neighbour(suffix)
    facts = index.facts(list(found.values()), inspect_mask)
    known = zip(found.items(), facts, strict=True)
    return masks | {name: MaskFile(file, each) for (name, file), each in known}


def read_mask(item: Slice, flip: bool) -> Float[Tensor, "h w"] | None:
    """The mask of a slice in [0, 1] at its bucket's size, mirrored where asked; None where all of it counts.

    Raises :class:`DataError` where the file changed or cannot be read.
    """
    if item.mask is None:
        return None
    file = item.mask.file
    image, alpha = decode_image(file.read(), Path(file.place()), _BLACK)
    grey = alpha if item.mask.from_alpha else image.convert("L")
    if grey is None:
        raise DataError(f"{file.place()}: has lost its alpha channel since the data set was opened; start again")
    across, down = item.bucket
    grey = grey.resize(item.crop.resize if item.crop else item.bucket, Image.Resampling.BILINEAR)
    if item.crop is not None:
        grey = grey.crop((item.crop.left, item.crop.top, item.crop.left + across, item.crop.top + down))
    values = torch.from_numpy(np.asarray(grey).astype(np.float32) / 255.0)
    return values.flip(-1) if flip else values
