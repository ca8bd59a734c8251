"""Detectors without weights find content; boxes made elsewhere are read and checked."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import DataError
from flowgrain.slices.detectors import DetectorContext, View, saliency
from flowgrain.slices.detectors.boxes import BoxesConfig
from flowgrain.slices.detectors.grid import GridConfig, GridDetector
from flowgrain.slices.detectors.saliency import SaliencyConfig, SaliencyDetector, best_windows, saliency_map
from flowgrain.slices.framing import iou, share_inside


def view_of(image, region=None, name="fox.png", folder=Path("nowhere")):
    return View(image, region or (0.0, 0.0, float(image.width), float(image.height)), Item(Folder(folder), name))


def build_boxes(config, folder, level):
    return config.build(DetectorContext(folder, level, 1))


def icon(box, size=(300, 300)):
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse(box, fill="orange", outline="black", width=4)
    draw.line((box[0], box[1], box[2], box[3]), fill="blue", width=5)
    return image


@pytest.mark.parametrize("box", [(20, 30, 110, 120), (180, 160, 280, 270), (100, 20, 200, 110)])
def test_saliency_finds_the_drawing_on_a_white_page(box):
    found = SaliencyDetector(SaliencyConfig(fraction=0.5), 1).detect(view_of(icon(box)))
    assert share_inside(tuple(map(float, box)), found[0].box) > 0.95
    assert found[0].score > 0.95


def test_saliency_windows_stay_apart_and_inside_and_fall_in_score():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 220, 3), dtype=np.uint8))
    region = (20.0, 10.0, 200.0, 140.0)
    found = SaliencyDetector(SaliencyConfig(fraction=0.3, max_overlap=0.1), 5).detect(view_of(noise, region))
    assert len(found) == 5
    for i, one in enumerate(found):
        assert share_inside(one.box, region) == pytest.approx(1.0)
        assert (one.box[2] - one.box[0]) / 180 == pytest.approx(0.3, abs=0.01)
        assert all(iou(one.box, other.box) < 0.11 for other in found[:i])


def test_flat_images_have_no_salient_window():
    assert SaliencyDetector(SaliencyConfig(), 3).detect(view_of(Image.new("RGB", (90, 60), "white"))) == []


def test_saliency_is_deterministic_and_ignores_what_lies_outside_the_region():
    image = icon((40, 40, 90, 90))
    detector, region = SaliencyDetector(SaliencyConfig(fraction=0.4), 2), (0.0, 0.0, 150.0, 150.0)
    first = detector.detect(view_of(image, region))
    changed = image.copy()
    ImageDraw.Draw(changed).rectangle((160, 160, 299, 299), fill="red")
    assert detector.detect(view_of(changed, region)) == first


def test_levels_share_the_saliency_of_an_image(monkeypatch):
    image, calls = icon((40, 40, 90, 90)), []
    real = saliency.saliency_map
    monkeypatch.setattr(saliency, "saliency_map", lambda pixels: calls.append(1) or real(pixels))
    for fraction in (0.6, 0.3):
        SaliencyDetector(SaliencyConfig(fraction=fraction), 1).detect(view_of(image))
    assert len(calls) == 1
    SaliencyDetector(SaliencyConfig(), 1).detect(view_of(image, (0.0, 0.0, 150.0, 150.0)))
    SaliencyDetector(SaliencyConfig(), 1).detect(view_of(icon((40, 40, 90, 90))))
    assert len(calls) == 3


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.9))
def test_the_first_window_has_the_greatest_sum(seed, fraction):
    saliency = np.random.default_rng(seed).integers(0, 5, (9, 12))
    windows = best_windows(saliency, SaliencyConfig(fraction=fraction, centering=0), 1)
    high, wide = max(round(9 * fraction), 1), max(round(12 * fraction), 1)
    sums = [saliency[y : y + high, x : x + wide].sum() for y in range(10 - high) for x in range(13 - wide)]
    (x0, y0, x1, y1), score = windows[0]
    assert saliency[y0:y1, x0:x1].sum() == max(sums)
    assert score == max(sums) / saliency.sum()


def test_saliency_map_of_tiny_and_narrow_images():
    for shape in ((1, 1, 3), (2, 50, 3)):
        values = np.random.default_rng(0).uniform(0, 255, shape)
        assert saliency_map(values).shape == shape[:2]


@pytest.mark.parametrize(("columns", "rows", "overlap"), [(1, 1, 0.0), (2, 3, 0.2), (4, 2, 0.5)])
def test_grid_covers_the_region_with_the_given_overlap(columns, rows, overlap):
    region = (10.0, 20.0, 110.0, 80.0)
    config = GridConfig(columns=columns, rows=rows, overlap=overlap)
    found = GridDetector(config).detect(view_of(Image.new("RGB", (120, 90)), region))
    assert len(found) == columns * rows == len({item.label for item in found})
    assert min(item.box[0] for item in found) == 10 and max(item.box[2] for item in found) == pytest.approx(110)
    if columns > 1:
        a, b = found[0].box, found[1].box
        assert (a[2] - b[0]) / (a[2] - a[0]) == pytest.approx(overlap)


def test_grid_labels_positions_and_scores_contrast():
    image = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(image).rectangle((60, 60, 80, 80), fill="black")
    found = GridDetector(GridConfig(overlap=0)).detect(view_of(image))
    assert [item.label for item in found] == ["top left", "top right", "bottom left", "bottom right"]
    assert max(found, key=lambda item: item.score).label == "bottom right"
    assert found[0].score == 0


FOX = Image.new("RGB", (200, 100))


def test_sidecar_boxes_by_label(tmp_path):
    entries = [
        {"box": [10, 10, 60, 60], "label": "head", "score": 0.8, "caption": "its head", "id": 3},
        {"box": [0, 0, 200, 100], "label": "body"},
    ]
    (tmp_path / "fox.boxes.json").write_text(json.dumps(entries))
    head = build_boxes(BoxesConfig(labels=["head"]), tmp_path, "micro")
    (found,) = head.detect(view_of(FOX, folder=tmp_path))
    assert (found.box, found.label, found.score, found.caption) == ((10.0, 10.0, 60.0, 60.0), "head", 0.8, "its head")
    assert build_boxes(BoxesConfig(), tmp_path, "body").detect(view_of(FOX, folder=tmp_path))[0].score == 1.0
    assert build_boxes(BoxesConfig(), tmp_path, "body").detect(view_of(FOX, name="owl.png", folder=tmp_path)) == []
    assert head.inputs(Item(Folder(tmp_path), "fox.png")) and not head.inputs(Item(Folder(tmp_path), "owl.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"fox\.boxes\.json:1: not valid JSON"),
        ("{}", r"expected a list of boxes, got dict"),
        ('[{"box": [0, 0, 5, 5], "label": "a"}, {"box": [1, 2, 3], "label": "a"}]', r"entry 1: box"),
        ('[{"box": [5, 5, 5, 9], "label": "a"}]', r"entry 0: box \(5, 5, 5, 9\) is empty"),
        ('[{"box": [300, 0, 400, 9], "label": "a"}]', r"entry 0: .* outside the 200x100 image"),
        ('[{"box": [0, 0, 5, 5], "label": "a", "score": 7}]', r"entry 0: score"),
    ],
)
def test_sidecar_errors_name_file_and_entry(tmp_path, text, message):
    (tmp_path / "fox.boxes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        build_boxes(BoxesConfig(), tmp_path, "a").detect(view_of(FOX, folder=tmp_path))


def coco(tmp_path, **changes):
    document = {
        "images": [{"id": 7, "file_name": "fox.png", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "head"}, {"id": 2, "name": "tail"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5]},
        ],
    } | changes
    (tmp_path / "coco.json").write_text(json.dumps(document))
    return build_boxes(BoxesConfig(format="coco", path="coco.json", labels=["head"]), tmp_path, "micro")


def test_coco(tmp_path):
    (found,) = coco(tmp_path).detect(view_of(FOX, name="sub/fox.png"))
    assert found.box == (10.0, 20.0, 40.0, 60.0)
    assert coco(tmp_path).detect(view_of(FOX, name="owl.png")) == []
    with pytest.raises(DataError, match="200x100 there but 100x200 upright"):
        coco(tmp_path).detect(view_of(Image.new("RGB", (100, 200))))
    with pytest.raises(DataError, match="annotations entry 0: no category with id 9"):
        coco(tmp_path, annotations=[{"image_id": 7, "category_id": 9, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(DataError, match="no category 'head'; it has ear"):
        coco(tmp_path, categories=[{"id": 1, "name": "ear"}])
    with pytest.raises(DataError, match="expected a list under 'images', got nothing"):
        coco(tmp_path, images=None)


def test_yolo(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("head\ntail\n")
    (tmp_path / "labels" / "fox.txt").write_text("0 0.5 0.5 0.2 0.4 0.9\n1 .1 .1 .1 .1\n")
    detector = build_boxes(BoxesConfig(format="yolo", path="labels"), tmp_path, "head")
    (found,) = detector.detect(view_of(FOX))
    assert found.box == pytest.approx((80, 30, 120, 70)) and found.score == 0.9
    for line, message in (
        ("0 1 2", "expected 'class cx cy w h'"),
        ("5 .1 .1 .1 .1", "class 5 is not among the 2"),
        ("0 80 30 40 40", "expected fractions"),
        ("0 a b c d", "expected numbers"),
    ):
        (tmp_path / "labels" / "fox.txt").write_text("1 .1 .1 .1 .1\n" + line)
        with pytest.raises(DataError, match=r"fox\.txt:2: " + message):
            detector.detect(view_of(FOX))
    with pytest.raises(DataError, match="no such folder of YOLO labels"):
        build_boxes(BoxesConfig(format="yolo", path="gone"), tmp_path, "head")
