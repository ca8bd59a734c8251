"""A run that starts from another run's adapter: it is loaded, part of the identity, and sampled with what was fused."""

import shutil

import pytest
import torch

from flowgrain.families.registry import load_family
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.run_folder import ModelChoice, choose_checkpoint
from flowgrain.sample.session import SamplePlan, draw
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.state import complete_checkpoints


@pytest.mark.parametrize("mode", ["continue", "fuse"])
def test_a_run_starts_from_another_runs_adapter_and_samples_with_what_was_fused(recipe, tmp_path, mode):
    first = recipe("first", budget={"amount": 2, "checkpoints": [1.0]}, optimizer={"lr": 1e-2})
    train(first, False, Observer())
    start = complete_checkpoints(first.output)[-1]
    init = {"path": str(start), "mode": mode}
    adapter = {"kind": "lora", "rank": 4, "alpha": 2, "init_from": init}
    second = recipe("second", budget={"amount": 1, "checkpoints": [1.0]}, adapter=adapter)
    fresh = recipe("fresh", budget={"amount": 1, "checkpoints": [1.0]})
    for config in (second, fresh):
        train(config, False, Observer())
    assert read_log(second.output)[0]["loss"] != read_log(fresh.output)[0]["loss"]  # the start was loaded
    model = ModelChoice(str(second.model.path), None, "float32")
    pictures = []
    for run in (second, fresh):
        family = load_family(model.path, None, torch.float32, torch.device("cpu"))
        plan = SamplePlan(run.name, model, choose_checkpoint(run.output, None), ["a drawing"], [0],
                          SampleConfig(steps=2, width=64, height=64), tmp_path / run.output.name / "out")  # fmt: skip
        assert draw(family, plan, lambda _done, _total: None).drawn == 1
        pictures.append(next(plan.out.glob("**/*.png")).read_bytes())
    assert pictures[0] != pictures[1]


def test_identity_knows_the_adapter_that_a_run_starts_from(recipe, tmp_path):
    first = recipe("first", budget={"amount": 1, "checkpoints": [1.0]})
    train(first, False, Observer())
    here = complete_checkpoints(first.output)[-1] / "adapter"
    there = tmp_path / "copy"
    shutil.copytree(here, there)
    configs = [
        recipe(adapter={"kind": "lora", "rank": 4, "alpha": 2, "init_from": {"path": str(path), "mode": "continue"}})
        for path in (here, there)
    ]
    assert configs[0].identity() == configs[1].identity() != recipe().identity()
