"""A non-finite update is recorded whole: the failure comes back without the data set."""

import dataclasses
import json
import math

import pytest
import torch
from typer.testing import CliRunner
from whole_runs import final_state

from flowgrain.cli.main import app
from flowgrain.data.cache import PosteriorCache
from flowgrain.errors import CheckpointError, ConfigError, NonFiniteError
from flowgrain.families.base import Posterior
from flowgrain.train.loop import Observer, train
from flowgrain.train.objective import Batch
from flowgrain.train.repro import _batch, _tensors, only_slice, read_bundle, replay
from flowgrain.train.state import complete_checkpoints


@pytest.fixture
def poisoned(recipe, monkeypatch):
    """A run whose cached posterior of one slice turns bad in update 3, and the same run stopped before it."""
    original, config = PosteriorCache.get, recipe("bad", budget={"amount": 4, "checkpoints": [1.0]})
    good = recipe("good", budget={"amount": 2, "checkpoints": [1.0]})
    train(good, False, Observer())
    state = {"updates": 0}

    def get(self, index, flipped):
        posterior = original(self, index, flipped)
        if state["updates"] < 2:
            return posterior
        return Posterior(posterior.mean * math.nan, posterior.logvar)

    class Counting(Observer):
        def updated(self, progress, part, result):
            state["updates"] = progress.updates

    monkeypatch.setattr(PosteriorCache, "get", get)
    with pytest.raises(NonFiniteError) as caught:
        train(config, False, Counting())
    monkeypatch.undo()
    return config, good, str(caught.value)


def test_a_non_finite_update_is_recorded_and_replayed(poisoned):
    config, good, message = poisoned
    folder = config.output / "nonfinite-update-000003"
    assert f"flowgrain replay {folder}" in message and "\n" not in message
    assert json.loads((config.output / "run.json").read_text())["status"] == "non-finite"
    # the run stays resumable from the last good update, whose parameters are also those of the bundle
    assert [f.name for f in complete_checkpoints(config.output)] == ["update-000002"]
    last, expected = final_state(config.output), final_state(good.output)
    assert all(torch.equal(last[name], expected[name]) for name in expected)
    bundle = read_bundle(folder, [])
    assert all(torch.equal(value, expected[f"parameter.{name}"]) for name, value in bundle.parameters.items())
    assert bundle.info["update"] == 3 and "loss is not finite" in bundle.info["message"]
    # the same slices fail at the same t, without the data set
    reports = replay(dataclasses.replace(bundle, recipe=bundle.recipe.model_copy(update={"data": None})))
    failed = [item for report in reports for item in report.slices if not math.isfinite(item.total)]
    assert failed and not any(report.finite for report in reports)
    assert f"{failed[0].name} (t = {failed[0].t:.4f}" in message
    shown = CliRunner().invoke(app, ["replay", str(folder), "--slice", failed[0].name, "precision=fp32"])
    assert shown.exit_code == 0 and "reproduced in 1 of 1 micro-batches" in shown.stdout
    assert failed[0].name in shown.stdout and f"t {failed[0].t:.4f}" in shown.stdout
    with pytest.raises(ConfigError, match=r"--slice nobody: not in this update; its slices are: r\d"):
        only_slice(bundle, "nobody")
    # mended, the run goes on as if nothing had happened
    outcome = train(config, True, Observer())
    assert outcome.progress.updates == 4


def test_a_folder_that_is_no_bundle_and_a_damaged_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no update\.json here"):
        read_bundle(tmp_path, [])
    (tmp_path / "update.json").write_text("{")
    (tmp_path / "recipe.yaml").write_text("name: x\ndata: {path: d}\nbudget: {amount: 1}\n")
    with pytest.raises(CheckpointError, match="damaged bundle"):
        read_bundle(tmp_path, [])


def test_every_tensor_of_a_batch_comes_back(recipe):
    """A field that is added to Batch is part of a bundle without a change there."""
    from flowgrain.train.setup import prepare

    session = prepare(recipe("batch"), Observer().stage)
    batch = session.builder.build(session.plan(0)[0].micro_batches[0], 0)
    batch = dataclasses.replace(batch, cell_weight=torch.ones_like(batch.x0[:, :1]))
    item = {"slices": batch.names, "captions": None, "guidance": batch.inputs.guidance}
    back = _batch(item, _tensors(batch))
    for field in dataclasses.fields(Batch):
        mine, theirs = getattr(batch, field.name), getattr(back, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, theirs), field.name
    assert back.names == batch.names
    assert all(torch.equal(batch.inputs.embedding.tensors[k], v) for k, v in back.inputs.embedding.tensors.items())
    assert torch.equal(batch.inputs.geometry.crop, back.inputs.geometry.crop)
