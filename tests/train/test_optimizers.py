"""Optimizers: resumable bit for bit, and a key that one does not read is an error."""

import copy
import sys

import pytest
import torch
from torch import nn

from flowgrain.config import load_config
from flowgrain.errors import ConfigError, MissingExtraError
from flowgrain.train.optimizers import OptimizerConfig, build_optimizer, state_bytes

CPU = torch.device("cpu")
NAMES = ["adamw", "adamw8bit", "lion", "prodigy"]


def needs(name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")


def parameters():
    torch.manual_seed(0)
    return [("a", nn.Parameter(torch.randn(80, 70))), ("b", nn.Parameter(torch.randn(7)))]


def steps(named, optimizer, start, stop):
    for step in range(start, stop):
        for index, (_, parameter) in enumerate(named):
            generator = torch.Generator().manual_seed(100 * step + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator) + 0.1 * parameter.detach()
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_resumed_is_uninterrupted(name, tmp_path):
    needs(name)
    config = OptimizerConfig(name=name, weight_decay=0.1)
    whole = parameters()
    before = [p.detach().clone() for _, p in whole]
    steps(whole, build_optimizer(config, whole, CPU), 0, 8)
    first = parameters()
    optimizer = build_optimizer(config, first, CPU)
    steps(first, optimizer, 0, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second = [(key, nn.Parameter(value.detach().clone())) for key, value in first]
    resumed = build_optimizer(config, second, CPU)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(second, resumed, 3, 8)
    for (_, one), (_, other), start in zip(whole, second, before, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


@pytest.mark.parametrize("name", NAMES)
def test_forecast_state_is_the_state(name):
    needs(name)
    named = parameters()
    optimizer = build_optimizer(OptimizerConfig(name=name), named, CPU)
    steps(named, optimizer, 0, 2)
    tables = ("qmap1", "qmap2")  # bitsandbytes shares its two code tables among all parameters
    values = [v for state in optimizer.state.values() for key, v in state.items() if key not in tables]
    actual = sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor) and v.dim() > 0)
    assert state_bytes(name, named) == actual


def test_first_step_of_lion_is_the_sign_and_of_adamw_the_learning_rate():
    for name in ("lion", "adamw"):
        named = [("w", nn.Parameter(torch.zeros(4)))]
        named[0][1].grad = torch.tensor([3.0, -0.5, 2.0, -7.0])
        build_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0), named, CPU).step()
        torch.testing.assert_close(named[0][1].detach(), torch.tensor([-0.1, 0.1, -0.1, 0.1]))


def test_own_defaults():
    assert OptimizerConfig(name="lion").betas == (0.9, 0.99)
    assert OptimizerConfig(name="prodigy").lr == 1.0
    assert OptimizerConfig(name="prodigy", lr=0.5).lr == 0.5
    assert (OptimizerConfig().lr, OptimizerConfig().betas) == (1e-4, (0.9, 0.999))


@pytest.mark.parametrize(("name", "key", "value"), [
    ("lion", "eps", 1e-6), ("lion", "fused", True), ("prodigy", "fused", False), ("adamw8bit", "fused", True),
])  # fmt: skip
def test_a_key_that_is_not_read_is_an_error(name, key, value):
    with pytest.raises(ConfigError, match=f"optimizer.{key} is not read by {name}"):
        load_config(OptimizerConfig, None, [f"name={name}", f"{key}={value}"])


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_configuration_stays_valid(name):
    config = OptimizerConfig(name=name)
    assert OptimizerConfig.model_validate(config.model_dump()) == config


def test_fused_is_equal_to_rounding_and_off_by_default_on_cpu():
    runs = []
    for fused in (None, True):
        named = parameters()
        optimizer = build_optimizer(OptimizerConfig(fused=fused), named, CPU)
        assert optimizer.defaults["fused"] is bool(fused)
        steps(named, optimizer, 0, 5)
        runs.append(named[0][1].detach())
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match="meta has no fused AdamW"):
        build_optimizer(OptimizerConfig(fused=True), parameters(), torch.device("meta"))


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("adamw8bit", "bitsandbytes", "gpu"), ("lion", "pytorch_optimizer", "optimizers"),
])  # fmt: skip
def test_a_missing_package_names_the_extra(monkeypatch, name, package, extra):
    for module in [m for m in sys.modules if m.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"flowgrain\[{extra}\]"):
        build_optimizer(OptimizerConfig(name=name), copy.deepcopy(parameters()), CPU)
