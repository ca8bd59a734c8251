"""Captions for what was cut: which images and slices are asked about, and what becomes of the answers."""

import math
from collections.abc import Sequence

from PIL import Image

from flowgrain.data.records import SliceRecord
from flowgrain.slices.captioners.base import Captioner, CaptionRequest
from flowgrain.slices.finding import WHOLE_IMAGE

CAPTIONER_SOURCE = "model"
"""The ``caption_source`` of a slice whose caption a captioner wrote."""
_OWN = "sidecar"


def caption_roots(
    captioner: Captioner, names: Sequence[str], images: Sequence[Image.Image], written: Sequence[str | None]
) -> list[str | None]:
    """The caption of each upright image: what is ``written`` beside it, or the captioner's where it is to write one."""
    wanted = [
        index for index, text in enumerate(written) if captioner.roots and (captioner.when == "always" or not text)
    ]
    requests = [CaptionRequest(names[i], images[i], root_caption=written[i]) for i in wanted]
    captions = list(written)
    for index, caption in zip(wanted, captioner.caption_all(requests), strict=True):
        captions[index] = caption or captions[index]
    return captions


def caption_slices(
    captioner: Captioner,
    images: Sequence[Image.Image],
    records: Sequence[Sequence[SliceRecord]],
    roots: Sequence[str | None],
) -> list[tuple[SliceRecord, ...]]:
    """The records of each image, with the captioner's captions where it is to write them.

    ``roots``: the captions of the images. A slice that shows its whole image keeps that one's.
    """
    wanted = [
        (image, number)
        for image, cut in enumerate(records)
        for number, record in enumerate(cut)
        if captioner.slices
        and record.detector != WHOLE_IMAGE
        and (captioner.when == "always" or record.caption_source != _OWN)
    ]
    requests = [_request(images[image], records[image][number], roots[image]) for image, number in wanted]
    result = [list(cut) for cut in records]
    for (image, number), caption in zip(wanted, captioner.caption_all(requests), strict=True):
        if caption:
            update = {"caption": caption, "caption_source": CAPTIONER_SOURCE}
            result[image][number] = result[image][number].model_copy(update=update)
    return [tuple(cut) for cut in result]


def _request(image: Image.Image, record: SliceRecord, root_caption: str | None) -> CaptionRequest:
    x0, y0, x1, y1 = record.crop
    picture = image.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
    return CaptionRequest(record.image, picture, image, root_caption, record.level, record.label, record.granularity)
