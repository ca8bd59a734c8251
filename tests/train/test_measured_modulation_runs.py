"""Whole runs with measured modulation: fixed is what it was, resumed is uninterrupted, what is logged is in force."""

import dataclasses
import json
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
import workers
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from whole_runs import Listening, StopAfter, final_state, log_without_times

from flowgrain.config import load_config
from flowgrain.errors import CheckpointError, ConfigError, NonFiniteError
from flowgrain.flow.time_laws import LogitNormal
from flowgrain.geometry.gradients import Interactions
from flowgrain.granularity import GRANULARITIES
from flowgrain.report.preview_times import remarks
from flowgrain.train import modulation_rules
from flowgrain.train.interference_line import PartProducts
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.objective import FineTuning
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.repro import read_bundle, replay
from flowgrain.train.setup import prepare
from flowgrain.train.state import complete_checkpoints
from flowgrain.train.time_preview import preview_times

TABLE = {"macro": 0.5, "meso": 0.0, "micro": -0.5}
MEASURED = {"kind": "measured", "warm_up": 0, "measurements": 3}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    from conftest import write_dataset

    return write_dataset(tmp_path_factory.mktemp("held-out"), roots=12)


@pytest.fixture
def sections(held_out):
    """Held-out losses every 2 updates, gradients at each."""

    def build(**changes):
        return {
            "validation": {"path": str(held_out), "every": 2, "keep_best": False},
            "interference": {"every": 1, "oscillation": False},
            "modulation": MEASURED,
            "optimizer": {"lr": 5e-3},
            "save_every": 1,
            "tuples": {"batch_size": 6},
            "budget": {"amount": 4, "checkpoints": [1.0]},
            **changes,
        }

    return build


def in_conflict(products):
    """The update's own products, those of different levels made negative.

    A small random model knows no conflict, and of two roots with a micro slice both are often in one half.
    """
    found = products.whole()
    return Interactions(found.levels, np.where(np.eye(len(found.levels)) > 0, found.gram, -np.abs(found.gram)))


@contextmanager
def surely():
    """Nothing counts as noise and levels conflict: in a short run all that is measured moves something."""
    with mock.patch.object(modulation_rules, "ERRORS", 0.0), mock.patch.object(PartProducts, "unbiased", in_conflict):
        yield


@pytest.fixture
def sure():
    with surely():
        yield


def lines(output, kind="modulation"):
    return [line for line in read_log(output) if line["kind"] == kind]


def logged(output):
    """All lines without what a clock says."""
    kept = log_without_times(output)
    return [{key: value for key, value in line.items() if key != "measure_seconds"} for line in kept]


def last(output, quantity):
    return list([line for line in lines(output) if quantity in line][-1][quantity].values())


def assert_alike(a, b):
    left, right = final_state(a), final_state(b)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert logged(a) == logged(b)


def test_measurements_move_shifts_and_factors_within_bounds(recipe, sections, sure):
    config = recipe(**sections())
    train(config, False, Observer())
    found = lines(config.output)
    assert [line["update"] for line in found if line["measured"] == "validation"] == [0, 2, 4]
    assert [line["update"] for line in found if line["measured"] == "interference"] == [1, 2, 3, 4]
    assert found[0]["granularity_shift"] == TABLE and "the first held-out losses" in found[0]["reason"]
    shifts = [line["granularity_shift"] for line in found]
    assert shifts[-1] != TABLE and max(abs(value) for value in shifts[-1].values()) <= 1
    factors = [line["lambda_factor"] for line in found]
    assert factors[2] == dict.fromkeys(GRANULARITIES, 1.0)  # after update 2: too few measurements
    assert factors[-1] != factors[2] and np.mean(list(factors[-1].values())) == pytest.approx(1)
    assert all(0.5 <= value <= 2 for value in factors[-1].values())
    json.dumps(found, allow_nan=False)
    board = EventAccumulator(str(config.output / "tensorboard"))
    board.Reload()
    shown = [event.value for event in board.Scalars("modulation/granularity_shift/macro")]
    assert shown[-1] == pytest.approx(shifts[-1]["macro"], rel=1e-6)
    assert "modulation/lambda_factor/micro" in board.Tags()["scalars"]


def test_the_shift_in_force_is_half_of_the_way_to_the_measured_one(recipe, sections, sure):
    config = recipe(**sections(interference=None, modulation={"kind": "measured", "warm_up": 0}))
    train(config, False, Observer())
    first, second, *_ = lines(config.output)
    losses = {line["update"]: line for line in lines(config.output, "validation")}
    data = prepare(config, lambda *_: None).modulation._laws._held_out
    gain = {level: np.array(losses[0]["by_level"][level]) - losses[2]["by_level"][level] for level in GRANULARITIES}
    mass = [gain[level].clip(min=0) * data.density for level in GRANULARITIES]
    centre = np.array([(m * data.position).sum() / m.sum() for m in mass])
    target = centre - centre.mean()
    target *= min(1.0, 1 / np.abs(target).max())
    expected = 0.5 * np.array(list(TABLE.values())) + 0.5 * target
    assert list(second["granularity_shift"].values()) == pytest.approx(expected, abs=1e-9)
    assert list(second["centre_offset"].values()) == pytest.approx(centre - centre.mean(), abs=1e-9)
    assert second["kept"] == 1 and first["granularity_shift"] == TABLE


def test_what_is_logged_is_what_the_next_update_is_trained_with(recipe, sections, sure, monkeypatch):
    seen, per_sample = [], FineTuning.per_sample

    def watched(self, batch):
        if torch.is_grad_enabled():
            seen.append(self.time_law.delta)
        return per_sample(self, batch)

    monkeypatch.setattr(FineTuning, "per_sample", watched)
    config = recipe(**sections(interference=None, modulation={"kind": "measured", "warm_up": 0}))
    train(config, False, Observer())
    in_force = [tuple(line["granularity_shift"].values()) for line in lines(config.output)]
    assert len(set(in_force)) == 3 and in_force[0] == (0.5, 0.0, -0.5)
    assert list(dict.fromkeys(seen)) == in_force[:2]  # what update 4 brought would be that of update 5


def test_factors_change_the_ratios_of_the_weights_and_not_their_sum(recipe, sections, sure, monkeypatch):
    weights, per_sample = {}, FineTuning.per_sample

    def watched(self, batch):
        if torch.is_grad_enabled():
            weights.update(zip(batch.names, batch.weight.tolist(), strict=True))
        return per_sample(self, batch)

    config = recipe(**sections(validation=None, save_every=None))
    session = prepare(config, lambda *_: None)
    slices = session.dataset.slices
    monkeypatch.setattr(FineTuning, "per_sample", watched)
    train(config, False, Observer())
    factors = [line["lambda_factor"] for line in lines(config.output)][2]  # in force at update 4, of all six roots
    assert factors != dict.fromkeys(GRANULARITIES, 1.0)
    plan = session.plan(3)[0]
    planned = {slices[i].slice_id: w for micro in plan.micro_batches
               for i, w in zip(micro.slices, micro.weights, strict=True)}  # fmt: skip
    assert sum(weights.values()) == pytest.approx(1) == sum(planned.values())
    level = {item.slice_id: GRANULARITIES[item.granularity] for item in slices}
    ratios = {name: weights[name] / planned[name] / factors[level[name]] for name in planned}
    assert list(ratios.values()) == pytest.approx([ratios["r0/macro0"]] * len(ratios))


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one(recipe, sections, sure, stop):
    changes = {"adapter": {"kind": "lora", "rank": 4, "alpha": 2, "dropout": 0.2}, "ema": {"decay": 0.5}}
    whole, parts = recipe("whole", **sections(**changes)), recipe("parts", **sections(**changes))
    train(whole, False, Observer())
    assert train(parts, False, StopAfter(stop)).interrupted
    train(parts, True, Observer())
    assert last(whole.output, "granularity_shift") != list(TABLE.values())
    assert last(whole.output, "lambda_factor") != [1.0, 1.0, 1.0]
    assert_alike(whole.output, parts.output)


def test_a_longer_run_goes_on_as_if_it_had_been_long_from_the_start(recipe, sections, sure):
    """Held-out losses at the end of a budget (here after update 3) are logged and move nothing."""
    long, short = {"amount": 4, "checkpoints": [1.0]}, {"amount": 3, "checkpoints": [1.0]}
    whole = recipe("whole", **sections(budget=long))
    train(whole, False, Observer())
    train(recipe("parts", **sections(budget=short)), False, Observer())
    train(recipe("parts", **sections(budget=long)), True, Observer())
    assert [line["update"] for line in lines(whole.output, "validation")] == [0, 2, 4]
    assert [line["update"] for line in lines(recipe("parts").output, "validation")] == [0, 2, 3, 4]
    assert lines(whole.output) == lines(recipe("parts").output)
    left, right = final_state(whole.output), final_state(recipe("parts").output)
    assert all(torch.equal(left[name], right[name]) for name in left if name.startswith("parameter."))


def test_the_size_of_a_micro_batch_changes_nothing(recipe, sections, sure):
    small = recipe("small", **sections(tuples={"batch_size": 6, "micro_batch": 2}))
    large = recipe("large", **sections(tuples={"batch_size": 6, "micro_batch": 6}))
    for config in (small, large):
        train(config, False, Observer())
    for quantity, table in (("granularity_shift", list(TABLE.values())), ("lambda_factor", [1.0] * 3)):
        assert last(small.output, quantity) == pytest.approx(last(large.output, quantity), abs=2e-3)
        assert last(small.output, quantity) != table


def test_until_something_is_told_the_run_is_bitwise_the_fixed_one(recipe, sections):
    """In the warm-up, and while gains are not told from noise and measurements are few."""
    fixed = recipe("fixed", **sections(modulation={}))
    train(fixed, False, Observer())
    assert not lines(fixed.output)
    for name, measures in (("early", {"warm_up": 100}), ("vague", {"warm_up": 0, "measurements": 99})):
        config = recipe(name, **sections(modulation={"kind": "measured", **measures}))
        with mock.patch.object(modulation_rules, "ERRORS", 1e9):
            train(config, False, Observer())
        assert len(lines(config.output)) == 7 and all(line["reason"] for line in lines(config.output))
        assert [line for line in logged(config.output) if line["kind"] != "modulation"] == logged(fixed.output)
        left, right = final_state(fixed.output), final_state(config.output)
        assert left.keys() <= right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_gammas_of_a_diffusion_model_are_moved(unet_recipe, sections, sure):
    gamma = {"macro": 4.0, "meso": 5.0, "micro": 7.0}
    weighting = {"kind": "min_snr", "gamma": gamma}
    config = unet_recipe(**sections(weighting=weighting, interference=None,
                                    modulation={"kind": "measured", "warm_up": 0}))  # fmt: skip
    train(config, False, Observer())
    found = lines(config.output)
    assert found[0]["gamma"] == gamma and found[-1]["gamma"] != gamma
    assert all(1 <= value <= 20 for value in found[-1]["gamma"].values())
    assert "granularity_shift" not in found[-1]
    session = prepare(config, lambda *_: None)
    session.modulation.load(load_file(complete_checkpoints(config.output)[-1] / "trainable.safetensors"))
    assert dict(zip(GRANULARITIES, session.objective.weighting.gammas, strict=True)) == found[-1]["gamma"]
    assert session.recipe_in_force().weighting.gamma.values == session.objective.weighting.gammas


def sure_run(config):
    """A run of one of several processes in which nothing counts as noise."""
    with surely():
        return workers.whole_run(config)


def test_two_processes_follow_what_one_does(recipe, sections, sure, tmp_path):
    changes = {"optimizer": {"lr": 5e-3, "eps": 1e-4}, "tuples": {"batch_size": 5}}
    alone, together = recipe("alone", **sections(**changes)), recipe("together", **sections(**changes))
    train(alone, False, Observer())
    ended = workers.run_processes(tmp_path / "processes", 2, sure_run, together)
    assert [process.exit_code for process in ended] == [0, 0], ended
    for quantity, table in (("granularity_shift", list(TABLE.values())), ("lambda_factor", [1.0] * 3)):
        assert last(together.output, quantity) == pytest.approx(last(alone.output, quantity), abs=5e-3)
        assert last(together.output, quantity) != table
    pairs = zip(lines(alone.output, "update"), lines(together.output, "update"), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-3) for a, b in pairs)


def test_a_non_finite_update_is_replayed_with_the_laws_in_force(recipe, sections, sure, monkeypatch):
    per_sample, count = FineTuning.per_sample, {"updates": 0}

    def poisoned(self, batch):
        losses = per_sample(self, batch)
        factor = float("nan") if count["updates"] >= 3 else 1.0
        return dataclasses.replace(losses, total=losses.total * factor)

    class Counting(Observer):
        def updated(self, progress, part, result):
            count["updates"] = progress.updates

    monkeypatch.setattr(FineTuning, "per_sample", poisoned)
    config = recipe(**sections())
    with pytest.raises(NonFiniteError) as caught:
        train(config, False, Counting())
    monkeypatch.setattr(FineTuning, "per_sample", per_sample)
    bundle = read_bundle(config.output / "nonfinite-update-000004", [])
    assert list(bundle.recipe.time.granularity_shift.values()) == last(config.output, "granularity_shift")
    slices = [item for report in replay(bundle) for item in report.slices]
    assert any(f"{item.name} (t = {item.t:.4f}" in str(caught.value) for item in slices)
    assert sum(item.weight for item in slices) == pytest.approx(1)


def test_other_held_out_data_cannot_be_resumed_with(recipe, sections, tmp_path):
    from conftest import write_dataset

    train(recipe(**sections()), False, StopAfter(2))
    other = {**sections()["validation"], "path": str(write_dataset(tmp_path / "other", roots=15))}
    with pytest.raises(CheckpointError, match="held-out data changed"):
        train(recipe(**sections(validation=other)), True, Observer())


def test_one_of_two_measurements_leaves_the_rest_and_says_so(recipe, sections):
    for missing, note in (("interference", "the levels' weights stay"), ("validation", "noise levels and their")):
        listening = Listening()
        short = {"budget": {"amount": 1, "checkpoints": [1.0]}, missing: None, "modulation": {"kind": "measured"}}
        config = recipe(missing, **sections(**short))
        train(config, False, listening)
        assert [text for text in listening.notes if note in text]
        assert {line["measured"] for line in lines(config.output)} == {"validation", "interference"} - {missing}


def test_the_identity_knows_what_is_measured_and_old_runs_keep_theirs(recipe, sections):
    assert recipe().identity() == recipe(modulation={"kind": "fixed"}).identity()
    fixed = recipe(**sections(modulation={}))
    assert fixed.identity() == recipe(**sections(modulation={}, interference=None)).identity()
    base = recipe(**sections())
    other_every = {**sections()["validation"], "every": 3}
    for changes in (
        {"modulation": {}}, {"modulation": {**MEASURED, "smoothing": 0.25}}, {"interference": {"every": 2}},
        {"validation": other_every},
    ):  # fmt: skip
        assert recipe(**sections(**changes)).identity() != base.identity()
    sketched = {"interference": {"every": 1, "oscillation": True}}
    assert recipe(**sections(**sketched)).identity() == base.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modulation": {"kind": "fixed", "warm_up": 3}}, "warm_up is not read by kind fixed"),
        ({"interference": None, "validation": None}, "follows measurements, and none is made"),
        ({"interference": None, "modulation": {**MEASURED}}, "measurements is not read without interference"),
        ({"validation": None, "modulation": {"kind": "measured", "max_shift": 0.5}}, "max_shift is not read without"),
        ({"modulation": {"kind": "measured", "factor_range": [1.2, 2.0]}}, "enclose 1"),
        ({"modulation": {"kind": "measured", "gamma_range": [5.0, 5.0]}}, "increasing"),
    ],
)
def test_keys_that_would_not_be_read_are_errors(recipe, sections, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**sections(**changes))


def test_validation_at_checkpoints_alone_is_not_enough(recipe, sections, held_out):
    with pytest.raises(ValueError, match=r"set validation\.every"):
        recipe(**sections(validation={"path": str(held_out)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modulation": {"kind": "measured", "gamma_range": [1.0, 9.0]}}, "read with weighting.kind min_snr alone"),
        ({"time": {"granularity_shift": {"macro": 3.0}}}, "lies 2 from its mean"),
        ({"validation": "few"}, "need 4 roots"),
    ],
)
def test_what_the_model_or_the_data_do_not_allow_is_an_error(recipe, sections, held_out, changes, message):
    if changes.get("validation") == "few":
        changes = {"validation": {"path": str(held_out), "every": 2, "max_roots": 4}}
    with pytest.raises(ConfigError, match=message):
        prepare(recipe(**sections(**changes)), lambda *_: None)


def test_a_uniform_law_without_gamma_has_nothing_that_losses_could_move(unet_recipe, sections):
    with pytest.raises(ConfigError, match="nothing to move"):
        prepare(unet_recipe(**sections(interference=None, modulation={"kind": "measured"})), lambda *_: None)
    session = prepare(unet_recipe(**sections()), lambda *_: None)
    assert "noise levels and their weights stay" in session.modulation.note()
    with pytest.raises(ConfigError, match=r"weighting\.gamma leaves"):
        prepare(unet_recipe(**sections(weighting={"kind": "min_snr", "gamma": 30.0})), lambda *_: None)


@pytest.mark.parametrize("name", ["tiny-flux-measured", "tiny-sdxl-measured"])
def test_the_packaged_recipes_measure_and_their_preview_says_so(name):
    config = load_config(Recipe, find_recipe(name), ["data.path=somewhere"])[0]
    assert config.modulation.measured and config.interference is not None and config.validation is not None
    plain = load_config(Recipe, find_recipe(name.replace("measured", "granularity")), ["data.path=somewhere"])[0]
    assert (config.time, config.weighting, config.tuples) == (plain.time, plain.weighting, plain.tuples)
    shown = [remarks(preview_times(each, size=(128, 128))) for each in (config, plain)]
    assert "laws and weights of the start" in shown[0][-1] and shown[0][:-1] == shown[1]


def test_without_measuring_nothing_is_there(recipe):
    session = prepare(recipe(), lambda *_: None)
    assert session.modulation is None and session.recipe_in_force() is session.recipe
    assert isinstance(session.objective.time_law, LogitNormal)
