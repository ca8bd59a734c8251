"""Detectors by phrases: what they find is what transformers' own parts give on the same crop, labelled with phrases."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from detector_views import check_batches, check_boxes, noise, view_of
from pydantic import TypeAdapter
from tiny_detectors import save_detector, save_grounding_dino, save_owl

from flowgrain.errors import ConfigError, ModelError
from flowgrain.slices.detectors import DetectorContext
from flowgrain.slices.detectors.hf_models import Outputs
from flowgrain.slices.detectors.registry import OneDetector
from flowgrain.slices.detectors.zero_shot import DEFAULT_MODEL, ZeroShotConfig

FAMILIES = ("GroundingDino", "MMGroundingDino", "Owlv2", "OwlViT")
PHRASES = ["Upper body", "logo", "red submarine"]
LEAST = {"GroundingDino": 0.3, "MMGroundingDino": 0.001, "Owlv2": 0.3, "OwlViT": 0.3}
"""Some boxes of the random networks score above these, some below."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    save = {name: save_owl if name.startswith("Owl") else save_grounding_dino for name in FAMILIES}
    return {name: save[name](place / name, name) for name in FAMILIES}


def build(folder, phrases=PHRASES, **keys):
    return ZeroShotConfig(model=str(folder), phrases=phrases, **keys).build(DetectorContext(Path("."), "part", 1))


def reference(folder, crop, threshold, text_threshold=0.0):
    """(result, processor) by transformers' own documented steps."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    inputs = processor(images=crop, text=[[phrase.lower() for phrase in PHRASES]], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = [(crop.height, crop.width)]
    if "Owl" in folder.name:
        (result,) = processor.post_process_grounded_object_detection(outputs, threshold, sizes, [PHRASES])
    else:
        (result,) = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold, text_threshold, sizes
        )
    return result


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "region"), [((120, 80), None), ((70, 160), (10.0, 25.0, 61.0, 148.0))])
def test_boxes_are_those_of_transformers_on_the_crop(folders, family, size, region):
    image, least = noise(*size), LEAST[family]
    texts = {} if "Owl" in family else {"text_threshold": 0.0}
    found = build(folders[family], confidence=least, iou=1, **texts).detect(view_of(image, region))
    x0, y0, x1, y1 = region or (0, 0, *size)
    result = reference(folders[family], image.crop((x0, y0, x1, y1)), least)
    order = torch.argsort(-result["scores"], stable=True)
    assert len(found) == len(order) > 1
    check_boxes(found, result["boxes"][order].numpy(), result["scores"][order].numpy(), (x0, y0))
    labels = [item.label for item in found]
    if "Owl" in family:
        assert labels == [result["text_labels"][index] for index in order]
    else:
        assert set(labels) <= set(PHRASES)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_does_not_depend_on_the_batch(folders, family):
    keys = {"confidence": LEAST[family], "iou": 1, "text_threshold": None if "Owl" in family else 0.0}
    check_batches(partial(build, folders[family], **keys))


def answering(monkeypatch, detector, logits, boxes):
    """Let the network answer with these logits (one picture's queries) and boxes cx, cy, w, h in fractions."""
    outputs = Outputs(torch.tensor([logits], dtype=torch.float32), torch.tensor([boxes], dtype=torch.float32))
    monkeypatch.setattr(type(detector._network), "run", lambda network, inputs: outputs)


def test_tokens_of_grounding_dino_come_back_as_phrases(folders, monkeypatch):
    """[CLS] upper body . logo . red sub ##marine . [SEP]: a box belongs to the phrase with the best token."""
    detector = build(folders["GroundingDino"], confidence=0.4, text_threshold=0.35)
    tokens = detector._reader.text(1)["input_ids"][0]
    names = detector._reader._processor.tokenizer.convert_ids_to_tokens(tokens)
    assert names == ["[CLS]", "upper", "body", ".", "logo", ".", "red", "sub", "##marine", ".", "[SEP]"]
    assert detector._reader._spans == [[1, 2], [4], [6, 7, 8]]

    def query(**strong):
        row = [-9.0] * 20
        for name, value in strong.items():
            row[int(name[1:])] = float(torch.logit(torch.tensor(value)))
        return row

    logits = [
        query(t2=0.9, t4=0.5),  # "body" beats "logo"
        query(t8=0.8, t1=0.7, t2=0.7),  # one token of the submarine beats two of the body
        query(t4=0.39),  # below the confidence
        query(t3=0.6, t4=0.36),  # the dot scores the box, the logo is its best phrase
        query(t0=0.9, t4=0.3),  # no phrase above the text threshold
    ]
    boxes = [[0.25, 0.5, 0.1, 0.2], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 1, 1], [0.7, 0.2, 0.1, 0.1], [0.5, 0.5, 0.3, 0.3]]
    answering(monkeypatch, detector, logits, boxes)
    found = detector.detect(view_of(noise(260, 150), (50.0, 20.0, 250.0, 120.0)))
    assert [(item.label, round(item.score, 4)) for item in found] == [
        ("Upper body", 0.9),
        ("red submarine", 0.8),
        ("logo", 0.6),
    ]
    assert found[0].box == pytest.approx((50 + 40, 20 + 40, 50 + 60, 20 + 60), abs=1e-4)
    assert found[1].box == pytest.approx((50 + 80, 20 + 40, 50 + 120, 20 + 60), abs=1e-4)


@pytest.mark.parametrize("family", ["GroundingDino", "MMGroundingDino"])
def test_the_text_is_what_transformers_makes_of_a_list(folders, family):
    processor = transformers.AutoProcessor.from_pretrained(folders[family])
    inputs = processor(images=noise(50, 40), text=[[phrase.lower() for phrase in PHRASES]], return_tensors="pt")
    ours = build(folders[family])._reader.text(1)
    for name, tensor in ours.items():
        assert torch.equal(tensor, inputs[name]), name


def test_owl_boxes_are_those_of_the_padded_square(folders, monkeypatch):
    """OWLv2 sees a square with a border at the right or below, OWL-ViT a stretched picture."""
    for family, expected in (("Owlv2", (25.0, 40.0, 75.0, 60.0)), ("OwlViT", (25.0, 20.0, 75.0, 30.0))):
        detector = build(folders[family], confidence=0.5)
        answering(
            monkeypatch, detector, [[-3.0, 2.0, 1.0], [-1.0, -2.0, -3.0]], [[0.5, 0.5, 0.5, 0.2], [0.5, 0.5, 1, 1]]
        )
        (only,) = detector.detect(view_of(noise(100, 50)))
        assert only.label == "logo" and only.score == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))))
        assert only.box == pytest.approx(expected, abs=1e-3)


def test_a_phrase_is_suppressed_by_itself_alone(folders, monkeypatch):
    boxes = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.48], [0.5, 0.5, 0.5, 0.49]]
    for iou, labels in ((0.7, ["logo", "Upper body"]), (1.0, ["logo", "Upper body", "logo"])):
        detector = build(folders["Owlv2"], confidence=0.5, iou=iou)
        answering(monkeypatch, detector, [[-1.0, 3.0, 0.0], [-1.0, 1.0, 0.0], [2.0, 0.0, 0.0]], boxes)
        assert [item.label for item in detector.detect(view_of(noise(64, 64)))] == labels


def test_defaults_are_those_of_the_family(folders, monkeypatch):
    for family, least in (("GroundingDino", 0.25), ("Owlv2", 0.1)):
        detector = build(folders[family])
        width = 20 if family == "GroundingDino" else 3
        rows = [[-9.0] * width, [-9.0] * width]
        rows[0][1] = float(torch.logit(torch.tensor(least + 0.01)))
        rows[1][1] = float(torch.logit(torch.tensor(least - 0.01)))
        answering(monkeypatch, detector, rows, [[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.1, 0.1]])
        assert [round(item.score, 3) for item in detector.detect(view_of(noise(64, 64)))] == [round(least + 0.01, 3)]


def test_levels_with_other_phrases_share_the_network(folders):
    one, other = build(folders["Owlv2"], ["logo"]), build(folders["Owlv2"], ["a cat"])
    assert one._network is other._network
    assert one.fingerprint() == other.fingerprint() != build(folders["OwlViT"]).fingerprint()


def test_phrases_that_cannot_be_read_are_refused(folders):
    for phrase in ("a. cat", "cat?"):
        with pytest.raises(ConfigError, match=r"phrases: '.*' holds '\.' or '\?', which end a phrase"):
            build(folders["GroundingDino"], [phrase])
    with pytest.raises(ConfigError, match=r"phrases: they make 44 tokens, .* reads 20; use fewer or shorter"):
        build(folders["GroundingDino"], [f"red hat {letter} logo cat" for letter in "bcdefgh"])
    with pytest.raises(ConfigError, match=r"phrases: 'a very long .*' makes \d+ tokens, .* reads 16; shorten it"):
        build(folders["Owlv2"], ["logo", "a very long way of putting it"])
    with pytest.raises(ConfigError, match=r"text_threshold: read by Grounding DINO alone, .* is owlv2"):
        build(folders["Owlv2"], text_threshold=0.3)


def test_other_models_and_missing_tokenizers_are_one_clear_error(folders, tmp_path):
    with pytest.raises(ModelError, match=r"model_type 'yolos' cannot be used for detection by phrases; known: ground"):
        build(save_detector("yolos", tmp_path / "yolos"))
    with pytest.raises(
        ModelError, match=r"IDEA-Research/grounding-dino-tiny: neither a folder nor a hub model"
    ) as error:
        build(DEFAULT_MODEL)
    assert "\n" not in str(error.value)
    for family in ("GroundingDino", "Owlv2"):
        folder = tmp_path / family
        shutil.copytree(folders[family], folder)
        for path in (*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*")):
            path.unlink()
        with pytest.raises(ModelError, match=r"no tokenizer here; text needs tokenizer\.json"):
            build(folder)
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(ModelError, match=r"its tokenizer cannot be loaded") as error:
            build(folder)
        assert "\n" not in str(error.value)


def test_the_short_form_lists_phrases():
    config = TypeAdapter(OneDetector).validate_python("zero-shot:upper body, logo")
    assert config == ZeroShotConfig(phrases=["upper body", "logo"])
    assert config.model == DEFAULT_MODEL
    for phrases in ([], "", "logo,", ["logo", " Logo "]):
        with pytest.raises(ValueError):
            ZeroShotConfig(phrases=phrases)
