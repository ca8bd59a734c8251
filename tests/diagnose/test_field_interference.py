"""Interference of a run's data fields against the definitions, written out naively on the same points."""

import dataclasses

import numpy as np
import pytest
import torch

from flowgrain.diagnose.field_queries import (
    batch_points,
    chunk_latents,
    default_levels,
    draw_points,
    share_queries,
)
from flowgrain.diagnose.fields import _decompose, measure_interference
from flowgrain.diagnose.groupings import caption_topics, make_groupings
from flowgrain.diagnose.intervals import interval, plain
from flowgrain.diagnose.latents import LatentSpace
from flowgrain.flow.paths import RectifiedFlow
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.geometry.queries import ArrayLatents, LatentSource


def quiet(_what, _done, _total):
    pass


@pytest.fixture(scope="module")
def measured(opened):
    return measure_interference(opened, opened.config, quiet).as_json()


def grouping(values, name):
    return next(found for found in values["groupings"] if found["name"] == name)


def cells(values, name, **wanted):
    return [c for c in grouping(values, name)["cells"] if all(c[key] == value for key, value in wanted.items())]


def naive(opened, point, captions, t):
    """Mean pair terms and cosines by the definitions, one query at a time, in float64."""
    (space,) = opened.spaces
    clean = space.latents.read(0, len(space)).double().flatten(1)
    levels = [opened.train.dataset.slices[index].granularity for index in space.index]
    terms, cosines = [], []
    levels_asked = list(opened.config.levels)
    with opened.at(point):
        for batch in draw_points(space, opened.path, levels_asked, opened.config.queries, 1, opened.config):
            if batch.t.item() != t:
                continue
            inputs = opened.inputs(opened.train, batch.slices, None if captions == "own" else [""], batch.mirrored)
            velocity = opened.predict(batch.x, batch.t, inputs).double().flatten()
            x = batch.x.double().flatten()
            log_density = -(x - (1 - t) * clean).square().sum(dim=1) / (2 * t * t)
            velocities = (x - clean) / t  # noise - x0 with noise = (x - (1 - t) x0) / t
            members = [torch.tensor([level == group for level in levels]) for group in range(3)]
            log_z = torch.stack([log_density[own].logsumexp(0) for own in members])
            alpha = log_z.softmax(0)
            fields = [torch.softmax(log_density[own], 0) @ velocities[own] for own in members]
            residual = velocity - torch.stack(fields)
            omega = residual @ residual.T / residual.shape[1]
            terms.append(alpha[:, None] * omega * alpha[None, :])
            norm = omega.diagonal().sqrt()
            cosines.append(omega / (norm[:, None] * norm[None, :]))
    return torch.stack(terms).mean(0), torch.stack(cosines).mean(0)


@pytest.mark.parametrize("t", [0.5, 0.97])
@pytest.mark.parametrize("captions", ["empty", "own"])
def test_terms_and_cosines_are_those_of_the_definitions(opened, measured, captions, t):
    point = opened.points[-1]
    (found,) = cells(measured, "level", point=point.name, captions=captions, t=t)
    terms, cosines = naive(opened, point, captions, t)
    assert torch.allclose(torch.tensor(found["terms"]["mean"], dtype=torch.float64), terms, rtol=2e-5, atol=1e-9)
    assert torch.allclose(torch.tensor(found["cosines"]["mean"], dtype=torch.float64), cosines, rtol=2e-5, atol=1e-6)


def test_the_identities_of_the_paper_hold_on_real_points(measured):
    assert measured["checks"]["identity"] < 1e-10  # Eq. 20
    assert measured["checks"]["marginal"] < 1e-10  # Eq. 14 for every partition
    for cell in grouping(measured, "level")["cells"]:
        whole = np.array(cell["terms"]["mean"])
        assert cell["loss"]["mean"] == pytest.approx(whole.sum(), rel=1e-4, abs=1e-6)
        assert cell["independent"]["mean"] == pytest.approx(np.trace(whole), rel=1e-4, abs=1e-9)
        assert cell["correlation"]["mean"] == pytest.approx(whole.sum() - np.trace(whole), rel=1e-3, abs=1e-6)


def test_a_perfect_fit_has_no_loss_and_negative_cross_terms(measured):
    (perfect,) = cells(measured, "level", point=measured["perfect"], t=0.97)
    (start,) = cells(measured, "level", point="without adapter", captions="empty", t=0.97)
    assert abs(perfect["loss"]["mean"]) < 1e-12 < start["loss"]["mean"]
    assert perfect["correlation"]["mean"] == pytest.approx(-perfect["independent"]["mean"], rel=1e-4)
    assert perfect["correlation"]["high"] < 0


def test_the_local_loss_is_the_same_from_every_partition(measured):
    last = measured["points"][-1]
    for t in measured["levels"]:
        losses = [
            cells(measured, found["name"], point=last, captions="empty", t=t)[0]["loss"]["mean"]
            for found in measured["groupings"]
        ]
        assert len(losses) == 4 and losses == pytest.approx([losses[0]] * 4, rel=1e-4)


def test_cross_terms_have_weight_near_noise_alone(measured):
    low, high = grouping(measured, "level")["profiles"]
    assert low["cross_weight"]["mean"] < 1e-6 and high["cross_weight"]["mean"] > 0.01
    assert low["effective_samples"] < 1.01 < high["effective_samples"] <= measured["latents"]
    near = {row["t"]: row["neglected"] for row in measured["concentration"]}
    assert near[0.5] < 1e-6 and near[0.5] <= near[0.97] <= 1


def test_what_training_changed_is_the_difference_of_the_states(measured):
    last = measured["points"][-1]
    for row in grouping(measured, "level")["changes"]:
        ends = [
            cells(measured, "level", point=point, captions=row["captions"], t=row["t"])[0]["loss"]["mean"]
            for point in ("without adapter", last)
        ]
        assert row["loss"]["mean"] == pytest.approx(ends[1] - ends[0], abs=2e-5 * ends[0])
        assert row["loss"]["low"] <= row["loss"]["mean"] <= row["loss"]["high"]
    assert {row["captions"] for row in grouping(measured, "level")["changes"]} == {"empty", "own"}


def test_batches_change_nothing(open_short, measured):
    # 2 points a batch: the least memory that the settings allow gives one batch here, hence the batch is set
    opened = open_short(batch_size=5, memory_mib=0)
    again = measure_interference(opened, opened.config, quiet).as_json()
    assert batch_points(256 * 4, 3, 6, opened.config) == 1
    one, other = (cells(values, "level", t=0.97) for values in (measured, again))
    for left, right in zip(one, other, strict=True):
        # the model's own batch size changes its rounding, float32
        assert np.allclose(left["terms"]["mean"], right["terms"]["mean"], rtol=1e-3, atol=1e-6)


def test_groups_of_other_shapes_never_meet(open_short, run_of_sizes):
    opened = open_short(run=run_of_sizes)
    values = measure_interference(opened, opened.config, quiet).as_json()
    levels = grouping(values, "level")
    assert [shape["latents"] for shape in values["shapes"]] == [24, 12]
    assert levels["covered"] == pytest.approx(24 / 36)  # meso and micro
    for cell in levels["cells"]:
        assert np.array(cell["terms"]["mean"])[0].tolist() == [0, 0, 0]  # macro is alone in its shape
        assert [row[0] for row in cell["cosines"]["mean"]] == [None] * 3
        assert cell["cosines"]["mean"][1][2] is not None
    buckets = grouping(values, "bucket")
    assert buckets["groups"] == ["48x64", "64x64"] and buckets["cells"] == [] and buckets["separation"] is not None


def test_one_level_leaves_the_other_partitions(open_short):
    opened = open_short()
    dataset = opened.train.dataset
    macro = [place for place, item in enumerate(dataset.slices) if item.granularity == 0]
    alone = dataclasses.replace(dataset, slices=tuple(dataset.slices[place] for place in macro))
    (space,) = opened.spaces
    rows = [row for row, index in enumerate(space.index) if index in macro]
    kept = LatentSpace(
        space.shape,
        tuple(macro.index(space.index[row]) for row in rows),
        tuple(space.mirrored[row] for row in rows),
        ArrayLatents(space.latents.read(0, len(space))[rows]),
    )
    found = make_groupings(alone, [kept], opened.config)
    assert [group.name for group in found.found] == ["frequency", "topic"]
    assert found.absent["semantic levels"] == "all slices are macro"


def test_a_slice_and_its_mirror_image_are_in_one_group(opened):
    (space,) = opened.spaces
    found = make_groupings(opened.train.dataset, opened.spaces, opened.config)
    for each in (*found.found, *found.controls.values()):
        partition, place = each.local(space)
        labels = {}
        for index, label in zip(space.index, partition.labels.tolist(), strict=True):
            assert labels.setdefault(index, label) == label
        assert place == list(range(len(each.partition)))
    for name, control in found.controls.items():
        own = next(each for each in found.found if each.name == name)
        assert control.partition.sizes.tolist() == own.partition.sizes.tolist()
        assert not torch.equal(control.partition.labels, own.partition.labels)


def test_caption_topics_are_words_that_split_the_captions():
    captions = ["a red fox"] * 3 + ["a blue fox"] * 2 + ["the fox"] * 2 + ["red and blue fox"]
    topics = caption_topics(captions, 2)
    assert topics.names == ("red", "blue", "other")
    assert topics.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 0]
    assert caption_topics(["a fox"] * 4, 3) is None and caption_topics([""] * 4, 3) is None
    assert caption_topics(["red", "red", "blue", "blue"], 3).names == ("blue", "red")


def test_levels_of_a_table_are_those_of_the_same_noise():
    table = VariancePreserving(NoiseSchedule())
    levels = default_levels(table)
    ratios = [table.snr(torch.tensor([level], dtype=torch.float64)).rsqrt().item() for level in levels]
    assert ratios[:4] == pytest.approx([1, 7 / 3, 4, 9], rel=0.02)
    assert ratios[-1] == pytest.approx(14.6, rel=0.01) and len(levels) == 5  # the table ends there
    ended = VariancePreserving(NoiseSchedule(zero_terminal_snr=True), "v_prediction")
    assert all(0 < table.snr(torch.tensor([level])).item() < float("inf") for level in default_levels(ended))
    assert default_levels(RectifiedFlow()) == (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def test_queries_are_shared_by_size_and_do_not_depend_on_the_batch(opened):
    spaces = [
        LatentSpace((1, 2, 2), tuple(range(n)), (False,) * n, ArrayLatents(torch.zeros(n, 1, 2, 2))) for n in (7, 2, 1)
    ]
    assert share_queries(spaces, 10) == [7, 2, 1] and share_queries(spaces, 3) == [2, 1, 0]
    assert sum(share_queries(spaces, 11)) == 11
    (space,) = opened.spaces
    one = list(draw_points(space, opened.path, (0.5, 0.9), 5, 100, opened.config))
    many = list(draw_points(space, opened.path, (0.5, 0.9), 5, 3, opened.config))
    assert len(one) == 1 and len(many) == 4
    assert torch.equal(one[0].x, torch.cat([batch.x for batch in many]))
    assert one[0].row == tuple(row for batch in many for row in batch.row)
    assert len(set(one[0].row)) == 5  # the same five latents at both levels


def test_intervals_leave_out_points_that_have_no_entry():
    values = np.array([[1.0, np.nan, 5.0], [3.0, 2.0, np.nan], [2.0, 4.0, np.nan]])
    found = interval(values, ["a", "b", "c"], 200, 0)
    assert found["mean"] == [2.0, 3.0, 5.0]
    assert found["low"][0] < 2 < found["high"][0] and found["low"][1] >= 2 and found["high"][1] <= 4
    assert found["low"][2] is None and found["high"][2] is None  # one picture has it
    assert plain({"a": float("nan"), "b": (1.23456789, np.float64(2))}) == {"a": None, "b": [1.23457, 2.0]}


class Counting(LatentSource):
    """Latents that are made when they are read, and remembers how many at once."""

    def __init__(self, samples, shape):
        self.samples, self._shape, self.most = samples, shape, 0

    @property
    def shape(self):
        return self._shape

    def __len__(self):
        return self.samples

    def read(self, start, stop):
        self.most = max(self.most, stop - start)
        rows = [torch.randn(self._shape, generator=torch.Generator().manual_seed(n)) for n in range(start, stop)]
        return torch.stack(rows)


def test_ten_thousand_latents_are_read_in_pieces(open_short):
    """A large data set costs passes, not memory: pieces are as small as the settings ask, whatever its size."""
    big = open_short(levels=(0.97,), queries=2, memory_mib=16)
    slices = big.train.dataset.slices
    many = tuple(dataclasses.replace(slices[n % 24], slice_id=f"s{n}", image_digest=f"d{n}") for n in range(10_000))
    dataset = dataclasses.replace(big.train.dataset, slices=many)
    source = Counting(10_000, (16, 2, 2))
    big = dataclasses.replace(big, train=dataclasses.replace(big.train, dataset=dataset))
    space = LatentSpace((16, 2, 2), tuple(range(10_000)), (False,) * 10_000, source)
    groupings = make_groupings(dataset, [space], big.config)
    assert source.most <= 512
    (batch,) = draw_points(space, big.path, (0.97,), 2, 10, big.config)
    fields = _decompose(big, batch, groupings.found[0], big.config)
    assert fields is not None and torch.allclose(fields.alpha.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert source.most <= chunk_latents(64, 2, big.config) == 512
    assert chunk_latents(2**18, 40, big.config) == 8  # latents of a 1024 px picture at the least memory
