"""Captions whose tags vary: the law of one draw, and what an opened data set asks for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowgrain.data.captions import TagVariation, vary_tags
from flowgrain.data.dataset import DataConfig, open_dataset, open_split

TAGS = st.lists(st.text("ab cd", min_size=1).map(str.strip).filter(bool), max_size=8)
CAPTION = "1girl, solo, red hair, smile, outdoors"


@given(tags=TAGS, keep=st.integers(0, 9), seed=st.integers(0, 99), separator=st.sampled_from([",", "|", ";"]))
def test_a_shuffle_keeps_the_tags_and_the_first_of_them_in_front(tags, keep, seed, separator):
    caption = separator.join(tags)
    varied = vary_tags(caption, TagVariation(True, 0.0, separator), keep, seed, "id")
    found = varied.split(", ") if varied else []
    assert Counter(found) == Counter(tags)
    assert found[:keep] == tags[:keep]
    assert varied == vary_tags(caption, TagVariation(True, 0.0, separator), keep, seed, "id")


@given(tags=TAGS, keep=st.integers(0, 9), seed=st.integers(0, 99), shuffle=st.booleans())
def test_left_out_tags_are_never_those_that_are_kept(tags, keep, seed, shuffle):
    varied = vary_tags(",".join(tags), TagVariation(shuffle, 0.5), keep, seed, "id")
    found = varied.split(", ") if varied else []
    assert not Counter(found) - Counter(tags)
    assert found[:keep] == tags[:keep]
    if not shuffle:  # the order is that of the caption
        rest = iter(tags[keep:])
        assert all(tag in rest for tag in found[keep:])


def test_every_order_is_equally_likely_and_tags_drop_at_their_rate():
    orders = Counter(vary_tags("a,b,c", TagVariation(True, 0.0), 0, n) for n in range(6000))
    assert len(orders) == 6 and all(abs(count - 1000) < 5 * np.sqrt(1000 * 5 / 6) for count in orders.values())
    left = sum(len(vary_tags("a,b,c,d", TagVariation(False, 0.25), 0, n).split(", ")) for n in range(4000))
    assert abs(left / 16000 - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 16000)


def test_empty_tags_are_no_tags():
    assert vary_tags(" a,, b , ", TagVariation(False, 0.0), 0, 1) == "a, b"
    assert vary_tags("", TagVariation(True, 0.5), 3, 1) == ""


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        path = tmp_path / name
        path.mkdir()
        for number in range(3):
            pixels = np.random.default_rng(ord(name) + number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f"{number}.png")
            (path / f"{number}.txt").write_text(CAPTION)
    return tmp_path


def dataset(folder, **options):
    config = DataConfig.model_validate({"path": folder / "a", "resolution": 32, **options})
    return open_dataset(config, 16)


def test_live_captions_follow_seed_epoch_and_slice_alone(folder):
    data = dataset(folder, caption_shuffle=True, keep_tokens=1, cache_text=False)
    drawn = [[data.caption(index, 0, epoch) for index in range(3)] for epoch in range(20)]
    assert drawn == [[data.caption(index, 0, epoch) for index in range(3)] for epoch in range(20)]
    assert len({text for texts in drawn for text in texts}) > 10
    assert all(text.startswith("1girl, ") for texts in drawn for text in texts)
    assert data.caption(0, 1, 0) != data.caption(0, 0, 0)
    assert any(len(set(texts)) > 1 for texts in drawn)  # slices of one caption have orders of their own


def test_kept_variants_come_in_turn_and_are_all_that_a_cache_is_asked_for(folder):
    data = dataset(folder, caption_shuffle=True, caption_variants=3, caption_dropout=0.2)
    known = set(data.captions(5))
    for index in range(3):
        drawn = [data.caption(index, 5, epoch) for epoch in range(60)]
        assert set(drawn) <= known and "" in drawn
        whole = [text if text else None for text in drawn]
        for epoch in range(57):  # one of the three each epoch, in turn
            if whole[epoch] and whole[epoch + 3]:
                assert whole[epoch] == whole[epoch + 3]
    assert known != set(data.captions(6))
    assert dataset(folder).captions(5) == (CAPTION,)


def test_whole_captions_are_left_out_before_their_tags(folder):
    data = dataset(folder, tag_dropout=0.5, keep_tokens=1, caption_dropout=0.5, cache_text=False)
    drawn = [data.caption(0, 0, epoch) for epoch in range(400)]
    assert 0.4 < drawn.count("") / 400 < 0.6
    assert all(text.startswith("1girl") for text in drawn if text)


def test_each_source_may_keep_its_own_number_of_tags(folder):
    sources = [{"path": folder / "a"}, {"path": folder / "b", "keep_tokens": 3}]
    config = {"sources": sources, "resolution": 32, "caption_shuffle": True, "keep_tokens": 1, "cache_text": False}
    data = open_dataset(DataConfig.model_validate(config), 16)
    assert [s.keep_tokens for s in data.slices] == [1, 1, 1, 3, 3, 3]
    assert all(data.caption(5, 0, epoch).startswith("1girl, solo, red hair, ") for epoch in range(20))
    other = open_dataset(DataConfig.model_validate(config | {"keep_tokens": 2}), 16)
    assert other.fingerprint != data.fingerprint


def test_held_out_captions_do_not_vary(folder):
    config = {"path": folder / "a", "resolution": 32, "holdout": 0.3, "caption_shuffle": True, "caption_variants": 2}
    train, held = open_split(DataConfig.model_validate(config), 16)
    assert held is not None
    assert [held.caption(0, 0, epoch) for epoch in range(5)] == [CAPTION] * 5
    assert held.captions(0) == (CAPTION,) and len(train.captions(0)) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"caption_shuffle": True}, "caption_variants .* or data.cache_text to false"),
        ({"tag_dropout": 0.1}, "data.tag_dropout gives a caption many forms"),
        ({"keep_tokens": 1}, "data.keep_tokens is not read where captions do not vary"),
        ({"caption_separator": "|"}, "data.caption_separator is not read"),
        ({"caption_variants": 2}, "data.caption_variants is not read where captions do not vary"),
        ({"caption_shuffle": True, "caption_variants": 2, "cache": False}, "not read where data.cache is false"),
        ({"caption_shuffle": True, "caption_variants": 2, "cache_text": False}, "not read where data.cache_text is"),
        (
            {"path": None, "sources": [{"path": "a", "keep_tokens": 2}], "keep_tokens": 1, "tag_dropout": 0.1,
             "cache": False},
            "data.keep_tokens is not read where every source has its own",
        ),
    ],
)  # fmt: skip
def test_contradictions_name_the_ways_out(options, words):
    with pytest.raises(ValueError, match=words):
        DataConfig.model_validate({"path": "a", **options})


def test_varying_captions_are_kept_in_variants_or_not_kept():
    vary = {"path": "a", "caption_shuffle": True}
    assert DataConfig.model_validate({**vary, "caption_variants": 2}).caches_text
    assert not DataConfig.model_validate({**vary, "cache_text": False}).caches_text
    assert not DataConfig.model_validate({**vary, "cache": False}).caches_text
