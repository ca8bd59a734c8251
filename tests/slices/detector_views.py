"""What detectors are shown in tests, and what holds of all that look at several regions at once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgrain.data.collections import Folder, Item
from flowgrain.slices.detectors import View


def view_of(image, region=None):
    whole = (0.0, 0.0, float(image.width), float(image.height))
    return View(image, region or whole, Item(Folder(Path("nowhere")), "fox.png"))


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def check_batches(build):
    """Detectors that ``build`` makes find the same in a region whatever else is in the batch."""
    views = [view_of(noise(100, 70, seed)) for seed in range(3)]
    views[1:1] = [view_of(noise(60, 90, 9)), view_of(noise(100, 70, 8), (0.0, 0.0, 50.0, 35.0))]
    single = [build(batch_size=1).detect(view) for view in views]
    several = build(batch_size=4).detect_all(views)
    assert any(single)
    for alone, together in zip(single, several, strict=True):
        assert [item.label for item in alone] == [item.label for item in together]
        for one, other in zip(alone, together, strict=True):
            assert one.box == pytest.approx(other.box, abs=1e-4 * 100)
            assert one.score == pytest.approx(other.score, abs=1e-4)


def check_boxes(found, boxes, scores, corner):
    """``found`` has these scores and boxes of the region whose upper left corner is given, in order."""
    assert np.array([item.score for item in found]) == pytest.approx(scores, abs=1e-6)
    assert np.array([item.box for item in found]) == pytest.approx(boxes + np.array([*corner, *corner]), abs=1e-4)
