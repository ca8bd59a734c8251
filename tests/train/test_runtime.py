"""One process alone, and which device each of several takes."""

import pytest
import torch
from torch import nn

from flowgrain.errors import ConfigError
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.setup import choose_device


def test_one_process_changes_nothing_and_needs_no_group():
    with_gradient, without = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with_gradient.grad = torch.tensor([1.0, 2.0])
    ALONE.sum_gradients([("a", with_gradient), ("b", without)])
    assert torch.equal(with_gradient.grad, torch.tensor([1.0, 2.0])) and without.grad is None
    assert ALONE.maximum(3.0, -1.0) == [3.0, -1.0] and ALONE.gather("x") == ["x"]
    ALONE.require_equal({"data set": "a"})
    with ALONE.main_first():
        assert ALONE.is_main


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_a_machine_takes_its_own_device(four_gpus, name):
    devices = [choose_device(name, Runtime(rank=4 + local, world=8, local_rank=local)) for local in range(4)]
    assert devices == [torch.device("cuda", index) for index in range(4)]
    assert choose_device("cpu", Runtime(rank=1, world=2, local_rank=1)) == torch.device("cpu")
    assert choose_device(name) == torch.device("cuda")
    assert choose_device("cuda:2") == torch.device("cuda", 2)


def test_devices_that_processes_cannot_have_are_errors(four_gpus):
    with pytest.raises(ConfigError, match="'cuda:4' is not there; torch sees 4 CUDA devices; start one process a"):
        choose_device("auto", Runtime(rank=4, world=5, local_rank=4))
    with pytest.raises(ConfigError, match="all 2 processes would use cuda:0; use auto or cuda"):
        choose_device("cuda:0", Runtime(rank=1, world=2, local_rank=1))
    with pytest.raises(ConfigError, match="'cuda:4' is not there"):
        choose_device("cuda:4")
