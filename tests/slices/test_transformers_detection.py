"""Detectors of transformers: what they find is what transformers' own parts give on the same crop."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from detector_views import check_batches, check_boxes, noise, view_of
from PIL import Image
from pydantic import TypeAdapter
from tiny_detectors import save_detector, save_owl, save_rf_detr

from flowgrain.errors import ConfigError, ModelError
from flowgrain.slices.detectors import DetectorContext
from flowgrain.slices.detectors.hf_detector import MAX_ASPECT
from flowgrain.slices.detectors.registry import OneDetector
from flowgrain.slices.detectors.transformers_detection import TransformersDetectionConfig

KINDS = ("detr", "conditional-detr", "rt-detr", "yolos")
LEAST = {"detr": 0.15, "conditional-detr": 0.3, "rt-detr": 0.005, "yolos": 0.15}
"""Scores of random networks lie somewhat above these."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_detector(kind, tmp_path_factory.mktemp("models") / kind) for kind in KINDS}


def build(folder, device="cpu", threads=None, **keys):
    return TransformersDetectionConfig(model=str(folder), **keys).build(
        DetectorContext(Path("."), "part", 1, device, threads)
    )


def reference(folder, crop, threshold):
    """(boxes, scores, labels) by transformers' own documented steps, best first."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(images=crop, return_tensors="pt"))
    (result,) = processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=[(crop.height, crop.width)]
    )
    order = torch.argsort(-result["scores"], stable=True)
    names = [model.config.id2label[int(number)] for number in result["labels"][order]]
    return result["boxes"][order].numpy(), result["scores"][order].numpy(), names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "region"), [((120, 80), None), ((70, 160), (10.0, 25.0, 61.0, 148.0))])
def test_boxes_are_those_of_transformers_on_the_crop(folders, kind, size, region):
    image = noise(*size)
    found = build(folders[kind], confidence=LEAST[kind], iou=1).detect(view_of(image, region))
    x0, y0, x1, y1 = region or (0, 0, *size)
    boxes, scores, labels = reference(folders[kind], image.crop((x0, y0, x1, y1)), LEAST[kind])
    assert len(found) == len(scores) > 2
    assert [item.label for item in found] == labels
    check_boxes(found, boxes, scores, (x0, y0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_does_not_depend_on_the_batch(folders, kind):
    check_batches(partial(build, folders[kind], confidence=LEAST[kind]))


@pytest.mark.parametrize("kind", ["detr", "conditional-detr"])
def test_a_head_set_by_hand_fires_where_it_is_told(folders, tmp_path, kind):
    """All queries name the same box: suppression leaves one of a class."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(folders[kind])
    classifier, last = model.class_labels_classifier, model.bbox_predictor.layers[-1]
    for layer in (classifier, last):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    classifier.bias.data[1] = 5.0
    if kind == "detr":  # conditional DETR adds a place of the query's own
        last.bias.data = torch.logit(torch.tensor([0.3, 0.6, 0.2, 0.4]))
    folder = tmp_path / "m"
    shutil.copytree(folders[kind], folder)
    model.save_pretrained(folder)
    found = build(folder, classes=["head"], confidence=0.9).detect(view_of(noise(200, 100), (50.0, 20.0, 150.0, 80.0)))
    assert {item.label for item in found} == {"head"}
    if kind == "detr":
        (only,) = found
        assert only.box == pytest.approx((50 + 20, 20 + 24, 50 + 40, 20 + 48), abs=1e-3)
        assert only.score == pytest.approx(float(torch.softmax(torch.tensor([0.0, 5, 0, 0]), 0)[1]), abs=1e-5)
    assert build(folder, classes=["eye"], confidence=0.9).detect(view_of(noise(200, 100))) == []


def test_classes_are_those_of_the_level(folders):
    view = view_of(noise(120, 80))
    every = build(folders["detr"], confidence=0.1, iou=1).detect(view)
    heads = build(folders["detr"], confidence=0.1, iou=1, classes=["head"]).detect(view)
    assert heads == [item for item in every if item.label == "head"]
    with pytest.raises(ConfigError, match=r"classes: .* has no class 'haed'; did you mean 'head'\?"):
        build(folders["detr"], classes=["haed"])


@pytest.mark.parametrize("kind", KINDS)
def test_thin_and_tiny_regions_do_not_stop_the_run(folders, tmp_path, kind):
    folder = tmp_path / "m"
    shutil.copytree(folders[kind], folder)
    if kind != "rt-detr":  # the sizes that published models are prepared with
        rule = json.loads((folder / "preprocessor_config.json").read_text())
        rule["size"] = {"shortest_edge": 512, "longest_edge": 1333}
        (folder / "preprocessor_config.json").write_text(json.dumps(rule))
    detector = build(folder, confidence=0.0)
    for size in [(1, 1), (3, 40), (1, MAX_ASPECT), (MAX_ASPECT * 20, 20)]:
        assert detector.detect(view_of(Image.new("RGB", size, "white")))
    assert detector.detect(view_of(Image.new("RGB", (MAX_ASPECT + 1, 1)))) == []


def test_networks_are_shared_and_known_by_their_bytes(folders, tmp_path):
    one, other = build(folders["yolos"], classes=["head"]), build(folders["yolos"], confidence=0.9)
    assert one._network is other._network
    copy = tmp_path / "copy"
    shutil.copytree(folders["yolos"], copy)
    assert build(copy)._network is not one._network
    assert build(copy).fingerprint() == one.fingerprint()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert build(copy).fingerprint() != one.fingerprint()


def test_threads_are_held_to_the_context(folders):
    before = torch.get_num_threads()
    try:
        build(folders["yolos"], threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_half_precision_is_for_cuda(folders):
    with pytest.raises(ConfigError, match=r"dtype float16: half precision is for CUDA"):
        build(folders["yolos"], dtype="float16")
    with pytest.raises(ConfigError, match=r"device 'gpu': no device of torch; write cpu, cuda"):
        build(folders["yolos"], device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device cuda:0: torch finds 0 CUDA devices; set it to cpu"):
            build(folders["yolos"], device="cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_in_half_precision_finds_nearly_the_same(folders, kind):
    view = view_of(noise(120, 80))
    exact = build(folders[kind], confidence=0.0, iou=1).detect(view)
    half = build(folders[kind], "cuda", confidence=0.0, iou=1, dtype="bfloat16").detect(view)
    assert np.mean([item.score for item in half]) == pytest.approx(np.mean([item.score for item in exact]), abs=0.05)


def check_one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_folders_that_will_not_do_are_one_clear_error(folders, tmp_path):
    with pytest.raises(ModelError) as error:
        build(tmp_path / "no" / "such" / "place")
    check_one_line(error, "no such folder; give a folder in transformers layout or a hub id")
    with pytest.raises(ModelError) as error:
        build("nobody/nothing-at-all")
    check_one_line(error, "nobody/nothing-at-all: neither a folder nor a hub model that can be reached")
    with pytest.raises(ModelError) as error:
        build(folders["detr"] / "config.json")
    check_one_line(error, "a file; give the folder of the model")
    with pytest.raises(ModelError) as error:
        build(save_owl(tmp_path / "owl"))
    check_one_line(error, "model_type 'owlv2' cannot be used for detection by classes; known: ", "rt_detr")
    with pytest.raises(ConfigError, match=r"revision: .* is a folder; a revision belongs to a hub id"):
        build(folders["detr"], revision="main")


def test_pickled_weights_are_never_opened(folders, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(folders["yolos"], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights; model\.safetensors is needed"):
        build(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ModelError, match=r"only pickled weights, which are never opened"):
        build(folder)


def test_damaged_folders_are_one_clear_error(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(folders["yolos"], folder)
    weights = load_file(folder / "model.safetensors")
    gone = "class_labels_classifier.layers.0.weight"
    save_file({name: t for name, t in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 weights are missing \({gone}\)"):
        build(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:400])
    with pytest.raises(ModelError) as error:
        build(folder)
    check_one_line(error, "cannot be loaded as a transformers model")
    shutil.copy(folders["yolos"] / "model.safetensors", folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError) as error:
        build(folder)
    check_one_line(error, "its image processor cannot be loaded")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON"):
        build(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: no such file; give a complete folder"):
        build(folder)


def test_code_that_comes_with_a_model_is_not_run(folders, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(folders["yolos"], folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForObjectDetection": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    build(folder).detect(view_of(noise(60, 40)))
    assert not (tmp_path / "owned").exists()


def test_rf_detr_is_prepared_by_the_numbers_of_its_configuration(tmp_path):
    """Rescaled, resized on floats between the four nearest pixels, normalised; boxes are those of its own queries."""
    folder = save_rf_detr(tmp_path / "rf")
    image, region = noise(150, 90), (10.0, 5.0, 130.0, 80.0)
    detector = build(folder, confidence=0.0, iou=1)
    pixels = detector._network.prepare(view_of(image, region))["pixel_values"]
    crop = np.asarray(image.crop((10, 5, 130, 80)), dtype=np.float64) / 255
    rows, columns = ((np.arange(n) + 0.5) * side / n - 0.5 for n, side in ((48, 75), (64, 120)))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, across = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = crop[top][:, left] * (1 - across) + crop[top][:, left + 1] * across
    lower = crop[top + 1][:, left] * (1 - across) + crop[top + 1][:, left + 1] * across
    expected = (upper * (1 - down) + lower * down - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert pixels.permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-4)

    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(pixel_values=pixels[None], pixel_mask=torch.ones(1, 48, 64, dtype=torch.long))
    scores, order = outputs.logits.sigmoid().flatten().sort(descending=True, stable=True)
    count = outputs.logits.shape[2]
    cx, cy, w, h = (outputs.pred_boxes[0][order[:6] // count] * torch.tensor([120, 75, 120, 75])).T
    boxes = torch.stack([cx - w / 2 + 10, cy - h / 2 + 5, cx + w / 2 + 10, cy + h / 2 + 5], dim=1)
    found = detector.detect(view_of(image, region))
    assert [item.score for item in found] == pytest.approx(scores[:6].tolist(), abs=1e-6)
    assert np.array([item.box for item in found]) == pytest.approx(boxes.numpy(), abs=1e-3)
    names = model.config.id2label
    assert [item.label for item in found] == [names[int(index) % count] for index in order[:6]]

    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}}))
    with pytest.raises(ModelError, match=r"no rule for RF-DETR that can be carried out .* a size of height and width"):
        build(folder)


def test_the_short_form_names_the_model():
    config = TypeAdapter(OneDetector).validate_python("transformers-detection:PekingU/rtdetr_r50vd")
    assert config == TransformersDetectionConfig(model="PekingU/rtdetr_r50vd")
