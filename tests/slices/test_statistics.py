"""The numbers of a data report on data sets with known contents; each warning on a set made to cause it."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_data_set import MadeUpDataSet, clean, code_of

from flowgrain.errors import DataError
from flowgrain.slices.advice import advise
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.duplicates import near_groups
from flowgrain.slices.recorded import finished_chunks
from flowgrain.slices.reject_codes import MEANINGS, meaning_of
from flowgrain.slices.statistics import EXAMPLES, MOST_LISTED, read_statistics, views_at
from flowgrain.slices.tallies import Frequent, Histogram, Least


def statistics_of(made):
    return read_statistics(made.finish())[0]


def advice_of(made, factor=1.0):
    statistics = statistics_of(made)
    groups = near_groups(np.array(statistics.hashes, dtype=np.uint64), np.array(statistics.owners, dtype=np.int64))
    views = views_at(made.folder, statistics, groups.groups[0].members) if groups.count else {}
    return {each.code: each for each in advise(statistics, groups, tuple(views.values()), factor)}


# ---- tallies


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.05, 0.95), st.booleans())
@settings(deadline=None)
def test_histograms_count_everything_and_quantiles_lie_in_the_right_bin(values, part, octaves):
    histogram = Histogram(1 / 8 if octaves else 0.5, octaves)
    for value in values:
        histogram.add(value)
    for merge in (1, 3):
        bars = histogram.bars(merge)
        assert sum(bar.count for bar in bars) == len(values) == histogram.total
        assert all(math.isclose(a.high, b.low) for a, b in pairwise(bars))
    assert (histogram.least, histogram.greatest) == (min(values), max(values))
    true = sorted(values)[math.ceil(part * len(values) - 1e-9) - 1]
    found = histogram.quantile(part)
    if octaves:
        assert abs(math.log2(max(found, 2**-10)) - math.log2(max(true, 2**-10))) <= 1 / 8 + 1e-6
    else:
        assert abs(found - true) <= 0.5 + 1e-6
    assert histogram.below(math.inf) == len(values) and histogram.below(0) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.text("abc", max_size=2)), unique=True), st.integers(1, 8), st.randoms())
@settings(deadline=None)
def test_least_keeps_the_least_whatever_the_order(items, size, rng):
    shuffled = list(items)
    rng.shuffle(shuffled)
    least = Least(size)
    for value, name in shuffled:
        least.offer(float(value), name, (value, name))
    assert list(least) == sorted(items)[:size] and len(least) == min(size, len(items))


@given(st.lists(st.sampled_from("abcdefghij")), st.integers(1, 12))
@settings(deadline=None)
def test_frequent_counts_exactly_up_to_its_capacity_and_never_too_much(texts, capacity):
    frequent, true = Frequent(capacity), Counter(texts)
    for text in texts:
        frequent.add(text)
    found = dict(frequent.most_common(len(texts)))
    assert len(found) <= capacity and frequent.total == len(texts)
    assert all(found[text] <= true[text] for text in found)
    assert all(text in found for text, count in true.items() if count > len(texts) / (capacity + 1))
    if len(true) <= capacity:
        assert frequent.exact and found == dict(true) and frequent.different == len(true)


# ---- numbers


def test_counts_of_a_small_set(tmp_path):
    made = MadeUpDataSet(tmp_path / "d")
    made.image("a.png", [("macro",), ("meso",), ("micro", {"width": 64, "height": 96})], [("micro", "max_instances")])
    made.image("b.png", [("macro", {"action": "upscale", "upscaler": "lanczos", "scale": 1.5})])
    made.image("c.png", rejects=[("macro", "max_upscale"), ("micro", "min_score", {"detector": "boxes"})])
    made.image("d.png", fault="unreadable")
    made.image("e.png", [("macro",), ("micro", {"caption": ""})], [("meso", "suppressed"), ("meso", "min_side")])
    found = statistics_of(made)
    assert (found.images, found.roots, found.slices, found.empty) == (5, 3, 6, 1)
    assert found.faults == {"unreadable": 1}
    assert [(u.image, u.code) for u in found.unused] == [("c.png", "max_upscale"), ("d.png", "unreadable")]
    assert found.levels_per_root == {3: 1, 1: 1, 2: 1}
    assert {name: (level.slices, level.roots) for name, level in found.levels.items()} == {
        "macro": (3, 3), "meso": (1, 1), "micro": (2, 2),
    }  # fmt: skip
    assert found.bucket_roots == {(64, 64): 3, (64, 96): 1}
    macro, meso, micro = found.levels.values()
    assert macro.actions == {"downscale": 2, "upscale": 1} and macro.upscalers == {"lanczos": 1}
    assert macro.rejects == {"max_upscale": 1} and meso.rejects == {"suppressed": 1, "min_side": 1}
    assert micro.found == {"saliency": 3, "boxes": 1} and micro.detectors == {"saliency": 2}
    assert micro.uncaptioned == 1 and micro.captions.most_common(1) == [("", 1)]
    assert found.sides.total == 4 and macro.scales.greatest == 1.5 and macro.sharpness.total == 3
    assert list(found.owners) == [1, 2, 5] and found.hashes[1] == code_of("b.png 1")


def test_repetition_is_seen_by_box_and_by_look(tmp_path):
    base = 0x0123456789ABCDEF
    same, near, far = (f"{base ^ flip:016x}" for flip in (0, 0b1111, 0b11111))
    made = MadeUpDataSet(tmp_path / "d")
    made.image("a.png", [("macro", {}, {"phash": same}), ("meso", {"box": (0, 0, 190, 190)}, {"phash": far})])
    made.image("b.png", [("macro", {}, {"phash": same}), ("meso", {}, {"phash": near}), ("micro", {}, {"phash": far})])
    made.image("c.png", [("macro",), ("meso", {}, {"phash": same}), ("micro", {}, {"phash": near})])
    meso, micro = list(statistics_of(made).levels.values())[1:]
    assert (meso.near_macro, meso.near_macro_by_box, meso.repeats) == (2, 1, 0)
    assert (micro.near_macro, micro.repeats) == (0, 2)  # b: 1 bit from the meso slice; c: 4
    assert meso.examples_of("near macro")[0].view.image == "a.png"


def test_a_pre_split_set_counts_images_without_a_region(tmp_path):
    levels = {"macro": {"granularity": "macro", "detector": "boxes"}}
    made = MadeUpDataSet(tmp_path / "d", mode="pre_split", levels=levels)
    made.image(
        "a.png", [("macro", {"detector": "boxes", "root": "a/p0"}), ("macro", {"detector": "boxes", "root": "a/p1"})]
    )
    made.image("b.png", [("macro", {"root": "b/p0"})])
    made.image("c.png", rejects=[("macro", "min_score")])
    made.image("d.png", rejects=[("macro", "min_side", {"root": "d-0/p0"})])
    made.image("e.png", fault="unreadable")
    found = statistics_of(made)
    assert (found.regionless, found.roots, found.empty) == (2, 3, 2)
    assert list(found.owners) == [1, 1, 2]  # regions of one image are no duplicates of each other


def test_roots_are_found_again_by_their_hashes(tmp_path):
    made = clean(tmp_path / "d", 10)
    made.image("without.png", [("macro",)], facts=False).image("z.png", [("macro",)])
    found = statistics_of(made)
    assert len(found.hashes) == 11
    views = views_at(made.folder, found, range(11))
    for place, code in enumerate(found.hashes):
        assert int(views[place].facts[0].phash, 16) == code
    assert views_at(made.folder, found, [10])[10].image == "z.png"


def test_lists_and_examples_are_bounded(tmp_path):
    made = MadeUpDataSet(tmp_path / "d").image("a.png", [("macro",)])
    for index in range(MOST_LISTED + 5):
        made.image(f"bad{index:05d}.png", fault="unreadable")
    for index in range(40):
        made.image(f"good{index}.png", [("macro",)], [("micro", "min_side")] * 3)
    found = statistics_of(made)
    assert found.faults["unreadable"] == MOST_LISTED + 5 and len(found.unused) == MOST_LISTED
    assert len(found.shown) == 12 and len(found.levels["micro"].examples_of("reject min_side")) == EXAMPLES
    assert len({example.view.root for example in found.levels["micro"].examples_of("reject min_side")}) > 1


def test_the_order_of_chunks_is_that_of_the_images(tmp_path):
    made = clean(tmp_path / "d", 20)
    store = made.store
    made.finish()
    for name, part in (("f" * 20, made.parts[0]), ("0" * 20, made.parts[19])):
        store.commit(name, [part])
    store.commit("e" * 20, made.parts[1:19])
    (store.state / "chunks" / "x.host-1.journal").write_text("")
    for path in (store.state / "chunks").glob("*.jsonl"):
        if path.stem not in ("f" * 20, "0" * 20, "e" * 20):
            path.unlink()
    assert finished_chunks(made.folder) == ["f" * 20, "e" * 20, "0" * 20]


def test_what_is_no_finished_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no finished data set of decompose here \(dataset.json is missing\)"):
        read_statistics(tmp_path)
    folder = clean(tmp_path / "d").finish()
    (folder / "dataset.json").write_text('{"config": {"levels": 3}}')
    with pytest.raises(DataError, match="damaged, or of another version"):
        read_statistics(folder)


# ---- warnings


def many(tmp_path, slices=(), rejects=(), count=24, bad=24, **settings):
    """``bad`` of ``count`` images with these slices and rejects, the others clean."""
    made = MadeUpDataSet(tmp_path / "d", **settings)
    for index in range(count):
        wrong = index < bad
        made.image(
            f"photo{index:03d}.png", slices if wrong else [("macro",), ("meso",), ("micro",)], rejects if wrong else ()
        )
    return made


ALL = [("macro",), ("meso",), ("micro",)]


def test_a_clean_set_has_no_warning(tmp_path):
    assert advice_of(clean(tmp_path / "d")) == {}


def test_unused_images(tmp_path):
    made = clean(tmp_path / "d").image("x.png", fault="unreadable").image("y.png", rejects=[("macro", "min_side")])
    warned = advice_of(made)["unused_images"]
    assert warned.title == "2 of 26 images gave no slice"
    assert "1 unreadable, 1 of which no box could be used" in warned.numbers and "x.png" in warned.numbers


def test_what_could_not_be_listed_is_not_used_either(tmp_path):
    made = clean(tmp_path / "d")
    made.unlisted.append(RejectRecord(image="b.tar", code="unlisted", reason="damaged"))
    found = statistics_of(made)
    assert (found.images, found.faults, found.unused[0].image) == (24, {"unlisted": 1}, "b.tar")
    assert advice_of(made)["unused_images"].title == "1 of 25 images gave no slice"


def test_near_duplicates_across_images(tmp_path):
    made = clean(tmp_path / "d")
    for name in ("x", "y", "z"):
        made.image(f"{name}.png", [("macro", {}, {"phash": "00000000ffff0000"}), ("meso",), ("micro",)])
    warned = advice_of(made)["near_duplicates"]
    assert warned.title == "3 pictures look like another one" and "form 1 group (" in warned.numbers
    assert "2 of 27 roots would go" in warned.numbers and [e.view.image for e in warned.examples] == [
        "x.png",
        "y.png",
        "z.png",
    ]


def test_a_level_without_slices_and_a_thin_one(tmp_path):
    warned = advice_of(many(tmp_path, [("macro",), ("micro",)], [("meso", "max_upscale")]))["no_slices"]
    assert warned.title == "level meso has no slice" and "max_upscale 24" in warned.numbers
    assert "levels.meso.targets.resolution" in warned.remedy and len(warned.examples) == EXAMPLES
    thin = advice_of(many(tmp_path / "thin", [("macro",), ("micro",)], [("meso", "min_score")], bad=20))["few_slices"]
    assert "in 17\u00a0% of the roots only" in thin.title and "levels.meso.min_score" in thin.remedy


def test_a_level_in_which_nothing_was_found(tmp_path):
    warned = advice_of(many(tmp_path, [("macro",), ("micro",)]))
    assert "found 0 boxes" in warned["no_slices"].numbers and "[FIRST, saliency]" in warned["no_slices"].remedy
    assert warned["silent_detector"].title == "detector saliency of level meso found nothing in any image"


@pytest.mark.parametrize(("code", "advised"), [("lanczos_max", "an upscaler"), ("min_side", "levels.micro.min_side")])
def test_boxes_that_are_too_small(tmp_path, code, advised):
    made = many(tmp_path, ALL, [("micro", code)], bad=7)
    warned = advice_of(made)["too_small"]
    assert warned.title == "23\u00a0% of the boxes of level micro are too small"  # 7 of 31
    assert f"7 boxes were refused ({code} 7), 24 became slices" in warned.numbers and advised in warned.remedy
    assert "too_small" not in advice_of(
        many(tmp_path / "few", ALL, [("micro", code)], bad=6)
    )  # 6 of 30 are no fifth more


def test_slices_that_repeat_the_whole(tmp_path):
    slices = [("macro",), ("meso", {"box": (0, 0, 190, 190)}), ("micro",)]
    warned = advice_of(many(tmp_path, slices, bad=2))["near_macro"]
    assert (
        "8\u00a0% of the slices of level meso" in warned.title
        and warned.remedy == "Drop them with dedupe_against_macro=finer."
    )
    kept = advice_of(many(tmp_path / "k", slices, bad=2, dedupe_against_macro="finer"))["near_macro"]
    assert "iou_threshold" in kept.remedy
    assert "near_macro" not in advice_of(many(tmp_path / "one", slices, bad=1))


def test_slices_that_look_alike_in_their_root(tmp_path):
    same = {"phash": "1234567812345678"}
    assert "repeats" in advice_of(many(tmp_path, [("macro",), ("meso", {}, same), ("micro", {}, same)], bad=2))


@pytest.mark.parametrize(
    ("code", "count", "warning"), [("suppressed", 1, "suppressed"), ("max_instances", 2, "left_out")]
)
def test_boxes_that_give_way(tmp_path, code, count, warning):
    assert warning in advice_of(many(tmp_path, ALL, [("meso", code)] * count))
    assert warning not in advice_of(many(tmp_path / "few", ALL, [("meso", code)], bad=6))


def test_framing_that_cuts(tmp_path):
    cut = [("macro", {"crop": (0, 0, 200, 140)}), ("meso",), ("micro",)]
    warned = advice_of(many(tmp_path, cut, bad=5))["cut_away"]
    assert "5 of 24 slices show less than 75%" in warned.numbers and len(warned.examples) == EXAMPLES
    assert "cut_away" not in advice_of(many(tmp_path / "few", cut, bad=4))


def test_enlarged_slices(tmp_path):
    up = {"action": "upscale", "upscaler": "lanczos", "scale": 1.8}
    warned = advice_of(many(tmp_path, [*ALL[:2], ("micro", up)], bad=8))["enlarged"]
    assert warned.title == "33\u00a0% of the slices of level micro are enlarged" and "by lanczos 8" in warned.numbers
    slight = many(tmp_path / "slight", [*ALL[:2], ("micro", {**up, "scale": 1.04})])
    assert "enlarged" not in advice_of(slight)


def test_blurred_slices(tmp_path):
    warned = advice_of(many(tmp_path, [*ALL[:2], ("micro", {}, {"sharpness": 2.0})], bad=2))["blurred"]
    assert "8\u00a0% of the slices of level micro are blurred" in warned.title
    assert [e.record.level for e in warned.examples] == ["micro"] * 2
    assert {e.view.image for e in warned.examples} == {"photo000.png", "photo001.png"}


def test_captions(tmp_path):
    warned = advice_of(many(tmp_path, [("macro", {"caption": ""}), ("meso", {"caption": ""}), ("micro",)], bad=3))
    assert warned["uncaptioned"].numbers == "6 of 72: macro 3, meso 3."
    one = advice_of(many(tmp_path / "one", [("macro", {"caption": "my <photo>"}), *ALL[1:]], bad=13))["one_caption"]
    assert one.title == "54\u00a0% of the slices of level macro have the same caption" and "“my <photo>”" in one.numbers
    like = [("macro", {"caption": "a fox"}), ("meso", {"caption": "a fox"}), ("micro",)]
    assert "levels.meso.caption" in advice_of(many(tmp_path / "like", like, bad=2))["same_caption"].remedy


def test_detectors_that_never_fire_and_fallbacks(tmp_path):
    levels = {
        "macro": {"granularity": "macro"},
        "meso": {"granularity": "meso", "detector": ["boxes", "saliency"]},
        "micro": {"granularity": "micro", "detector": "saliency"},
    }
    silent = advice_of(many(tmp_path, ALL, levels=levels))["silent_detector"]
    assert silent.title == "detector boxes of level meso found nothing in any image"
    assert "24 slices are by other detectors" in silent.numbers
    boxes = [("macro",), ("meso", {"detector": "boxes"}), ("micro",)]
    fell = advice_of(many(tmp_path / "f", boxes, bad=11, levels=levels))
    assert "in 54\u00a0% of its slices" in fell["fell_back"].title and "silent_detector" not in fell
    assert not advice_of(many(tmp_path / "ok", boxes, bad=12, levels=levels))


def test_images_without_a_region(tmp_path):
    levels = {"macro": {"granularity": "macro", "detector": "boxes"}}
    made = MadeUpDataSet(tmp_path / "d", mode="pre_split", levels=levels)
    for index in range(20):
        made.image(f"{index}.png", [("macro", {"detector": "boxes" if index > 2 else "whole_image"})])
    warned = advice_of(made)["no_region"]
    assert "15\u00a0% of the images" in warned.title and "no_region=skip" in warned.remedy


def test_buckets_with_few_roots(tmp_path):
    rare = [("macro", {"height": 96}), ("meso",), ("micro",)]
    warned = advice_of(many(tmp_path, rare, bad=7))["thin_buckets"]
    assert warned.title.startswith("1 of 2 buckets") and "64×96 (7)" in warned.numbers
    assert "thin_buckets" not in advice_of(many(tmp_path / "sample", rare, bad=7), factor=2.0)
    assert "thin_buckets" not in advice_of(many(tmp_path / "enough", rare, bad=8))


def test_every_code_that_decompose_writes_is_explained():
    import re
    from pathlib import Path

    import flowgrain.slices as package

    text = "".join(path.read_text() for path in Path(package.__file__).parent.glob("*.py"))
    written = set(re.findall(r'"(min_side|max_upscale|lanczos_max|min_score|outside|outside_mask|duplicate)"', text))
    written |= set(re.findall(r'^[A-Z_]+ = "(unreadable|duplicate_root|bad_name|bad_sidecar)"$', text, re.MULTILINE))
    assert len(written) == 11 and written <= set(MEANINGS)
    assert all(each.meaning and each.remedy for each in MEANINGS.values())
    assert meaning_of("of the future").remedy == "see the reason"
