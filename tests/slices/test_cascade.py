"""Cascades: found by name or path, in the region's own pixels, with scores that follow the margin."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import ModelError
from flowgrain.slices.detectors import DetectorContext, View
from flowgrain.slices.detectors.cascade import NAMES, CascadeConfig, score_of
from flowgrain.slices.framing import iou

cv2 = pytest.importorskip("cv2", reason="needs the extra cascade")
skimage_data = pytest.importorskip("skimage.data")
FACE = (182.0, 75.0, 268.0, 178.0)
"""The astronaut's face, measured by hand."""


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(skimage_data.astronaut())


def view_of(image, region=None):
    return View(image, region or (0.0, 0.0, float(image.width), float(image.height)), Item(Folder(Path("x")), "a.png"))


def build(tmp_path, **settings):
    return CascadeConfig(**settings).build(DetectorContext(tmp_path, "micro", 9, threads=1))


def test_the_face_of_a_portrait_in_any_region_and_at_any_size(astronaut, tmp_path):
    (whole,) = build(tmp_path).detect(view_of(astronaut))
    assert whole.label == "face" and whole.score > 0.8 and iou(whole.box, FACE) > 0.6
    (part,) = build(tmp_path).detect(view_of(astronaut, (100.0, 20.0, 350.0, 300.0)))
    assert iou(part.box, FACE) > 0.6
    (shrunk,) = build(tmp_path, working_side=256).detect(view_of(astronaut))
    assert iou(shrunk.box, FACE) > 0.6
    assert build(tmp_path).detect(view_of(astronaut, (300.0, 300.0, 512.0, 512.0))) == []


def test_repeats_itself_and_ignores_what_lies_outside(astronaut, tmp_path):
    detector, region = build(tmp_path, name="eye"), (150.0, 40.0, 300.0, 200.0)
    first = detector.detect(view_of(astronaut, region))
    assert [found.label for found in first] == ["eye", "eye"]
    blacked = Image.new("RGB", astronaut.size)
    blacked.paste(astronaut.crop((150, 40, 300, 200)), (150, 40))
    assert detector.detect(view_of(blacked, region)) == first == detector.detect(view_of(astronaut, region))


def test_min_neighbors_drops_and_min_size_bounds(astronaut, tmp_path):
    loose = build(tmp_path, name="eye", min_neighbors=1).detect(view_of(astronaut))
    strict = build(tmp_path, name="eye", min_neighbors=8).detect(view_of(astronaut))
    assert len(loose) > len(strict)
    assert [found.score for found in loose] == sorted((found.score for found in loose), reverse=True)
    assert build(tmp_path, min_size=0.5).detect(view_of(astronaut)) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_cascade_of_the_package(name, tmp_path):
    detector = build(tmp_path, name=name)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    assert all(0.5 <= found.score < 1 for found in detector.detect(view_of(noise)))
    assert detector.detect(view_of(Image.new("RGB", (3, 2)))) == []


def test_an_lbp_cascade_by_its_path(astronaut, tmp_path):
    text = Path(skimage_data.lbp_frontal_face_cascade_filename()).read_text()
    (tmp_path / "lbp_face.xml").write_text(text.replace("featuhreParams", "featureParams"))  # scikit-image's slip
    detector = build(tmp_path, name="lbp_face.xml", min_size=0.1)
    assert any(
        iou(found.box, FACE) > 0.5 and found.label == "lbp_face" for found in detector.detect(view_of(astronaut))
    )
    other = build(tmp_path, name=str(tmp_path / "lbp_face.xml"), label="person's face")
    assert other.detect(view_of(astronaut))[0].label == "person's face"
    assert detector.fingerprint() == other.fingerprint() != build(tmp_path).fingerprint()


def test_files_that_are_no_cascade(tmp_path):
    with pytest.raises(ModelError, match=r"no file .*gone\.xml; name an XML file, or one of face"):
        build(tmp_path, name="gone.xml")
    for text in ("", "<?xml version='1.0'?><a/>", "hello", "<opencv_storage><cascade></cascade></opencv_storage>"):
        (tmp_path / "bad.xml").write_text(text)
        with pytest.raises(ModelError, match=r"bad\.xml: OpenCV finds no cascade in it"):
            build(tmp_path, name="bad.xml")


def test_scores_rise_from_a_half():
    assert score_of(-1.0) == score_of(0.0) == 0.5 and score_of(4.0) == 0.75
    assert 0.99 < score_of(30.0) < 1
