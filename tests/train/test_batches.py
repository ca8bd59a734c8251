"""Micro-batches: sizes and crops of slices as they are, offset noise from identity, captions for trained encoders."""

import hashlib

import pytest
import torch

from flowgrain.data.dataset import DataConfig, open_dataset
from flowgrain.data.records import MANIFEST_NAME, MicroBatch, SliceRecord
from flowgrain.train.setup import prepare


def silent(_what, _done, _total):
    """No progress."""


@pytest.fixture
def session(unet_recipe):
    return lambda **sections: prepare(unet_recipe(**sections), silent)


def batches(session, epoch=0, size=2):
    """The slices of each shape in micro-batches of ``size``."""
    slices = session.dataset.slices
    for shape in sorted({s.bucket for s in slices}):
        indices = [i for i, s in enumerate(slices) if s.bucket == shape]
        for start in range(0, len(indices), size):
            part = torch.tensor(indices[start : start + size]).numpy()
            yield session.builder.build(MicroBatch(part, torch.ones(len(part)).double().numpy()), epoch)


def by_name(session, epoch=0, size=2):
    return {name: (b, i) for b in batches(session, epoch, size) for i, name in enumerate(b.names)}


@pytest.fixture
def framed(tmp_path):
    """One slice of 64x48 pixels: the window (60, 0, 160, 75) of the box (0, 0, 200, 75), at 0.64 pixels a pixel."""
    from conftest import draw

    path = tmp_path / "framed" / "slices" / "r.meso.png"
    path.parent.mkdir(parents=True)
    draw(1, (64, 48)).save(path)
    record = SliceRecord(
        slice_id="r/meso0", root="r", image="r.png", image_sha1=hashlib.sha1(path.read_bytes()).hexdigest(),
        level="meso", granularity="meso", path="slices/r.meso.png", width=64, height=48, box=(0, 0, 200, 75),
        crop=(60, 0, 160, 75), scale=0.64, action="downscale", reason="test", parent=None, detector="test", score=1.0,
        caption="a drawing", caption_source="sidecar",
    )  # fmt: skip
    (tmp_path / "framed" / MANIFEST_NAME).write_text(record.model_dump_json() + "\n")
    return tmp_path / "framed"


def test_a_slice_tells_its_size_in_the_source_and_where_framing_cut_it(session, framed):
    run = session(data={"path": str(framed), "flip": True})
    seen = set()
    for epoch in range(8):
        (batch,) = batches(run, epoch)
        geometry = batch.inputs.geometry
        assert geometry.original.tolist() == [[75, 200]] and geometry.target.tolist() == [[48, 64]]
        mirrored = run.dataset.flipped(0, run.recipe.seed, epoch)
        assert geometry.crop.tolist() == [[0, 26 if mirrored else 38]]  # 40 and 60 source pixels at 0.64
        seen.add(mirrored)
    assert seen == {False, True}


def test_a_whole_picture_tells_its_size_and_the_margins_it_would_have_inside_the_bucket(tmp_path):
    from conftest import draw

    draw(0, (200, 100)).save(tmp_path / "wide.png")
    (slice_,) = open_dataset(DataConfig(path=tmp_path, buckets=((64, 64),)), 8).slices
    assert (slice_.native, slice_.offset, slice_.offset_mirrored) == ((200, 100), (0, 16), 0)


def test_geometry_is_part_of_the_data_sets_fingerprint(framed):
    before = open_dataset(DataConfig(path=framed), 8).fingerprint
    manifest = framed / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace('"crop":[60.0,0.0,160.0', '"crop":[30.0,0.0,130.0'))
    assert open_dataset(DataConfig(path=framed), 8).fingerprint != before


def test_offset_noise_moves_each_channel_by_a_draw_of_its_own(session):
    plain, moved = session(), session(noise={"offset": 0.1})
    shifts = []
    for epoch in range(60):
        for before, after in zip(batches(plain, epoch), batches(moved, epoch), strict=True):
            assert before.names == after.names and torch.equal(before.x0, after.x0)
            shift = after.noise - before.noise
            assert shift.std(dim=(2, 3)).max() < 1e-6  # the same for the whole channel
            shifts.append(shift.mean(dim=(2, 3)).flatten())
    drawn = torch.cat(shifts) / 0.1
    assert abs(drawn.mean()) < 5 / len(drawn) ** 0.5
    assert abs(drawn.std() - 1) < 5 / (2 * len(drawn)) ** 0.5


def test_offset_noise_does_not_depend_on_the_micro_batch(session):
    run = session(noise={"offset": 0.1, "adaptive": 0.5})
    alone, together = by_name(run, 3, 1), by_name(run, 3, 8)
    for name, (batch, row) in alone.items():
        other, place = together[name]
        assert torch.equal(batch.noise[row], other.noise[place]) and torch.equal(batch.x0[row], other.x0[place])


def test_an_adaptive_offset_follows_the_latents_mean_and_is_never_negative(session):
    plain, moved = session(), session(noise={"offset": 0.1})
    adapted, cut = session(noise={"offset": 0.1, "adaptive": 2.0}), session(noise={"offset": 0.1, "adaptive": -1e6})
    for none, some, more, less in zip(*map(batches, (plain, moved, adapted, cut)), strict=True):
        strength = 1 + 20 * none.x0.mean(dim=(2, 3), keepdim=True).abs()
        torch.testing.assert_close(more.noise - none.noise, strength * (some.noise - none.noise), rtol=1e-4, atol=1e-5)
        assert torch.equal(less.noise, none.noise)


def test_trained_text_encoders_get_captions_and_frozen_ones_embeddings(session):
    live = session(adapter={"kind": "lora", "rank": 4, "alpha": 2, "text_encoders": {}},
                   data={**session().recipe.data.model_dump(), "cache_text": False})  # fmt: skip
    for batch in batches(live):
        assert batch.inputs.embedding is None and batch.inputs.grad
        assert batch.inputs.captions == [live.dataset.slices[_index(live, name)].caption for name in batch.names]
    assert all(batch.inputs.captions is None for batch in batches(session()))


def test_kept_variants_are_the_live_embeddings_of_the_captions_drawn(session):
    data = {**session().recipe.data.model_dump(), "caption_shuffle": True, "caption_variants": 2}
    kept, live = session(data=data), session(data={**data, "caption_variants": None, "cache_text": False})
    for epoch in range(3):
        for batch in batches(kept, epoch):
            drawn = [kept.dataset.caption(_index(kept, name), kept.recipe.seed, epoch) for name in batch.names]
            embedded = live.family.embed_text(drawn)
            assert all(torch.equal(batch.inputs.embedding.tensors[key], v) for key, v in embedded.tensors.items())
        for batch in batches(live, epoch):
            drawn = [live.dataset.caption(_index(live, name), live.recipe.seed, epoch) for name in batch.names]
            embedded = live.family.embed_text(drawn)
            assert all(torch.equal(batch.inputs.embedding.tensors[key], v) for key, v in embedded.tensors.items())


def _index(session, name):
    return [s.slice_id for s in session.dataset.slices].index(name)
