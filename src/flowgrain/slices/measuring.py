"""What is measured of a slice's pixels while they are at hand: for the data report, never for decisions."""

import imagehash
from PIL import Image, ImageFilter, ImageStat

from flowgrain.slices.store import SliceFacts

_LAPLACIAN = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)


def measured(picture: Image.Image) -> SliceFacts:
    """Perceptual hash and sharpness of a slice."""
    return SliceFacts(phash=str(imagehash.phash(picture)), sharpness=round(sharpness(picture), 3))


def sharpness(picture: Image.Image) -> float:
    """Standard deviation of the Laplacian (four neighbours) of the grey values: near 0 where a picture is blurred.

    Values beyond -128 to 127 are clipped, which only the hardest edges reach.
    """
    grey = picture.convert("L")
    if min(grey.size) < 3:
        return 0.0
    edges = grey.filter(_LAPLACIAN).crop((1, 1, grey.width - 1, grey.height - 1))  # Pillow copies the border
    return float(ImageStat.Stat(edges).stddev[0])
