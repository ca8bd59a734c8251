"""The trial update changes nothing, measures something, and explains what does not fit."""

import pytest
import torch

from flowgrain.errors import ConfigError
from flowgrain.train.objective import FineTuning
from flowgrain.train.setup import prepare
from flowgrain.train.trial import trial_update


def session_of(recipe, **sections):
    return prepare(recipe(ema={"decay": 0.9}, **sections), lambda what, done, total: None)


def test_nothing_changes(recipe):
    session = session_of(recipe)
    parameters = session.objective.parameters()
    before = [parameter.detach().clone() for _, parameter in parameters]
    average = {name: value.clone() for name, value in session.ema.values.items()}
    state = torch.random.get_rng_state()
    trial_update(session)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(old, new) for old, (_, new) in zip(before, parameters, strict=True))
    assert all(torch.equal(average[name], value) for name, value in session.ema.values.items())
    assert all(parameter.grad is None for _, parameter in parameters)
    assert not session.optimizer.state


def test_gradients_that_were_there_stay(recipe):
    session = session_of(recipe)
    kept = [torch.full_like(parameter, 3.0) for _, parameter in session.objective.parameters()]
    for (_, parameter), gradient in zip(session.objective.parameters(), kept, strict=True):
        parameter.grad = gradient
    trial_update(session)
    assert all(p.grad is g and (g == 3).all() for (_, p), g in zip(session.objective.parameters(), kept, strict=True))


def test_the_largest_micro_batch_is_run_and_time_is_extrapolated(recipe, monkeypatch):
    session = session_of(recipe, budget={"amount": 10, "checkpoints": [1.0]})
    seen, per_sample = [], FineTuning.per_sample

    def record(self, batch):
        seen.append(batch.x0.shape)
        return per_sample(self, batch)

    monkeypatch.setattr(FineTuning, "per_sample", record)
    report = trial_update(session)
    plan = session.plan(0)
    pixels = [
        len(m.slices) * session.dataset.slices[m.slices[0]].bucket[0] * session.dataset.slices[m.slices[0]].bucket[1]
        for update in plan
        for m in update.micro_batches
    ]
    largest = report.shape.slices * report.shape.height * report.shape.width
    scale = session.family.capabilities.latent_scale
    assert largest == max(pixels)
    assert set(seen) == {(report.shape.slices, 16, report.shape.height // scale, report.shape.width // scale)}
    assert report.epoch_seconds == pytest.approx(report.seconds * sum(pixels) / largest)
    assert report.run_seconds == pytest.approx(report.epoch_seconds * 10 / len(plan))
    assert report.seconds > 0 and report.memory >= 0 and str(report.shape) in report.line()


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_out_of_memory_names_bucket_micro_batch_and_switches(recipe, monkeypatch, error):
    session, per_sample = session_of(recipe), FineTuning.per_sample

    def fail(self, batch):
        if batch.x0.is_meta:  # the forecast in the message
            return per_sample(self, batch)
        raise error

    monkeypatch.setattr(FineTuning, "per_sample", fail)
    with pytest.raises(ConfigError) as caught:
        trial_update(session)
    message = str(caught.value)
    assert "2 slices in bucket 64x64" in message and "Try model.dtype=bfloat16 (saves about" in message
    assert "\n" not in message


def test_other_errors_are_not_called_memory(recipe, monkeypatch):
    session = session_of(recipe)
    monkeypatch.setattr(FineTuning, "per_sample", lambda self, batch: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        trial_update(session)
