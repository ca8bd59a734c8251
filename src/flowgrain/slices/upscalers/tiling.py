"""A network over a picture of any size in bounded memory: overlapping tiles, their margins faded into one another."""

import itertools

import numpy as np
from PIL import Image

from flowgrain.slices.upscalers.base import Network

FADE = 8
"""Input pixels over which a tile is faded into its neighbours: a network may reach farther than the overlap, and what
differs because of that should not end in an edge."""


def enlarge(image: Image.Image, network: Network, tile: int, overlap: int) -> Image.Image:
    """An RGB image, ``network.factor`` times as large.

    The network sees the image in tiles of at most ``tile`` pixels, each with ``overlap`` more on every side (and what
    is faded) where the image has them; a side no longer than all of that is not divided. With
    ``overlap >= network.reach`` the result is that of the whole image to within 1/255. Besides the two images, memory
    holds one tile and what the network needs for it.
    """
    factor = network.factor
    result = Image.new("RGB", (image.width * factor, image.height * factor))
    most = tile + FADE + 2 * overlap
    for top, bottom in spans(image.height, image.height if image.height <= most else tile):
        for left, right in spans(image.width, image.width if image.width <= most else tile):
            # the part that is kept begins within the tile before, and is faded in from there
            kept = (left and left - FADE, top and top - FADE, right, bottom)
            seen = (
                max(kept[0] - overlap, 0),
                max(kept[1] - overlap, 0),
                min(right + overlap, image.width),
                min(bottom + overlap, image.height),
            )
            pixels = np.asarray(image.crop(seen), dtype=np.float32) / np.float32(255)
            x, y = (kept[0] - seen[0]) * factor, (kept[1] - seen[1]) * factor
            width, height = (right - kept[0]) * factor, (bottom - kept[1]) * factor
            large = network.run(pixels)[y : y + height, x : x + width]
            part = Image.fromarray(np.rint(large.clip(0, 1) * 255).astype(np.uint8))
            result.paste(part, (kept[0] * factor, kept[1] * factor), _fade(part.size, left > 0, top > 0, factor))
    return result


def spans(length: int, most: int) -> list[tuple[int, int]]:
    """[0, length) in the fewest parts of at most ``most``, as equal as whole numbers allow."""
    parts = -(-length // most)
    ends = [length * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(ends))


def _fade(size: tuple[int, int], left: bool, top: bool, factor: int) -> Image.Image:
    """How much of a tile is painted over what is there, 0 to 255: rising from its left and its top edge."""
    ramp = (np.arange(FADE * factor) + 0.5) / (FADE * factor)
    across, down = np.ones(size[0]), np.ones(size[1])
    if left:
        across[: len(ramp)] = ramp[: size[0]]
    if top:
        down[: len(ramp)] = ramp[: size[1]]
    return Image.fromarray(np.rint(255 * down[:, None] * across[None, :]).astype(np.uint8))
