"""Optimizers: resumable bit for bit, and a key that one does not read is an error."""

import copy
import sys

import pytest
import torch
from torch import nn

from flowgrain.config import load_config
from flowgrain.errors import ConfigError, MissingExtraError
from flowgrain.train.optimizers import OptimizerConfig, build_optimizer, set_learning_rates, state_bytes

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


def test_lions_step_is_that_of_the_specification():
    """Spec b.5: p = (1, -2), g = (.3, -.1), m = (-.5, .2), lr 3e-5, no decay."""
    named = [("w", nn.Parameter(torch.tensor([1.0, -2.0])))]
    optimizer = build_optimizer(OptimizerConfig(name="lion", lr=3e-5, weight_decay=0), named, CPU)
    optimizer.state[named[0][1]]["exp_avg"] = torch.tensor([-0.5, 0.2])
    named[0][1].grad = torch.tensor([0.3, -0.1])
    optimizer.step()
    torch.testing.assert_close(named[0][1].detach(), torch.tensor([1.00003, -2.00003]), rtol=0, atol=1e-7)
    torch.testing.assert_close(optimizer.state[named[0][1]]["exp_avg"], torch.tensor([-0.492, 0.197]))


COMPONENTS = ("unet.a", "text_encoder.b", "text_encoder_2.b", "unet.c", "text_encoder.d")


def several():
    generator = torch.Generator().manual_seed(0)
    return [(name, nn.Parameter(torch.randn(6, generator=generator))) for name in COMPONENTS]


def rates(optimizer, named):
    """Rate of each parameter by name."""
    names = {id(parameter): name for name, parameter in named}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_parameters_take_the_rate_of_the_pattern_that_matches_them(name):
    named = several()
    patterns = {"text_encoder.*": 3e-6, "text_encoder_2*": 5e-6}
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=3e-5, lrs=patterns), named, CPU)
    expected = {
        "unet.a": 3e-5,
        "text_encoder.b": 3e-6,
        "text_encoder_2.b": 5e-6,
        "unet.c": 3e-5,
        "text_encoder.d": 3e-6,
    }
    assert rates(optimizer, named) == expected
    set_learning_rates(optimizer, 0.5)
    assert rates(optimizer, named) == {key: 0.5 * value for key, value in expected.items()}
    set_learning_rates(optimizer, 1.0)
    assert rates(optimizer, named) == expected


def test_groups_come_in_the_order_of_the_parameters_whatever_the_order_of_the_patterns():
    patterns = {"text_encoder.*": 3e-6, "text_encoder_2*": 5e-6}
    orders = []
    for lrs in (patterns, dict(reversed(patterns.items()))):
        named = several()
        optimizer = build_optimizer(OptimizerConfig(lr=3e-5, lrs=lrs), named, CPU)
        names = {id(parameter): name for name, parameter in named}
        orders.append([[names[id(p)] for p in group["params"]] for group in optimizer.param_groups])
    assert orders[0] == orders[1] == [["unet.a", "unet.c"], ["text_encoder.b", "text_encoder.d"], ["text_encoder_2.b"]]
    one = build_optimizer(OptimizerConfig(lr=3e-5), several(), CPU)
    assert [len(group["params"]) for group in one.param_groups] == [5]


def test_update_sizes_of_lion_are_in_the_ratio_of_the_rates():
    named = [(name, nn.Parameter(torch.zeros(6))) for name in COMPONENTS]
    config = OptimizerConfig(name="lion", lr=3e-5, lrs={"text_encoder*": 3e-6}, weight_decay=0)
    optimizer = build_optimizer(config, named, CPU)
    steps(named, optimizer, 0, 1)
    for name, parameter in named:
        rate = 3e-6 if name.startswith("text_encoder") else 3e-5
        assert torch.equal(parameter.detach().abs(), torch.full((6,), rate))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion"])
def test_groups_are_resumed_bit_for_bit(name, tmp_path):
    needs(name)
    config = OptimizerConfig(name=name, weight_decay=0.1, lr=1e-2, lrs={"text_encoder*": 1e-3})
    whole, first = several(), several()
    optimizer = build_optimizer(config, whole, CPU)
    for step in range(6):
        set_learning_rates(optimizer, 1 - step / 10)
        steps(whole, optimizer, step, step + 1)
    optimizer = build_optimizer(config, first, CPU)
    for step in range(6):
        if step == 3:
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
            first = [(key, nn.Parameter(value.detach().clone())) for key, value in first]
            optimizer = build_optimizer(config, first, CPU)
            optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        set_learning_rates(optimizer, 1 - step / 10)
        steps(first, optimizer, step, step + 1)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(whole, first, strict=True))


@pytest.mark.parametrize(("lrs", "message"), [
    ({"text_enc.*": 1e-6}, r"'text_enc\.\*' matches no trained parameter; did you mean 'text_encoder\.\*'\? there are "
     r"for example text_encoder\.b, text_encoder_2\.b, unet\.a"),
    ({"vae*": 1e-6}, r"'vae\*' matches no trained parameter; there are for example text_encoder\.b"),
    ({"text_encoder*": 1e-6, "*.b": 2e-6}, r"text_encoder\.b gets 1e-06 from 'text_encoder\*' and 2e-06 from '\*\.b'"),
])  # fmt: skip
def test_rates_of_nothing_or_two_for_one_parameter_are_errors(lrs, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(OptimizerConfig(lrs=lrs), several(), CPU)


def test_prodigy_estimates_one_step_size_and_reads_no_rates_of_groups():
    with pytest.raises(ValueError, match=r"optimizer\.lrs is not read by prodigy"):
        OptimizerConfig(name="prodigy", lrs={"text_encoder*": 1.0})


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
