"""Masks of source images: grey pictures of what counts, cut along with the slices."""

from pathlib import Path

from PIL import Image

from flowgrain.data.collections import Item
from flowgrain.data.images import decode_image, sha1_of_bytes
from flowgrain.data.masks import facts_of_mask, fitting_mask, mask_beside
from flowgrain.slices.cutting import Cuts, outside_mask, render_mask

_BLACK = (0, 0, 0)


def mask_digest(item: Item) -> str:
    """SHA-1 of the mask file beside an image, empty without one. Raises :class:`flowgrain.errors.DataError`."""
    found = mask_beside(item)
    return "" if found is None else sha1_of_bytes(found[1])


def read_mask_beside(item: Item, size: tuple[int, int]) -> Image.Image | None:
    """The mask file of an image of ``size`` (width, height), grey, white = train; None where it has none.

    Raises :class:`flowgrain.errors.DataError` for a mask that cannot be read, is black or of another shape.
    """
    found = mask_beside(item)
    if found is None:
        return None
    suffix, data = found
    path = Path(item.place(suffix))
    grey = decode_image(data, path, _BLACK)[0].convert("L")
    fitting_mask(path, facts_of_mask(grey, data), size)
    return grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR)


def without_masked(cuts: Cuts, mask: Image.Image) -> Cuts:
    """Without the slices that show nothing of the mask."""
    shown = {r.slice_id for r in cuts.records if render_mask(mask, r).getbbox() is not None}
    kept = (record for record in cuts.records if record.slice_id in shown)
    return Cuts(
        # framing may show a corner of the mask in a slice whose parent shows none
        tuple(r if r.parent in shown else r.model_copy(update={"parent": None}) for r in kept),
        cuts.rejects + tuple(outside_mask(r) for r in cuts.records if r.slice_id not in shown),
    )
