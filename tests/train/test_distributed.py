"""Several real processes: the same gradient, the same run, one end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import workers
from safetensors.torch import load_file

from flowgrain.adapters.base import AdapterConfig
from flowgrain.config import dump_yaml
from flowgrain.errors import ConfigError
from flowgrain.train.distributed import Launch
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.memory import MemoryConfig
from flowgrain.train.sharding import check_shardable
from flowgrain.train.state import complete_checkpoints


@pytest.fixture(scope="module")
def reference():
    """Results of one process, computed once for all worlds."""
    return []


@pytest.mark.parametrize("world, sharded", [(2, False), (3, False), (2, True)])
def test_gradient_and_validation_are_those_of_one_process(recipe, dataset, tmp_path, reference, world, sharded):
    """LoRA and DoRA; one slice for all processes together, and many that no even share divides."""
    held_out = {"path": str(dataset), "batch_size": 2, "max_roots": 3}
    recipes = [
        recipe(adapter={"kind": kind, "rank": 4, "alpha": 2}, tuples={"batch_size": batch}, validation=validation)
        for kind, batch, validation in (("lora", 1, None), ("lora", 5, held_out), ("dora", 5, None))
    ]
    if not reference:
        reference += workers.gradients(recipes)
    environment = workers.SHARDED if sharded else {}
    ended = workers.run_processes(tmp_path, world, workers.gradients, recipes, environment=environment)
    assert [process.exit_code for process in ended] == [0] * world, ended
    for index, (slices, expected, validation) in enumerate(reference):
        shares = [process.value[index][0] for process in ended]
        assert sum(shares) == slices
        assert sorted(shares) == [0] * (world - 1) + [1] if index == 0 else 0 not in shares
        assert index == 0 or len(set(shares)) > 1 or world == 3
        assert expected.norm() > 0
        for process in ended:
            assert (process.value[index][1] - expected).norm() <= 1e-6 * expected.norm()
            assert process.value[index][2] == validation


def test_sums_keep_absent_gradients_absent(tmp_path):
    for rank, process in enumerate(workers.run_processes(tmp_path, 3, workers.summed_gradients)):
        (none, one, everywhere), largest = process.value
        assert none is None, rank
        assert torch.equal(one, torch.ones(2, 3)) and torch.equal(everywhere, torch.full((2, 3), 6.0))
        assert largest == [-1.0, 2.0]


def parameters_of(run):
    return load_file(complete_checkpoints(Path(run))[-1] / "trainable.safetensors")


def assert_close_runs(a, b):
    """Parameters to 1e-5, and what the log says of losses."""
    left, right = parameters_of(a), parameters_of(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.allclose(left[name], right[name], rtol=1e-5, atol=1e-5), name
    mine, theirs = read_log(Path(a)), read_log(Path(b))
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one["kind"] == other["kind"] and one["update"] == other["update"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one.get("count_by_level") == other.get("count_by_level")
        assert one.get("mean_t_by_level") == pytest.approx(other.get("mean_t_by_level"))


@pytest.fixture
def run_recipe(recipe, dataset):
    def build(output):
        # eps well above rounding: Adam would turn a gradient of 1e-9 into a full step of either sign
        return recipe(output, validation={"path": str(dataset), "max_roots": 2, "batch_size": 2}, save_every=1,
                      budget={"amount": 2, "checkpoints": [1.0, 2.0]}, ema={"decay": 0.5},
                      optimizer={"lr": 1e-3, "eps": 1e-4})  # fmt: skip

    return build


@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_of_two_processes_is_that_of_one_and_either_resumes_the_other(run_recipe, tmp_path, sharded):
    environment = workers.SHARDED if sharded else {}
    alone, together, first_together, first_alone = (run_recipe(name) for name in ("alone", "two", "two-one", "one-two"))
    train(alone, False, Observer())

    def two(config, *arguments):
        ended = workers.run_processes(tmp_path, 2, workers.whole_run, config, *arguments, environment=environment)
        assert [process.exit_code for process in ended] == [0, 0], ended
        return [process.value for process in ended]

    outcomes = two(together)
    assert outcomes[0].progress.updates == outcomes[1].progress.updates == 4
    assert_close_runs(alone.output, together.output)
    # a signal that only the second process receives stops both after the same update, with one checkpoint
    outcomes = two(first_together, False, 2, 1)
    assert [outcome.interrupted for outcome in outcomes] == [True, True]
    assert [outcome.progress.updates for outcome in outcomes] in ([2, 2], [3, 3])
    train(first_together, True, Observer())
    assert_close_runs(alone.output, first_together.output)
    assert train(first_alone, False, workers.Signals(signal.SIGTERM, 1)).interrupted
    two(first_alone, True)
    assert_close_runs(alone.output, first_alone.output)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_and_it_resumes(run_recipe, tmp_path, killed):
    whole, config = run_recipe("whole"), run_recipe("killed")
    train(whole, False, Observer())
    arguments = (config, False, 2, killed, signal.SIGKILL)
    ended = workers.run_processes(tmp_path, 2, workers.whole_run, *arguments, limit=60)
    assert ended[killed].exit_code == -signal.SIGKILL
    assert ended[1 - killed].exit_code == 4
    output = ended[1 - killed].output
    assert output.count("flowgrain: error:") == 1 and f"process {killed} of 2 was killed" in output
    assert str(complete_checkpoints(config.output)[-1]) in output and "--resume" in output
    train(config, True, Observer())
    assert_close_runs(whole.output, config.output)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_killed_process_ends_those_that_wait_and_those_that_work_alone(tmp_path, waiting):
    ended = workers.run_processes(tmp_path, 3, workers.one_is_killed, 1, waiting, limit=30)
    assert [process.exit_code for process in ended] == [4, -signal.SIGKILL, 4]
    output = "".join(process.output for process in ended)
    assert output.count("flowgrain: error: process 1 of 3 was killed") == 1


@pytest.mark.parametrize("function", [workers.one_fails, workers.all_fail])
def test_a_users_error_ends_all_processes_and_is_printed_once(tmp_path, function):
    ended = workers.run_processes(tmp_path, 3, function, limit=30)
    assert [process.exit_code for process in ended] == [2, 2, 2], ended
    output = "".join(process.output for process in ended)
    assert output.count("flowgrain: error: fox.png: cannot be read") == 1 and output.count("\n") == 1


def test_processes_that_see_different_files_do_not_start(tmp_path):
    ended = workers.run_processes(tmp_path, 2, workers.differing_facts, limit=30)
    assert [process.exit_code for process in ended] == [2, 2]
    output = "".join(process.output for process in ended)
    assert output.count("the data set differs between processes: data 0 in process 0, data 1 in process 1") == 1


def test_a_non_finite_loss_in_one_process_stops_all_before_the_step(recipe, tmp_path):
    config = recipe("poisoned", tuples={"batch_size": 4})
    ended = workers.run_processes(tmp_path, 2, workers.non_finite_in_the_last_rank, config)
    (message, same), (other, other_same) = (process.value for process in ended)
    assert message == other and same and other_same
    assert re.search(r"r\d/(macro|meso|micro)0 \(t = 0\.\d+, flow = [\d.]+, poison = nan\)", message)


@pytest.mark.parametrize("memory", [{"compile": True}, {"quantize": "nf4"}])
def test_memory_settings_that_shards_cannot_have_are_errors(memory):
    check_shardable(MemoryConfig(gradient_checkpointing=True), AdapterConfig())
    with pytest.raises(ConfigError, match=f"memory.{next(iter(memory))}.* launch without FSDP"):
        check_shardable(MemoryConfig(**memory), AdapterConfig())


def test_shards_of_frozen_weights_do_not_go_with_training_all_of_them():
    with pytest.raises(ConfigError, match=r"adapter\.kind: full trains all weights.* launch without FSDP"):
        check_shardable(MemoryConfig(), AdapterConfig(kind="full"))


ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not supported"),
        ({**workers.SHARDED, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        ({**workers.SHARDED, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing is not read"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, "starts a single process"),
    ],
)
def test_ways_of_launching_that_would_not_happen_are_errors(environment, message):
    with pytest.raises(ConfigError, match=message):
        Launch.read(environment).check()


@pytest.mark.parametrize("environment", [{}, ONE_PROCESS, {**ONE_PROCESS, **workers.SHARDED}])
def test_one_process_is_one_process(environment):
    launch = Launch.read(environment)
    launch.check()
    assert launch.world == 1 and not launch.sharded


def launch(config, tmp_path, *options, arguments=(), how=("--multi_gpu",)):
    """``accelerate launch`` of two processes, as a user types it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2", "--num_machines", "1",
               "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(workers.free_port()),
               "-m", "flowgrain", "train", str(path), *arguments]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_accelerate_launches_sharded_training(run_recipe, tmp_path):
    config = run_recipe("launched")
    process = launch(config, tmp_path, how=("--use_fsdp", "--fsdp_version", "2"))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count(f"-> {config.output}") == 1 and errors.count("saved") == 4
    train(run_recipe("alone"), False, Observer())
    assert_close_runs(config.output.parent / "alone", config.output)


@pytest.mark.slow
def test_dry_run_and_errors_are_printed_once(run_recipe, tmp_path):
    config = run_recipe("dry")
    for option, expected in (("--dry-run", "budget:"), ("--print-config", "tuples.batch_size = ")):
        process = launch(config, tmp_path, arguments=(option,))
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and output.count(expected) == 1
    process = launch(config, tmp_path, arguments=("data.path=nowhere",))
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and errors.count("flowgrain: error:") == 1 and "nowhere" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, None), (signal.SIGKILL, 4)])
def test_a_launched_run_that_is_stopped_or_loses_a_process_resumes(run_recipe, tmp_path, number, code):
    """SIGTERM goes to the launcher, SIGKILL to one process of the run."""
    budget = {"amount": 40, "checkpoints": [1.0, 2.0]}
    whole, config = (run_recipe(name).model_copy(update={"budget": type(run_recipe("x").budget)(**budget)})
                     for name in ("whole", "stopped"))  # fmt: skip
    train(whole, False, Observer())
    process = launch(config, tmp_path)
    deadline = time.monotonic() + 120
    while len(complete_checkpoints(config.output)) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid if code is None else int(children[-1]), number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("stopped on request after saving" in errors) == (code is None)
    assert errors.count("of 2 was killed or crashed; the last checkpoint is") == (code is not None), errors
    done = complete_checkpoints(config.output)
    assert 0 < len(done) and not list(config.output.glob("checkpoints/.*.tmp"))
    train(config, True, Observer())
    assert_close_runs(whole.output, config.output)
