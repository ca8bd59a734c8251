"""People: the embedded network is MediaPipe's, faces are found at any size, and parts lie where rules put them."""

import importlib.util
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import ValidationError

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.detectors import DetectorContext, View, people, pose
from flowgrain.slices.detectors.blazeface import Faces, find_faces, load_blazeface, merged, overlap, weights_path
from flowgrain.slices.detectors.face_search import faces_in
from flowgrain.slices.detectors.people import ESTIMATE, PeopleConfig, estimated, face_parts
from flowgrain.slices.detectors.windows import around, window
from flowgrain.slices.framing import iou, share_inside

skimage_data = pytest.importorskip("skimage.data")
FACE = (182.0, 75.0, 268.0, 178.0)
"""The astronaut's face, measured by hand."""
EYES = {"right eye": (203.0, 101.0), "left eye": (247.0, 103.0)}


@pytest.fixture(scope="module")
def model():
    return load_blazeface(weights_path())


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(skimage_data.astronaut())


@pytest.fixture(scope="module")
def mediapipe_modules():
    """MediaPipe's models: of the folder that FLOWGRAIN_MEDIAPIPE names, or of an installed mediapipe."""
    named = os.environ.get("FLOWGRAIN_MEDIAPIPE")
    folder = Path(named) if named else pose.pose_folder()
    if folder is None or importlib.util.find_spec("ai_edge_litert") is None:
        pytest.skip("needs ai-edge-litert and MediaPipe's models (install mediapipe 0.10 or set FLOWGRAIN_MEDIAPIPE)")
    return folder


def everything(image):
    return (0.0, 0.0, float(image.width), float(image.height))


def detect(image, region=None, **settings):
    detector = PeopleConfig(**settings).build(DetectorContext(Path("x"), "meso", 9, threads=1))
    return detector.detect(View(image, region or everything(image), Item(Folder(Path("x")), "a.png")))


def pattern(side=128):
    y, x, c = np.indices((side, side, 3))
    return ((y * 37 + x * 91 + c * 53 + (x * y) // 7) % 256).astype(np.uint8)


GOLDEN = {
    0: (-4.6448, 0.735, 27.255, -2.473),
    77: (-2.8629, 1.221, 35.645, -5.626),
    300: (-3.5047, 1.331, 25.692, -1.801),
    511: (-5.0788, -0.398, 45.477, 1.082),
    512: (-4.4156, 2.121, 47.584, -9.101),
    700: (-10.7546, 1.933, 78.379, -4.69),
    895: (-44.1286, 16.92, 132.041, -4.912),
}


def raw(model, pixels):
    inputs = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits, numbers = model(inputs)
    return logits[0].numpy(), numbers[0].numpy()


def test_the_network_gives_the_numbers_that_tflite_gave(model):
    """Logit and numbers 0, 3 and 15 of some anchors, by ai-edge-litert 2.3.0 from MediaPipe's own file."""
    logits, numbers = raw(model, pattern())
    assert logits.shape == (896,) and numbers.shape == (896, 16)
    for anchor, (logit, *rest) in GOLDEN.items():
        assert logits[anchor] == pytest.approx(logit, abs=2e-3)
        assert numbers[anchor, [0, 3, 15]] == pytest.approx(rest, abs=5e-3)


def test_the_network_equals_the_tflite_interpreter(model, mediapipe_modules, astronaut):
    from ai_edge_litert.interpreter import Interpreter

    path = mediapipe_modules / "face_detection" / "face_detection_short_range.tflite"
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    places = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for pixels in (pattern(), noise, np.asarray(astronaut.resize((128, 128)))):
        interpreter.set_tensor(0, (pixels.astype(np.float32) / 127.5 - 1)[None])
        interpreter.invoke()
        logits, numbers = raw(model, pixels)
        assert np.abs(logits - interpreter.get_tensor(places["classificators"])[0, :, 0]).max() < 1e-3
        assert np.abs(numbers - interpreter.get_tensor(places["regressors"])[0]).max() < 1e-3


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0])
@pytest.mark.parametrize("place", ["whole", "corner"])
def test_a_face_is_found_whatever_its_size(model, astronaut, scale, place):
    image = astronaut.resize((round(512 * scale), round(512 * scale)))
    offset = (0, 0)
    if place == "corner":  # the face takes 1/20 of this picture's longer side
        offset = (1200 * scale, 300 * scale)
        page = Image.new("RGB", (round(1800 * scale), round(900 * scale)), "grey")
        page.paste(image, (round(offset[0]), round(offset[1])))
        image = page
    faces = faces_in(model, image, everything(image), 3, 0.7)
    wanted = tuple(side * scale + offset[index % 2] for index, side in enumerate(FACE))
    assert len(faces) == 1 and iou(tuple(faces.boxes[0]), wanted) > 0.6
    eyes = (faces.points[0, :2] - offset) / scale
    assert np.abs(eyes - np.array(list(EYES.values()))).max() < 4


def test_more_scales_find_smaller_faces(model, astronaut):
    page = Image.new("RGB", (2000, 2000), "grey")
    page.paste(astronaut, (1400, 700))
    assert [len(faces_in(model, page, everything(page), depth, 0.7)) for depth in (1, 3)] == [0, 1]


def test_a_group_is_found_one_by_one(model, astronaut):
    page = Image.new("RGB", (1300, 700), "white")
    for index, side in enumerate((512, 300, 420)):
        page.paste(astronaut.resize((side, side)), (index * 440, 700 - side))
    faces = faces_in(model, page, everything(page), 3, 0.7)
    assert len(faces) == 3 and list(faces.scores) == sorted(faces.scores, reverse=True)


def test_only_the_region_counts_and_the_same_pixels_give_the_same(model, astronaut):
    region = (120.0, 20.0, 340.0, 300.0)
    first = faces_in(model, astronaut, region, 3, 0.7)
    painted = astronaut.copy()
    ImageDraw.Draw(painted).rectangle((341, 0, 512, 512), fill="red")
    again = faces_in(model, painted, region, 3, 0.7)
    assert len(first) == 1 and np.array_equal(first.boxes, again.boxes) and np.array_equal(first.scores, again.scores)
    assert iou(tuple(first.boxes[0]), FACE) > 0.6
    assert len(faces_in(model, astronaut, (350.0, 200.0, 512.0, 512.0), 3, 0.7)) == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (500, 3), (16, 17)])
def test_tiny_and_narrow_pictures_have_no_faces(size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    assert detect(image, part="face") == []


def test_the_number_of_threads_changes_no_bit_and_is_left_as_it_was(model, astronaut):
    pixels = np.asarray(astronaut)[None]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            (faces,) = find_faces(model, pixels, 0.5)
            assert torch.get_num_threads() == count
            found.append((faces.boxes.tobytes(), faces.points.tobytes(), faces.scores.tobytes()))
            with pytest.raises(RuntimeError):
                find_faces(model, pixels[:, :8, :8], 0.5)  # too small for the network
            assert torch.get_num_threads() == count, "after an error too"
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_levels_share_one_search_of_a_picture(monkeypatch, astronaut):
    searches, poses = [], []
    monkeypatch.setattr(people, "faces_in", lambda *asked: searches.append(asked[1:]) or faces_in(*asked))
    body = pose.Body(everything(astronaut), np.ones((33, 3)), 0.9)
    models = SimpleNamespace(bodies=lambda *asked: poses.append(asked) or [body])
    monkeypatch.setattr(people, "Poses", lambda folder, threads: models)
    monkeypatch.setattr(people, "pose_digest", lambda folder: "digest")
    image, parts = astronaut.copy(), ("person", "upper_body", "hands", "head", "face", "eyes", "mouth")
    found = {part: detect(image, part=part, weights="x" if part in people._BODIES else "") for part in parts}
    assert len(searches) == len(poses) == 1
    assert all(found[part] == detect(astronaut.copy(), part=part) for part in ("head", "face", "eyes", "mouth"))
    searches.clear()
    for settings in ({"scales": 2}, {"min_face_score": 0.6}, {"region": (0.0, 0.0, 400.0, 400.0)}):
        for part in ("face", "head"):
            detect(image, part=part, **settings)
    assert [search[1:] for search in searches] == [
        (everything(image), 2, 0.7), (everything(image), 3, 0.6), ((0.0, 0.0, 400.0, 400.0), 3, 0.7)
    ]  # fmt: skip
    page = Image.new("RGB", astronaut.size, "grey")
    assert detect(page, part="face") == [] != detect(image, part="face")


def test_photographs_without_people_have_no_faces():
    for name in ("coffee", "chelsea", "rocket"):
        image = Image.fromarray(getattr(skimage_data, name)())
        assert detect(image, part="face") == []


boxes_strategy = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 1)),
    max_size=12,
)


@given(boxes_strategy, st.floats(0.1, 0.9))
def test_weighted_suppression_by_brute_force(drawn, limit):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in drawn], dtype=float).reshape(-1, 4)
    scores = np.array([score for *_, score in drawn])
    found = merged(Faces(boxes, np.zeros((len(boxes), 6, 2)), scores), limit)
    rest = sorted(range(len(boxes)), key=lambda index: -scores[index])
    wanted = []
    while rest:
        group = [i for i in rest if i == rest[0] or iou(tuple(boxes[rest[0]]), tuple(boxes[i])) > limit]
        total = sum(scores[i] for i in group)
        wanted.append([sum(scores[i] * boxes[i][side] for i in group) / total for side in range(4)])
        rest = [i for i in rest if i not in group]
    assert np.allclose(found.boxes, np.array(wanted).reshape(-1, 4))


@given(boxes_strategy)
def test_overlap_is_iou(drawn):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in drawn], dtype=float).reshape(-1, 4)
    one = np.array([10.0, 10.0, 40.0, 30.0])
    assert np.allclose(overlap(one, boxes), [iou(tuple(one), tuple(box)) for box in boxes])


def test_a_window_is_the_picture_where_there_is_one_and_black_elsewhere():
    image = Image.new("RGB", (100, 60), (200, 100, 50))
    pixels = window(image, everything(image), around(0.0, 30.0, 40.0), 80)
    assert (pixels[:, :40] == 0).all() and (pixels[:, 40:] == (200, 100, 50)).all()
    assert (window(image, (0.0, 0.0, 10.0, 10.0), around(50.0, 30.0, 8.0), 16) == 0).all()


def test_parts_of_a_face(astronaut):
    (head,) = detect(astronaut, part="head")
    assert share_inside(FACE, head.box) == 1 and head.label == "head"
    assert head.box[2] - head.box[0] == pytest.approx(head.box[3] - head.box[1])
    eyes = {found.label: found.box for found in detect(astronaut, part="eyes")}
    assert eyes.keys() == EYES.keys()
    for label, (x0, y0, x1, y1) in eyes.items():
        assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx(EYES[label], abs=4) and 40 < x1 - x0 < 70
    (mouth,) = detect(astronaut, part="mouth")
    assert share_inside((203.0, 138.0, 244.0, 156.0), mouth.box) > 0.9
    (face,) = detect(astronaut, part="face")
    assert iou(face.box, FACE) > 0.6 and face.score == head.score > 0.7


def test_seen_from_the_side_an_eye_keeps_its_size():
    points = np.array([[[50.0, 40.0], [51.0, 40.0], [60.0, 50.0], [55.0, 60.0], [20.0, 40.0], [20.0, 40.0]]])
    faces = Faces(np.array([[0.0, 0.0, 100.0, 100.0]]), points, np.array([0.9]))
    eye, _ = face_parts(faces, 0, "eyes")
    assert eye.box[2] - eye.box[0] == pytest.approx(36)


def test_bodies_are_estimated_from_faces_and_score_less_than_half(astronaut):
    (person,) = detect(astronaut, part="person", body="face")
    (upper,) = detect(astronaut, part="upper_body", body="face")
    (face,) = detect(astronaut, part="face")
    assert person.score == upper.score == ESTIMATE * face.score < 0.5
    assert (person.label, upper.label) == ("person", "upper body")
    assert share_inside(person.box, everything(astronaut)) == 1 and person.box[3] == 512
    assert share_inside(upper.box, person.box) > 0.9 and share_inside(FACE, upper.box) == 1


def test_an_estimated_person_is_seven_and_a_half_heads_tall():
    x0, y0, x1, y1 = estimated(np.array([100.0, 100.0, 120.0, 120.0]), "person")
    assert (y1 - y0) == pytest.approx(7.5 * 1.35 * 20, rel=0.02) and (x0 + x1) / 2 == 110


def test_settings_that_contradict_each_other():
    with pytest.raises(ValidationError, match="hands are found by the pose models alone"):
        PeopleConfig(part="hands", body="face")
    with pytest.raises(ValidationError, match="weights is not read with body face"):
        PeopleConfig(weights="models", body="face")


def test_missing_pose_models_and_packages_are_named(tmp_path, monkeypatch, mediapipe_modules):
    context = DetectorContext(tmp_path, "meso", 1)
    with pytest.raises(ModelError, match=r"no pose_detection\.tflite in it; it is in the wheel of mediapipe 0\.10"):
        PeopleConfig(weights=str(tmp_path)).build(context)
    shutil.copy(mediapipe_modules / "pose_detection" / pose.DETECTION, tmp_path)
    (tmp_path / pose.LANDMARKS).write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"pose_landmark_full\.tflite: not a TFLite model"):
        PeopleConfig(weights=str(tmp_path)).build(context)
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"flowgrain\[people\]"):
        PeopleConfig(weights=str(mediapipe_modules)).build(context)


def test_without_pose_models_bodies_come_from_faces(tmp_path, monkeypatch):
    monkeypatch.setattr("flowgrain.slices.detectors.people.pose_folder", lambda: None)
    context = DetectorContext(tmp_path, "meso", 1)
    assert PeopleConfig(part="person").build(context).fingerprint().endswith(" faces")
    for settings in ({"part": "hands"}, {"part": "person", "body": "pose"}):
        with pytest.raises(ModelError, match=r"no pose models; install mediapipe 0\.10"):
            PeopleConfig(**settings).build(context)
    head = PeopleConfig(part="head").build(context).fingerprint()
    assert head.startswith("blazeface ") and "faces" not in head


def test_damaged_and_foreign_face_weights(tmp_path):
    from safetensors.torch import save_file

    for data in (b"", weights_path().read_bytes()[:5000]):
        (tmp_path / "a.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match=r"a\.safetensors: the weights of BlazeFace cannot be read"):
            load_blazeface(tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="not the weights of BlazeFace short range"):
        load_blazeface(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_blazeface(tmp_path / "gone.safetensors")


def test_a_body_by_the_pose_models(mediapipe_modules, astronaut):
    weights = str(mediapipe_modules)
    (person,) = detect(astronaut, part="person", weights=weights)
    (upper,) = detect(astronaut, part="upper_body", weights=weights)
    assert person.score == upper.score > 0.9 and share_inside(FACE, upper.box) == 1
    assert person.box[3] > 500 and share_inside(upper.box, person.box) == pytest.approx(1)
    assert person == detect(astronaut, part="person", weights=weights)[0]
    turned = detect(astronaut.rotate(90), part="person", weights=weights)
    assert turned and turned[0].score > 0.5, "a person who lies is seen too"
    detector = PeopleConfig(part="person", weights=weights).build(DetectorContext(Path("x"), "meso", 1))
    assert " pose " in detector.fingerprint()


@given(st.floats(-3.1, 3.1), st.integers(60, 140))
def test_turned_regions_keep_places(turn, side):
    """A dot drawn at a place of the picture is found in the turned square where ``placed`` says it is."""
    image = Image.new("RGB", (200, 200))
    x, y = 100 + side * 0.3, 100 - side * 0.2
    ImageDraw.Draw(image).ellipse((x - 3, y - 3, x + 3, y + 3), fill="white")
    roi = pose._Roi(100.0, 100.0, float(side), turn, 1.0)
    pixels = roi.pixels(image, everything(image))[..., 0].astype(float)
    if pixels.sum() > 0:
        rows, columns = np.indices(pixels.shape)
        centre = [[(columns * pixels).sum() / pixels.sum() + 0.5, (rows * pixels).sum() / pixels.sum() + 0.5]]
        assert roi.placed(np.array(centre))[0] == pytest.approx((x + 0.5, y + 0.5), abs=1.0)
