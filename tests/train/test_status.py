"""How a run stands: from its folder alone, on this machine and on another."""

import json

import pytest
from whole_runs import Listening, StopAfter

from flowgrain.errors import CheckpointError
from flowgrain.locks import locked
from flowgrain.train.log import read_log
from flowgrain.train.loop import train
from flowgrain.train.status import read_status, to_json


@pytest.fixture
def stopped(recipe, dataset):
    config = recipe("run", validation={"path": str(dataset), "max_roots": 1, "every": 2})
    train(config, False, StopAfter(3))
    return config


def declare(run, **values):
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_from_its_first_stop_to_its_end(stopped):
    run = stopped.output
    state = read_status(run)
    assert (state.name, state.state, state.update, state.part, state.budget) == (
        "test",
        "interrupted",
        3,
        0.5,
        "6 updates",
    )
    assert [(c.update, c.marks) for c in state.checkpoints] == [(2, ()), (3, ())]
    assert state.loss_by_level == read_log(run)[-1]["loss_by_level"]
    assert state.best.update == state.validation_update == 2 and state.best.loss == state.validation_loss
    # three updates are left, at the mean time of the three done
    assert state.seconds_left == pytest.approx(state.seconds, rel=0.01)
    assert state.slices_per_second == pytest.approx(state.slices / state.seconds, rel=0.01)
    assert state.bytes > sum(c.bytes for c in state.checkpoints) > 0 and state.error_bundle is None
    train(stopped, True, Listening())
    state = read_status(run)
    assert (state.state, state.update, state.part, state.seconds_left) == ("finished", 6, 1.0, 0.0)
    assert [c.marks for c in state.checkpoints if c.marks] == [(1.0,), (1.5,)]


def test_running_died_and_unknown(stopped):
    run = stopped.output
    with locked(run):
        assert read_status(run).state == "running"
    declare(run, status="running")
    assert read_status(run).state == "died"
    (run / ".lock").write_text("process 7 on another-machine\n")
    state = read_status(run)
    assert (state.state, state.where) == ("unknown", "process 7 on another-machine")
    (run / ".lock").unlink()
    assert read_status(run).state == "unknown"
    (run / "nonfinite-update-000007").mkdir()
    assert read_status(run).error_bundle == "nonfinite-update-000007"


def test_json_holds_no_nan(stopped):
    (stopped.output / "metrics.jsonl").write_text('{"kind": "validation", "update": 3, "loss": NaN}\n')
    values = json.loads(to_json(read_status(stopped.output)), parse_constant=pytest.fail)
    assert values["validation_loss"] is None and values["checkpoints"][0]["update"] == 2
    assert values["update"] == 3 and values["slices_per_second"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, r"no run\.json here"), ("{", "damaged"), ("[]", "damaged"), ('{"status": "running"}', "damaged")],
)
def test_a_folder_that_is_no_run(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_status(tmp_path)
    assert "\n" not in str(caught.value)
