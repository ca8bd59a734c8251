"""YOLO exports through onnxruntime: every layout finds the drawn rectangles, and nothing else passes for one."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pydantic import TypeAdapter
from yolo_models import save_yolo

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import ConfigError, MissingExtraError, ModelError
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.detectors import DetectorContext, View
from flowgrain.slices.detectors.class_names import check_classes
from flowgrain.slices.detectors.letterbox import GREY, Letterbox
from flowgrain.slices.detectors.nms import overlaps, suppress
from flowgrain.slices.detectors.onnx_model import _providers, open_onnx
from flowgrain.slices.detectors.registry import OneDetector
from flowgrain.slices.detectors.yolo_layouts import decode, recognise
from flowgrain.slices.detectors.yolo_onnx import YoloOnnxConfig
from flowgrain.slices.framing import iou

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DRAWN = {"red": (20.0, 30.0, 100.0, 90.0), "blue": (170.0, 110.0, 280.0, 190.0)}


def view_of(image, region=None):
    whole = (0.0, 0.0, float(image.width), float(image.height))
    return View(image, region or whole, Item(Folder(Path("nowhere")), "fox.png"))


def drawing(size=(300, 200), boxes=DRAWN):
    image = Image.new("RGB", size, "white")
    for name, (x0, y0, x1, y1) in boxes.items():
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill={"red": RED, "green": GREEN, "blue": BLUE}[name])
    return image


def build(path, device="cpu", threads=1, **keys):
    return YoloOnnxConfig(model=str(path), **keys).build(DetectorContext(Path("."), "part", 1, device, threads))


def check_drawn(found, drawn=DRAWN, tolerance=2.4):
    """``tolerance``: one pixel of the 128-pixel frame, in pixels of the 300-pixel drawing."""
    assert sorted(item.label for item in found) == sorted(drawn)
    for item in found:
        assert item.box == pytest.approx(drawn[item.label], abs=tolerance)


# --- suppression and letterbox ---

corner = st.integers(0, 12)
coordinates = st.tuples(corner, corner, corner, corner).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(
    st.lists(st.tuples(coordinates, st.integers(0, 4), st.integers(0, 2)), max_size=25),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.7, 1.0]),
)
def test_suppression_is_what_a_plain_loop_does(entries, threshold):
    boxes = [tuple(map(float, box)) for box, _, _ in entries]
    kept = []
    for index in sorted(range(len(entries)), key=lambda i: (-entries[i][1], i)):
        rivals = [other for other in kept if entries[other][2] == entries[index][2]]
        if not any(iou(boxes[other], boxes[index]) > threshold for other in rivals):
            kept.append(index)
    scores = np.array([score / 4 for _, score, _ in entries], dtype=np.float64)
    classes = np.array([number for _, _, number in entries], dtype=np.int64)
    assert suppress(np.array(boxes, dtype=np.float64).reshape(-1, 4), scores, classes, threshold).tolist() == kept


def test_overlaps_have_the_numbers_of_the_specification():
    others = np.array([[0, 0, 10, 8], [5, 5, 15, 15], [10, 0, 20, 10], [3, 3, 3, 9]], dtype=np.float64)
    expected = [0.8, 25 / 175, 0, 0]
    assert overlaps(np.array([0.0, 0.0, 10.0, 10.0]), others).tolist() == pytest.approx(expected)


side = st.integers(1, 5000)


@given(side, side, st.sampled_from([(128, 128), (320, 320), (640, 640), (640, 384)]), st.data())
def test_letterbox_there_and_back_is_the_identity(width, height, frame, data):
    box = Letterbox((width, height), frame)
    values = arrays(np.float64, (3, 4), elements=st.floats(-100, 5100))
    boxes = data.draw(values)
    assert np.abs(box.out_of(box.into(boxes)) - boxes).max() < 1e-4
    whole = box.into(np.array([[0.0, 0.0, width, height]]))[0]
    assert (whole >= 0).all() and (whole[2:] < np.add(frame, 1e-9)).all()
    assert min(frame[0] - (whole[2] - whole[0]), frame[1] - (whole[3] - whole[1])) < 1e-9


@pytest.mark.parametrize("size", [(300, 200), (77, 301), (128, 128), (50, 20), (1, 1), (3000, 3), (513, 512)])
def test_letterbox_has_the_pixels_that_opencv_gives_ultralytics(size):
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ratio = min(128 / size[0], 128 / size[1])
    scaled = max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)
    across, down = (128 - scaled[0]) / 2, (128 - scaled[1]) / 2
    expected = cv2.copyMakeBorder(
        cv2.resize(pixels, scaled, interpolation=cv2.INTER_LINEAR),
        *(round(down - 0.1), round(down + 0.1), round(across - 0.1), round(across + 0.1)),
        cv2.BORDER_CONSTANT,
        value=(GREY, GREY, GREY),
    )
    ours = np.asarray(Letterbox(size, (128, 128)).pixels(Image.fromarray(pixels)))
    assert np.abs(ours.astype(int) - expected).max() <= 1


# --- layouts ---


@pytest.mark.parametrize("layout", ["v8", "v5", "end-to-end"])
@pytest.mark.parametrize("options", [{}, {"batch": None}, {"copies": 2}, {"half": True}, {"batch": 4}])
def test_every_layout_finds_the_rectangles(tmp_path, layout, options):
    path = save_yolo(tmp_path / "m.onnx", layout, **options)
    found = build(path, confidence=0.85).detect(view_of(drawing()))
    check_drawn(found)
    assert {round(item.score, 3) for item in found} == ({0.9} if layout == "v5" else {1.0})


@pytest.mark.parametrize("size", [(300, 200), (160, 640), (97, 53), (64, 64)])
@pytest.mark.parametrize("frame", [(128, 128), (192, 96)])
def test_boxes_come_back_in_source_pixels_at_any_aspect(tmp_path, size, frame):
    width, height = size
    drawn = {"green": (width * 0.1, height * 0.2, width * 0.4, height * 0.45)}
    drawn = {"green": tuple(float(round(side)) for side in drawn["green"])}
    found = build(save_yolo(tmp_path / "m.onnx", frame=frame, tiles=1)).detect(view_of(drawing(size, drawn)))
    check_drawn(found, drawn, tolerance=max(width / frame[0], height / frame[1], 1.0))


def test_only_the_region_is_looked_at_and_boxes_are_those_of_the_image(tmp_path):
    detector = build(save_yolo(tmp_path / "m.onnx", tiles=1))
    image = drawing()
    found = detector.detect(view_of(image, (150.0, 100.0, 300.0, 200.0)))
    check_drawn(found, {"blue": DRAWN["blue"]}, tolerance=1.2)
    alone = detector.detect(view_of(image.crop((150, 100, 300, 200))))
    assert found[0].box == pytest.approx(tuple(np.add(alone[0].box, (150, 100, 150, 100))), abs=1e-9)


def test_networks_of_open_size_use_input_size_then_their_metadata_then_640(tmp_path):
    open_size = {"frame": None, "tiles": 1, "batch": None, "open_output": True}
    path = save_yolo(tmp_path / "m.onnx", metadata={"imgsz": "[96, 160]"}, **open_size)
    assert build(path)._frame == (160, 96)
    check_drawn(build(path).detect(view_of(drawing())))
    assert build(path, input_size=256)._frame == (256, 256)
    check_drawn(build(path, input_size=256).detect(view_of(drawing())), tolerance=1.2)
    assert build(save_yolo(tmp_path / "n.onnx", **open_size))._frame == (640, 640)
    with pytest.raises(ConfigError, match=r"input_size: .* takes 128x128 pixels and nothing else"):
        build(save_yolo(tmp_path / "o.onnx"), input_size=256)


def test_batches_are_honoured_where_the_network_takes_any_number(tmp_path):
    views = [view_of(drawing()), view_of(drawing((64, 90), {"red": (3.0, 4.0, 30.0, 40.0)})), view_of(drawing())]
    single = build(save_yolo(tmp_path / "one.onnx"), batch_size=8)
    several = build(save_yolo(tmp_path / "any.onnx", batch=None), batch_size=2)
    four = build(save_yolo(tmp_path / "four.onnx", batch=4), batch_size=8)
    assert (single.batch_size, several.batch_size, four.batch_size) == (1, 2, 4)
    expected = [single.detect(view) for view in views]
    assert several.detect_all(views) == expected == four.detect_all(views)
    assert several.detect_all([]) == []


def test_a_copy_is_suppressed_only_above_iou_and_never_in_end_to_end_exports(tmp_path):
    path = save_yolo(tmp_path / "m.onnx", copies=2)  # a copy of 0.9 the side: IoU 0.81
    assert len(build(path, iou=0.8).detect(view_of(drawing()))) == 2
    found = build(path, iou=0.82).detect(view_of(drawing()))
    assert [round(item.score, 2) for item in found] == [1.0, 1.0, 0.8, 0.8]
    assert len(build(save_yolo(tmp_path / "e.onnx", "end-to-end", copies=2), iou=0.1).detect(view_of(drawing()))) == 4


def test_confidence_is_a_strict_limit(tmp_path):
    path = save_yolo(tmp_path / "m.onnx", copies=2)
    view = view_of(drawing())
    assert len(build(path, iou=1, confidence=0.8).detect(view)) == 4  # float32's 0.8 is above it
    assert len(build(path, iou=1, confidence=0.81).detect(view)) == 2
    assert build(path, confidence=1.0).detect(view) == []
    assert len(build(path, iou=1, confidence=0.0).detect(view)) == 4  # candidates without a box score 0


def test_hostile_pictures_have_boxes_or_none(tmp_path):
    detector = build(save_yolo(tmp_path / "m.onnx"))
    for size in [(1, 1), (1, 3000), (3000, 1), (2, 2)]:
        assert detector.detect(view_of(Image.new("RGB", size, "white"))) == []


# --- classes ---


def test_classes_are_those_of_the_level(tmp_path):
    path = save_yolo(tmp_path / "m.onnx")
    assert [item.label for item in build(path, classes=["blue"]).detect(view_of(drawing()))] == ["blue"]
    assert build(path, classes=["green"]).detect(view_of(drawing())) == []
    with pytest.raises(ConfigError, match=r"classes: .* has no class 'Rde'; did you mean 'red'\?"):
        build(path, classes=["Rde"])
    with pytest.raises(ConfigError, match=r"has no class 'zebra'; it has red, green, blue"):
        build(path, classes=["zebra"])


def test_long_lists_of_classes_are_cut():
    with pytest.raises(ConfigError, match=r"it has c0, c1, .* c11 and 3 more"):
        check_classes(["zebra"], [f"c{n}" for n in range(15)], "m")


def test_names_come_from_the_configuration_then_the_file_then_the_sidecar(tmp_path):
    def labels(path, **keys):
        return sorted(item.label for item in build(path, **keys).detect(view_of(drawing())))

    named = save_yolo(tmp_path / "named.onnx")
    unnamed = save_yolo(tmp_path / "unnamed.onnx", names=None)
    assert labels(unnamed) == ["0", "2"]
    assert labels(unnamed, classes=["2"]) == ["2"]
    with pytest.raises(ConfigError, match=r"no class 'head'; its classes have no names, only numbers"):
        build(unnamed, classes=["head"])
    (tmp_path / "labels.json").write_text(json.dumps(["person", "half", "head"]))
    assert labels(unnamed) == ["head", "person"]
    assert labels(named) == ["blue", "red"]
    assert labels(named, class_names=["a", "b", "c"]) == ["a", "c"]
    listed = save_yolo(tmp_path / "listed.onnx", names=None, metadata={"names": '["x", "y", "z"]'})
    assert labels(listed) == ["x", "z"]


@pytest.mark.parametrize("names", ["{0: 'a', 2: 'b'}", "__import__('os')", "[1, 2, 3]", "", "[" * 100_000])
def test_broken_names_are_refused_and_never_executed(tmp_path, names):
    path = save_yolo(tmp_path / "m.onnx", names=None, metadata={"names": names})
    with pytest.raises(ModelError, match=r"metadata 'names': no list of names"):
        build(path)
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(ModelError, match=r"labels\.json: cannot be read as JSON"):
        build(save_yolo(tmp_path / "n.onnx", names=None))


# --- recognising ---


@pytest.mark.parametrize(
    ("shape", "frame", "classes", "layout"),
    [
        ((1, 84, 8400), (640, 640), 80, "v8"),
        ((1, 22, 2100), (320, 320), 18, "v8"),
        ((1, 5, 8400), (640, 640), 1, "v8"),
        ((1, 25200, 85), (640, 640), 80, "v5"),
        ((1, 25200, 6), (640, 640), 1, "v5"),
        ((1, 102000, 6), (1280, 1280), 1, "v5"),
        ((1, 8400, 6), (640, 640), 1, "v5"),
        ((1, 300, 6), (640, 640), 1, "end-to-end"),
        ((1, 300, 6), (640, 640), 80, "end-to-end"),
        ((1, 0, 6), (640, 640), 80, "end-to-end"),
        ((1, 6, 8400), (640, 640), 2, "v8"),
        ((1, 84, 8400), (640, 640), None, "v8"),
        ((1, 25200, 85), (640, 640), None, "v5"),
        ((1, 300, 6), (640, 640), None, "end-to-end"),
        ((4, 25200, 6), (640, 640), None, "v5"),
    ],
)
def test_shapes_of_known_exports(shape, frame, classes, layout):
    assert recognise(shape, frame, classes, "m.onnx") == layout


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((1, 116, 8400), 80, r"output is \(1, 116, 8400\) and it has 80 classes: no known layout fits"),
        ((1, 8400, 84), 80, r"no known layout fits; set layout to v8 \(b, 4 \+ classes, n\)"),
        ((1, 1000), 80, r"output is \(1, 1000\)"),
        ((1, 100, 7), None, None),
        ((1, 7), None, r"an unknown number of classes"),
    ],
)
def test_other_shapes_are_one_error_that_names_the_key(shape, classes, message):
    if message is None:
        assert recognise(shape, (640, 640), classes, "m") == "v5"
        return
    with pytest.raises(ModelError, match=message):
        recognise(shape, (640, 640), classes, "m.onnx")


def test_layout_settles_what_the_shape_does_not(tmp_path):
    path = save_yolo(tmp_path / "m.onnx", names=["only", "two"])
    with pytest.raises(ModelError, match=r"\(1, 7, 12\) and it has 2 classes: no known layout fits; set layout"):
        build(path)
    found = build(path, layout="v8").detect(view_of(drawing()))  # the third row of scores is no class's
    assert [item.label for item in found] == ["only"]
    with pytest.raises(ModelError, match=r"\(1, 7, 12\), which layout end-to-end with 2 classes is not"):
        build(path, layout="end-to-end")


def test_decoding_takes_the_first_of_equal_classes_and_multiplies_objectness():
    row = np.array([[10.0, 20.0, 4.0, 6.0, 0.5, 0.2, 0.8, 0.8]])
    found = decode(row, "v5", 3)
    assert found.boxes.tolist() == [[8, 17, 12, 23]]
    assert found.scores.tolist() == [0.4] and found.classes.tolist() == [1]
    transposed = decode(np.delete(row, 4, axis=1).T, "v8", 2)
    assert transposed.scores.tolist() == [0.8] and transposed.classes.tolist() == [1]


# --- files, sessions, devices ---


def test_detectors_of_one_file_share_a_session_until_it_changes(tmp_path):
    path = save_yolo(tmp_path / "m.onnx")
    head, eyes = build(path, classes=["red"]), build(path, classes=["blue"])
    assert head._model is eyes._model
    assert build(path, threads=2)._model is not head._model
    before = head.fingerprint()
    assert before == eyes.fingerprint() == build(path).fingerprint()
    assert build(path, class_names=["a", "b", "c"]).fingerprint() != before
    save_yolo(path, "v5")
    assert build(path)._model is not head._model
    assert build(path).fingerprint() != before
    copy = tmp_path / "elsewhere.onnx"
    copy.write_bytes(path.read_bytes())
    assert build(copy).fingerprint() == build(path).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("person.pt", b"PK\x03\x04", r"PyTorch weights.*export it to ONNX.*yolo export model=person\.pt format=onnx"),
        ("person.onnx", b"PK\x03\x04pickle", r"PyTorch weights"),
        ("person.onnx", b"\x80\x02}q", r"PyTorch weights"),
        ("person.onnx", b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer.*git lfs pull"),
        ("person.onnx", b"", r"cannot be opened as an ONNX file"),
        ("person.onnx", b"<html>not found</html>", r"cannot be opened as an ONNX file"),
    ],
)
def test_files_that_are_no_onnx_say_what_they_are(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        build(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_files_folders_and_cut_files(tmp_path):
    with pytest.raises(ModelError, match=r"no\.onnx: no such file; paths of models are relative to"):
        build(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match=r"a folder; give the \.onnx file in it"):
        build(tmp_path)
    path = save_yolo(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"cannot be opened as an ONNX file"):
        build(path)


def test_networks_of_other_inputs_are_refused(tmp_path):
    import onnx

    model = onnx.load(save_yolo(tmp_path / "m.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    with pytest.raises(ModelError, match=r"one batch of RGB pictures|cannot be opened"):
        build(tmp_path / "four.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, tmp_path / "bytes.onnx")
    with pytest.raises(ModelError, match=r"tensor\(uint8\); export it with float32 or float16 inputs"):
        build(tmp_path / "bytes.onnx")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_is_used_where_onnxruntime_has_it_and_refused_elsewhere(tmp_path, monkeypatch):
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert _providers("cuda:1", available) == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    assert _providers("cuda", available)[0] == ("CUDAExecutionProvider", {"device_id": 0})
    assert _providers("cpu", available) == ["CPUExecutionProvider"]
    path = save_yolo(tmp_path / "m.onnx")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ConfigError, match=r"device cuda:0: this onnxruntime computes on .* alone; install"):
            build(path, device="cuda:0")
        # an onnxruntime that lists CUDA and cannot load it falls back silently; that is an error here
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
        with pytest.raises((ConfigError, ModelError), match=r"CUDA"):
            build(path, device="cuda:0")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime.*flowgrain\[onnx\]"):
        open_onnx(tmp_path / "m.onnx", "cpu", None)


def test_the_pipelines_in_the_documentation_are_valid():
    page = Path(__file__).parents[2] / "docs" / "detectors.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ours = [block for block in blocks if "yolo-onnx" in block or "zero-shot" in block]
    pipeline, phrases = (DecomposeConfig.model_validate(yaml.safe_load(block)) for block in ours)
    assert [level.detectors[0].model_dump()["kind"] for level in pipeline.levels.values()] == ["yolo-onnx"] * 4
    assert list(pipeline.levels) == ["person", "halfbody", "head", "eyes"]
    assert [level.detectors[0].model_dump()["kind"] for level in list(phrases.levels.values())[1:]] == ["zero-shot"] * 2


def test_the_short_form_names_the_file():
    config = TypeAdapter(OneDetector).validate_python("yolo-onnx:models/head.onnx")
    assert config == YoloOnnxConfig(model="models/head.onnx")
    for keys in ({"input_size": 100}, {"confidence": 1.5}, {"layout": "v7"}, {"batch_size": 0}, {"model": ""}):
        with pytest.raises(ValueError):
            YoloOnnxConfig(**{"model": "m.onnx", **keys})
