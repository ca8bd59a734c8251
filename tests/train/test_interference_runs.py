"""Whole runs that measure: bit for bit the run that does not, resumed or not, in one process or two."""

import dataclasses
import json

import pytest
import torch
import workers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from whole_runs import SMALL_PREVIEWS, StopAfter, files, final_state, log_without_times

from flowgrain.config import load_config
from flowgrain.errors import ConfigError, NonFiniteError
from flowgrain.train.interference import Interference
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.objective import FineTuning
from flowgrain.train.recipe import Recipe
from flowgrain.train.setup import prepare

LORA = {"kind": "lora", "rank": 4, "alpha": 2}
EVERY = {"interference": {"every": 1}}


def measured(output):
    """The lines of kind interference, without what a clock says."""
    lines = [line for line in read_log(output) if line["kind"] == "interference"]
    return [{key: value for key, value in line.items() if key != "measure_seconds"} for line in lines]


def trained(output):
    """All other lines, without times."""
    return [line for line in log_without_times(output) if line["kind"] != "interference"]


def state(output):
    return {name: value for name, value in final_state(output).items() if not name.startswith("interference.")}


def assert_trained_alike(a, b):
    left, right = state(a), state(b)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert trained(a) == trained(b)
    assert files(a, "previews/*/*.png") == files(b, "previews/*/*.png")


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {**LORA, "dropout": 0.3}, "ema": {"decay": 0.5}, "tuples": {"batch_size": 2, "micro_batch": 1},
         "previews": SMALL_PREVIEWS},
        {"adapter": {**LORA, "kind": "dora"}, "memory": {"gradient_checkpointing": True}, "precision": "bf16"},
        {"adapter": {**LORA, "kind": "dora", "dropout": 0.3}, "tuples": {"batch_size": 5, "grouping": "slice"}},
        {"tuples": {"batch_size": 6, "grouping": "shuffled"}, "clip": None},
    ],
)  # fmt: skip
def test_a_run_that_measures_is_bitwise_the_run_that_does_not(recipe, sections):
    plain, watched = recipe("plain", **sections), recipe("watched", **EVERY, **sections)
    for config in (plain, watched):
        train(config, False, Observer())
    assert_trained_alike(plain.output, watched.output)
    updates = [line["update"] for line in trained(watched.output) if line["kind"] == "update"]
    assert [line["update"] for line in measured(watched.output)] == updates and not measured(plain.output)


def test_text_encoders_that_train_are_measured_and_not_disturbed(unet_recipe):
    adapter = {**LORA, "kind": "dora", "dropout": 0.3, "text_encoders": {}}
    text = {"adapter": adapter, "optimizer": {"lr": 1e-3, "lrs": {"text_encoder*": 1e-4}}}
    data = {**unet_recipe().data.model_dump(mode="json"), "cache_text": False, "caption_shuffle": True}
    text |= {"data": data, "budget": {"amount": 2, "checkpoints": [1.0]}}
    plain, watched = unet_recipe("plain", **text), unet_recipe("watched", **EVERY, **text)
    for config in (plain, watched):
        train(config, False, Observer())
    assert_trained_alike(plain.output, watched.output)
    assert len(measured(watched.output)) == 2


def test_a_line_agrees_with_the_line_of_its_update(recipe):
    config = recipe(tuples={"batch_size": 6}, **EVERY)
    train(config, False, Observer())
    updates = {line["update"]: line for line in read_log(config.output) if line["kind"] == "update"}
    lines = measured(config.output)
    assert len(lines) == len(updates) == 6
    for line in lines:
        update = updates[line["update"]]
        assert (line["epoch"], line["slices"], line["slices_in_update"]) == (
            update["epoch"], update["slices"], update["slices_in_update"])  # fmt: skip
        assert line["loss_by_level"] == pytest.approx(update["loss_by_level"], rel=1e-4)
        assert sum(map(sum, line["gram"])) ** 0.5 == pytest.approx(update["grad_norm"], rel=1e-3)
        assert line["cosine"].keys() == {"macro-meso", "macro-micro", "meso-micro"}
        assert line["measurements_pooled"] == line["oscillation"]["updates"] == line["update"]
        assert line["noise"]["update"]["units"] == sum(line["units_by_half"]) == 6
    assert lines[-1]["oscillation"]["mean_cosine"] is not None
    assert lines[0]["oscillation"]["mean_cosine"] is None and lines[0]["oscillation"]["straightness"] == 1
    json.dumps(lines, allow_nan=False)
    board = EventAccumulator(str(config.output / "tensorboard"))
    board.Reload()
    shown = [event.value for event in board.Scalars("interference/cosine/macro-micro")]
    assert shown == pytest.approx([line["cosine"]["macro-micro"] for line in lines], rel=1e-6)
    names = ("cosine_pooled/macro-meso", "norm_by_level/meso", "trace/update", "oscillation/straightness")
    assert {f"interference/{name}" for name in (*names, "conflict_rate")} <= set(board.Tags()["scalars"])


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_has_the_lines_of_the_uninterrupted_one(recipe, stop):
    sections = {"interference": {"every": 2}, "save_every": 1, "adapter": {**LORA, "dropout": 0.3}}
    whole, parts = recipe("whole", **sections), recipe("parts", **sections)
    train(whole, False, Observer())
    assert train(parts, False, StopAfter(stop)).interrupted
    train(parts, True, Observer())
    assert [line["update"] for line in measured(whole.output)] == [2, 4, 6]
    assert measured(parts.output) == measured(whole.output)
    assert_trained_alike(whole.output, parts.output)


def test_lines_after_the_checkpoint_are_measured_anew(recipe):
    """A kill after update 3, whose checkpoint is of update 2."""
    sections = {**EVERY, "save_every": 2}
    whole, parts = recipe("whole", **sections), recipe("parts", **sections)
    train(whole, False, Observer())
    assert train(parts, False, StopAfter(2)).interrupted
    log = parts.output / "metrics.jsonl"
    with log.open("a") as stream:
        stream.write('{"kind": "update", "update": 3}\n{"kind": "interference", "update": 3, "levels": []}\n')
    train(parts, True, Observer())
    assert measured(parts.output) == measured(whole.output)


def test_measuring_can_begin_and_end_with_a_resume(recipe):
    plain, parts = recipe("whole"), recipe("parts")
    train(plain, False, Observer())
    train(parts, False, StopAfter(2))
    train(recipe("parts", **EVERY), True, StopAfter(4))
    train(parts, True, Observer())
    assert [line["update"] for line in measured(parts.output)] == [3, 4]
    assert measured(parts.output)[1]["oscillation"]["updates"] == 2
    assert_trained_alike(plain.output, parts.output)


def test_whole_images_have_norms_and_no_pairs(recipe, dataset, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (dataset / "slices").glob("*.macro.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    slices = {"grouping": "slice", "batch_size": 3}
    config = recipe(data={"path": str(folder), "resolution": 64}, time={}, tuples=slices, **EVERY)
    train(config, False, Observer())
    for line in measured(config.output):
        assert line["levels"] == ["macro"] and line["norm_by_level"]["macro"] > 0
        assert line["cosine"] == line["conflict"] == {} and line["conflict_rate"] is None
        assert line["noise"]["macro"]["trace"] > 0 and line["cross_share"] == 0


def test_an_update_of_one_root_has_no_halves(recipe):
    config = recipe(tuples={"batch_size": 1}, interference={"every": 1, "oscillation": False})
    train(config, False, Observer())
    line = max(measured(config.output), key=lambda line: len(line["levels"]))
    assert line["levels"] == ["macro", "meso", "micro"] and line["units_by_half"] == [1, 0]
    assert line["cosine"]["macro-meso"] is not None
    assert line["gram_unbiased"] == [[None] * 3] * 3 and line["noise"] == {}
    assert "oscillation" not in line


def test_a_non_finite_loss_is_reported_by_the_update_as_without_measuring(recipe, monkeypatch):
    per_sample = FineTuning.per_sample

    def poisoned(self, batch):
        losses = per_sample(self, batch)
        bad = torch.tensor([name == "r2/meso0" for name in batch.names])
        return dataclasses.replace(losses, total=torch.where(bad, float("nan"), losses.total))

    monkeypatch.setattr(FineTuning, "per_sample", poisoned)
    messages = []
    for config in (recipe("plain"), recipe("watched", **EVERY)):
        with pytest.raises(NonFiniteError) as caught:
            train(config, False, Observer())
        messages.append(str(caught.value).replace(str(config.output), "run"))
    assert messages[0] == messages[1] and "r2/meso0" in messages[0]
    assert trained(recipe("plain").output) == trained(recipe("watched").output)


def test_a_gradient_that_is_not_finite_in_the_measurement_alone_leaves_nulls(recipe):
    session = prepare(recipe(tuples={"batch_size": 6}, **EVERY), lambda *_: None)
    update, (name, parameter) = session.plan(0)[0], session.objective.parameters()[-1]
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    session.interference.before(update, 1)
    hook.remove()
    assert all(parameter.grad is None for _, parameter in session.objective.parameters()), name
    line = session.interference.after(1)
    assert line["norm_by_level"] == {"macro": None, "meso": None, "micro": None}
    assert set(line["conflict"].values()) == {None} and line["conflict_rate"] is None
    json.dumps(line, allow_nan=False)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_measure_what_one_does(recipe, tmp_path, sharded):
    sections = {
        "tuples": {"batch_size": 5}, "save_every": 1, "interference": {"every": 2}, "adapter": {**LORA, "kind": "dora"},
        "optimizer": {"lr": 1e-3, "eps": 1e-4}, "budget": {"amount": 2, "checkpoints": [1.0, 2.0]},
    }  # fmt: skip
    alone, together = recipe("alone", **sections), recipe("together", **sections)
    train(alone, False, Observer())
    environment = workers.SHARDED if sharded else {}
    ended = workers.run_processes(tmp_path, 2, workers.whole_run, together, environment=environment)
    assert [process.exit_code for process in ended] == [0, 0], ended
    mine, theirs = measured(alone.output), measured(together.output)
    assert [line["update"] for line in theirs] == [2, 4]
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys() and one["units_by_level"] == other["units_by_level"]
        for key in ("loss_by_level", "norm_by_level", "cosine"):
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4)
        assert other["oscillation"] == pytest.approx(one["oscillation"], rel=1e-2, abs=1e-3)


class Clock:
    """A clock that stands still but for what is added to it."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_the_time_of_measuring_is_no_training_time(recipe, monkeypatch):
    clock, products = Clock(), Interference.products
    monkeypatch.setattr("flowgrain.train.loop.time", clock)
    monkeypatch.setattr("flowgrain.train.interference.time", clock)

    def slow(self, parts):
        clock.now += 100.0
        return products(self, parts)

    monkeypatch.setattr(Interference, "products", slow)
    config = recipe(interference={"every": 2})
    train(config, False, Observer())
    lines = read_log(config.output)
    assert [line["measure_seconds"] for line in lines if line["kind"] == "interference"] == [100.0] * 3
    assert [line["seconds"] for line in lines if line["kind"] == "update"] == [0.0] * 6


def test_measuring_leaves_the_global_generators_as_they_were(recipe):
    session = prepare(recipe(adapter={**LORA, "dropout": 0.3}, **EVERY), lambda *_: None)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    session.interference.before(session.plan(0)[0], 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_measured_is_no_part_of_a_recipes_identity(recipe):
    assert recipe().identity() == recipe(**EVERY).identity()


def test_the_section_is_read_from_the_command_line(dataset):
    config, _ = load_config(
        Recipe, None, ["name=x", f"data.path={dataset}", "budget.amount=1", "interference.every=50"]
    )
    assert config.interference.every == 50 and config.interference.oscillation
    with pytest.raises(ConfigError, match=r"interference\.every"):
        load_config(Recipe, None, ["name=x", f"data.path={dataset}", "budget.amount=1", "interference.every=0"])
