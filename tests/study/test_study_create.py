"""A new study: blind pictures, sealed before anything happens."""

import hashlib
import json
import subprocess

import numpy as np
import pytest
import yaml
from PIL import Image

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.study.config import PictureConfig, StudyConfig
from flowgrain.evaluate.study.create import create_study, draft_study
from flowgrain.evaluate.study.folder import open_study
from flowgrain.evaluate.study.pictures import degrade, same_size
from flowgrain.evaluate.study.plan import Key, read_model, read_plan
from flowgrain.evaluate.study.results import compute_results
from flowgrain.evaluate.study.seal import verify

ARMS = ("zebra-arm", "quokka-arm", "walrus-arm", "ocelot-arm")


def quiet(_done, _total):
    """No progress bar."""


def test_nothing_but_the_key_names_a_variant(make_study):
    study = make_study()
    files = [path for path in study.folder.rglob("*") if path.is_file()]
    naming = [path.name for path in files if any(arm.encode() in path.read_bytes() or arm in path.name for arm in ARMS)]
    assert naming == ["key.json"]
    assert (study.folder / "key.json").stat().st_mode & 0o077 == 0


def test_pictures_are_the_pixels_and_nothing_else(make_study):
    study = make_study()
    key = read_model(Key, study.folder / "key.json")
    comparison = read_comparison([study.folder.parent / study.folder.name.replace("study", "comparison")])
    originals = {item.key: item.pictures for item in comparison.items()}
    for item in study.plan.items:
        for number, picture in enumerate(item.pictures):
            with Image.open(study.folder / "media" / picture.name) as shown:
                assert not shown.info
                original = Image.open(originals[item.key][key.variants[number]]).convert("RGB")
                assert np.array_equal(np.asarray(shown), np.asarray(original))
                assert shown.size == (picture.width, picture.height)


def test_names_are_new_for_every_study_and_for_checks(make_study):
    first, second = make_study(), make_study()
    assert not {p.name for p in first.plan.pictures} & {p.name for p in second.plan.pictures}
    items = {p.name for item in first.plan.items for p in item.pictures}
    assert not items & {p.name for check in first.plan.checks for p in check.pictures}
    assert first.seal != second.seal


def test_the_order_of_variants_is_hidden(make_study):
    orders = {read_model(Key, make_study().folder / "key.json").variants for _ in range(6)}
    assert len(orders) > 1  # 1 in 8 million that six shuffles of four agree


def test_items_are_chosen_evenly(tmp_path, comparison_folder):
    folder = comparison_folder(tmp_path / "c", datasets=("cats", "dogs"), prompts=("a", "b"), seeds=3)
    draft = draft_study(read_comparison([folder]), StudyConfig(per_participant=4), 4)
    assert sorted((item.dataset, item.prompt) for item in draft.items) == [
        (dataset, prompt) for dataset in ("cats", "dogs") for prompt in ("a", "b")
    ]


def test_references_are_the_own_one_first_and_at_most_as_many_as_asked(tmp_path, comparison_folder):
    folder = comparison_folder(tmp_path / "c", prompts=("a red square",), seeds=1)
    (folder / "squares" / "references" / "2.txt").write_text("a red square")
    config = StudyConfig(per_participant=1, references=2, attention={"degraded": 0, "repeated": 0})
    create_study(draft_study(read_comparison([folder]), config, None), tmp_path / "s", quiet)
    references = read_plan(tmp_path / "s").items[0].references
    assert len(references) == 2
    with Image.open(tmp_path / "s" / "media" / references[0].name) as own:
        assert own.getpixel((0, 0)) == (0, 160, 0)


def test_pictures_of_an_item_have_one_size(tmp_path):
    small, large, wide = (Image.new("RGB", size) for size in ((20, 10), (40, 20), (40, 10)))
    paths = [tmp_path / "small.png", tmp_path / "other.png"]
    assert [image.size for image in same_size([small, large], paths)] == [(20, 10), (20, 10)]
    with pytest.raises(DataError, match=r"other.png: 40x10, another variant's picture of the same item is 20x10"):
        same_size([small, wide], paths)


def test_long_pictures_are_scaled_down_and_webp_is_written(tmp_path, comparison_folder):
    folder = comparison_folder(tmp_path / "c")
    Image.new("RGB", (400, 200), (9, 9, 9)).save(folder / "squares" / "references" / "0.png")
    settings = {"pictures": PictureConfig(format="webp", max_side=100)}
    draft = draft_study(read_comparison([folder]), StudyConfig(per_participant=2, **settings), None)
    create_study(draft, tmp_path / "s", quiet)
    sizes = {}
    for picture in read_plan(tmp_path / "s").pictures:
        with Image.open(tmp_path / "s" / "media" / picture.name) as image:
            assert image.format == "WEBP" and image.size == (picture.width, picture.height)
            sizes[image.size] = sizes.get(image.size, 0) + 1
    assert (100, 50) in sizes and max(max(size) for size in sizes) == 100


def test_a_degraded_picture_is_plainly_worse():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    before = np.asarray(image, float)
    errors = [np.square(np.asarray(degrade(image, s, 0), float) - before).mean() for s in (0.0, 0.1, 0.5, 1.0)]
    assert errors[0] == 0 and errors == sorted(errors) and errors[-1] > 2000


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"per_participant": 5}, "--per-participant 5: the study has 4 items"),
        ({"per_participant": 3, "items": 2}, "--per-participant 3: the study has 2 items"),
        ({"per_participant": 3, "items": 9}, "--items 9: the comparison has 4"),
    ],
)
def test_impossible_numbers(make_study, numbers, message):
    with pytest.raises(ConfigError, match=message):
        make_study(**numbers)


def test_one_variant_is_no_comparison(make_study):
    with pytest.raises(DataError, match="a study compares 2 to 26"):
        make_study(comparison={"arms": ARMS[:1]})


def test_a_study_is_never_replaced(make_study, tmp_path, comparison_folder):
    study = make_study()
    draft = draft_study(read_comparison([comparison_folder(tmp_path / "c")]), StudyConfig(per_participant=2), None)
    with pytest.raises(ConfigError, match="a sealed study is never changed"):
        create_study(draft, study.folder, quiet)


def test_a_failed_study_leaves_nothing_behind(tmp_path, comparison_folder):
    folder = comparison_folder(tmp_path / "c")
    draft = draft_study(read_comparison([folder]), StudyConfig(per_participant=2), None)
    (folder / "squares" / ARMS[2] / "1-1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1-1.png"):
        create_study(draft, tmp_path / "s", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_the_seal_can_be_checked_without_flowgrain(make_study):
    study = make_study()
    listed = subprocess.run(["sha256sum", "-c", "--quiet", "SEALED"], cwd=study.folder, capture_output=True)
    assert listed.returncode == 0
    assert hashlib.sha256((study.folder / "SEALED").read_bytes()).hexdigest() == study.seal


def tamper_config(study):
    path = study.folder / "study.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["exclusions"]["max_failed_checks"] = 7
    path.write_text(yaml.safe_dump(settings))


def tamper_plan(study):
    path = study.folder / "plan.json"
    plan = json.loads(path.read_text())
    plan["items"][0]["pictures"].reverse()
    path.write_text(json.dumps(plan))


def tamper_key(study):
    path = study.folder / "key.json"
    key = json.loads(path.read_text())
    key["variants"].reverse()
    path.write_text(json.dumps(key))


def tamper_picture(study):
    first, second = (study.folder / "media" / picture.name for picture in study.plan.items[0].pictures[:2])
    first.write_bytes(second.read_bytes())


def tamper_by_adding(study):
    (study.folder / "media" / f"{'0' * 32}.png").write_bytes(b"")


def tamper_by_removing(study):
    (study.folder / "media" / study.plan.items[0].pictures[0].name).unlink()


def tamper_with_the_list(study):
    path = study.folder / "SEALED"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "plan.json" not in line))


@pytest.mark.parametrize(
    "tamper",
    [
        tamper_config,
        tamper_plan,
        tamper_key,
        tamper_picture,
        tamper_by_adding,
        tamper_by_removing,
        tamper_with_the_list,
    ],
)
def test_a_change_breaks_the_seal(make_study, tamper):
    study = make_study()
    tamper(study)
    with pytest.raises(DataError, match="the seal is broken"):
        open_study(study.folder, None)


def test_a_new_seal_does_not_help_once_the_database_was_opened(make_study):
    """Whoever edits the plan and re-makes the list is caught by the seal that was stored before the first answer."""
    study = make_study()
    tamper_config(study)
    path = study.folder / "SEALED"
    lines = [line.split("  ") for line in path.read_text().splitlines()]
    renewed = [(hashlib.sha256((study.folder / name).read_bytes()).hexdigest(), name) for _, name in lines]
    path.write_text("".join(f"{digest}  {name}\n" for digest, name in renewed))
    with pytest.raises(DataError, match="the seal is broken, or the database belongs to another study"):
        open_study(study.folder, None)


def test_the_key_may_be_kept_elsewhere_until_the_close(make_study, client_of, person):
    study = make_study(exclusions={"min_median_seconds": 0, "max_failed_checks": 9})
    away = study.folder.parent / "away.json"
    (study.folder / "key.json").rename(away)
    again = open_study(study.folder, None)
    person(client_of(again)).finish()
    assert compute_results(again).facts.blinded
    again.store.close()
    with pytest.raises(DataError, match="put the key back"):
        compute_results(again)
    away.rename(study.folder / "key.json")
    assert compute_results(again).summary.variants == ARMS


def test_paths_in_the_list_cannot_lead_out(make_study):
    study = make_study()
    path = study.folder / "SEALED"
    path.write_text(path.read_text() + f"{'0' * 64}  media/../../../etc/passwd\n")
    with pytest.raises(DataError, match="no line of a seal"):
        verify(study.folder, key=False)
