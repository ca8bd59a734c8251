"""The configuration of decompose: presets are valid, mistakes are named."""

from pathlib import Path

import pytest

from flowgrain.config import load_config
from flowgrain.errors import ConfigError
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.presets import DEFAULT_PRESET, preset_names, preset_path
from flowgrain.slices.settings import load_settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("decompose-*.yaml"))


def load(*overrides, preset=DEFAULT_PRESET):
    return load_config(DecomposeConfig, preset_path(preset), list(overrides))[0]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name):
    config, _ = load_settings([name], None, None, [])
    assert [level.granularity for level in config.levels.values()][:3] == ["macro", "meso", "micro"]
    assert all(level.detector is not None for level in list(config.levels.values())[1:])


def test_a_subject_stands_on_a_size_whichever_is_named_first():
    both = load_settings(["portrait", "sdxl-1024"], None, None, [])[0]
    assert both == load_settings(["sdxl-1024", "portrait"], None, None, [])[0]
    assert both.levels["meso"].caption == "{caption}, close-up"
    assert [d.kind for d in both.levels["micro"].detectors] == ["people", "saliency"]
    assert load_settings(["portrait"], None, None, [])[0].targets.resolution == 1024
    with pytest.raises(ConfigError, match="'portrait' and 'scene' both say what is in the pictures"):
        load_settings(["portrait", "scene"], None, None, [])
    with pytest.raises(ConfigError, match="did you mean 'portrait'"):
        load_settings(["portrai"], None, None, [])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path):
    load_config(DecomposeConfig, path, [])


def test_the_default_preset_is_the_default_configuration():
    assert load() == DecomposeConfig()


def test_bucket_rule_is_kohyas_limited_in_aspect():
    one_way = [(704, 1408), (768, 1280), (768, 1344), (832, 1216), (896, 1152), (960, 1088)]
    assert load().sizes("meso") == (*one_way, (1024, 1024), *sorted((h, w) for w, h in one_way))
    assert load(preset="tiny-128").sizes("macro") == ((96, 160), (112, 144), (128, 128), (144, 112), (160, 96))
    assert load("levels.micro.targets=[[512, 512]]").sizes("micro") == ((512, 512),)


def test_overrides_reach_into_levels_and_null_removes_one():
    config = load("levels.micro.max_instances=2", "levels.meso=null")
    assert list(config.levels) == ["macro", "micro"] and config.levels["micro"].max_instances == 2
    assert load("levels.micro.detector=grid").levels["micro"].detector.kind == "grid"


def test_pair_thresholds():
    config = load("pair_iou_thresholds={meso/micro: 0.6}")
    assert (config.threshold("meso", "micro"), config.threshold("macro", "micro")) == (0.6, 0.7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels.micro.max_instance=2", "unknown key 'levels.micro.max_instance'; did you mean 'max_instances'"),
        ("levels.micro.detector.fractoin=.3", "unknown key 'levels.micro.detector.fractoin'; did you mean 'fraction'"),
        (
            "levels.micro.detector.kind=yolo",
            "command line: levels.micro.detector.kind: 'yolo' is none that there is; did you mean 'yolo-onnx'",
        ),
        ("levels.micro.detector.fraction=1.5", "less than 1"),
        ("mode=pre_split", "needs levels.macro.detector"),
        ("no_region=skip", "no_region is read in mode pre_split alone"),
        ("levels.macro.detector=grid", "not read in mode whole_image"),
        ("levels.meso.detector=null", "levels.meso.detector: missing"),
        ("levels.meso.granularity=micro", ""),
        ("levels.macro.granularity=micro", "levels go from coarse to fine, but 'meso'"),
        ("levels.meso.caption='{capton}'", "unknown placeholder {capton}; known: {caption}, {trigger}, {label}"),
        ("targets=[]", "give at least one"),
        ("targets=[[8, 100]]", "side below 16"),
        ("targets.step=100000", "step"),
        ("targets.resolutoin=512", "did you mean 'resolution'"),
        ("pair_iou_thresholds={micro/meso: 0.6}", "no pair 'micro/meso'; pairs are macro/meso"),
        ("pair_iou_thresholds={meso/micro: 6}", "not between 0 and 1"),
        ("background=[0, 0, 300]", "from 0 to 255"),
        ("levels.meso.detector=coco", "'coco' is none that there is; there are boxes, cascade, grid"),
    ],
)
def test_mistakes_are_named(override, message):
    if not message:
        load(override)
        return
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("{kind: boxes, path: x}", "path is not read"),
        ("{kind: boxes, format: coco}", "needs path"),
        ("{kind: boxes, class_names: [a]}", "format yolo alone"),
    ],
)
def test_unread_settings_of_boxes(detector, message):
    with pytest.raises(ConfigError, match=message):
        load("levels.meso.detector=null", f"levels.meso.detector={detector}")


def test_unknown_preset():
    with pytest.raises(ConfigError, match="did you mean 'tiny-128'"):
        preset_path("tiny-12")


def test_the_digest_follows_every_setting():
    digests = {load(*change).digest() for change in ([], ["trigger=x"], ["levels.micro.detector.fraction=.3"])}
    assert len(digests) == 3 and load().digest() == load().digest()
