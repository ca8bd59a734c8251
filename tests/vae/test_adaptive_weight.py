"""Adaptive weights against two explicit gradients, and their rules where the ratio says nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_autoencoders import pictures, small_vae
from torch import nn

from flowgrain.vae.adaptive_weight import (
    AdaptiveWeight,
    adaptive_weight,
    decoder_last_layer,
    encoder_last_layer,
    gradient_norm,
    weight_from_norms,
)

SUM = AdaptiveWeight(rule="sum", delta=1e-4, maximum=1e4)
NORMS = st.one_of(st.floats(min_value=0, width=32), st.just(float("nan")))
FLOOR = AdaptiveWeight(rule="floor", delta=1e-8, maximum=1e4)


def layer_and_values(dtype=torch.float32):
    """A layer of known gradients: d native = 3 everywhere, d term = 0.5, 4 entries."""
    layer = nn.Parameter(torch.ones(2, 2, dtype=dtype))
    return layer, 3 * layer.sum(), 0.5 * layer.sum()


def test_ratio_by_hand():
    layer, native, term = layer_and_values()
    assert adaptive_weight(native, term, layer, SUM).item() == pytest.approx(6 / (1 + 1e-4))
    assert adaptive_weight(native, term, layer, FLOOR).item() == pytest.approx(6)
    assert adaptive_weight(native, term, layer, AdaptiveWeight(maximum=2)).item() == 2
    wide = AdaptiveWeight(rule="floor", delta=4)
    assert adaptive_weight(native, term, layer, wide).item() == pytest.approx(6 / 4)
    assert adaptive_weight(native, term, layer, wide.model_copy(update={"rule": "sum"})).item() == pytest.approx(6 / 5)


def test_equals_two_explicit_gradients_of_an_autoencoder():
    vae, images = small_vae(), pictures()
    posterior = vae.encode(images).latent_dist
    output = vae.decode(posterior.mean).sample
    native, term = (output - images).abs().mean(), posterior.mean.square().mean()
    for layer, other in ((encoder_last_layer(vae), term), (decoder_last_layer(vae), output.mean())):
        pairs = [torch.autograd.grad(value, layer, retain_graph=True)[0].norm() for value in (native, other)]
        weight = adaptive_weight(native, other, layer, SUM)
        assert weight.item() == pytest.approx((pairs[0] / (pairs[1] + 1e-4)).item(), rel=1e-5)
        assert not weight.requires_grad
        assert layer.grad is None
    (native + term).backward()  # the graph is still there


def test_last_layers():
    plain, quant = small_vae(), small_vae(quant=True)
    assert encoder_last_layer(plain) is plain.encoder.conv_out.weight
    assert encoder_last_layer(quant) is quant.quant_conv.weight
    assert decoder_last_layer(quant) is quant.decoder.conv_out.weight


@pytest.mark.parametrize("config", [SUM, FLOOR])
@given(native=NORMS, term=NORMS)
def test_always_finite_and_never_stronger_than_the_native_loss(config, native, term):
    norms = torch.tensor(native), torch.tensor(term)
    weight = weight_from_norms(*norms, config)
    assert weight.dtype == torch.float32
    assert 0 <= weight.item() <= config.maximum
    if all(norm.isfinite() for norm in norms):
        assert weight.double() * norms[1].double() <= norms[0].double() * (1 + 1e-6) + 1e-37
    else:
        assert weight.item() == 0


@pytest.mark.parametrize("config", [SUM, FLOOR])
def test_a_term_without_gradient_has_weight_zero(config):
    layer, native, _ = layer_and_values()
    for term in (0 * layer.sum(), torch.tensor(1.0), nn.Parameter(torch.ones(1)).sum()):
        assert adaptive_weight(native, term, layer, config).item() == 0
    assert adaptive_weight(0 * layer.sum(), layer.sum(), layer, config).item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_gives_zero(bad):
    layer, native, term = layer_and_values()
    assert adaptive_weight(native, bad * layer.sum(), layer, SUM).item() == 0
    assert adaptive_weight(bad * layer.sum(), term, layer, SUM).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_layer(dtype):
    layer, native, term = layer_and_values(dtype)
    weight = adaptive_weight(native, term, layer, FLOOR)
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(6, rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_neither_overflow_nor_vanish(size):
    layer = nn.Parameter(torch.ones(3, 3))
    assert gradient_norm(size * layer.sum(), layer).item() == pytest.approx(3 * size, rel=1e-5)


def test_autocast_changes_nothing_but_the_gradients():
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        native, term = layer(x).float().square().mean(), layer(x).float().mean()
        weight = adaptive_weight(native, term, layer.weight, SUM)
    pair = [torch.autograd.grad(value, layer.weight, retain_graph=True)[0].norm().item() for value in (native, term)]
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(pair[0] / (pair[1] + 1e-4), rel=1e-5)


def test_combined_gradients_decide():
    # two processes whose native gradients cancel: together the term has nothing to be measured by
    layer, native, term = layer_and_values()
    seen = []

    def combine(gradient):
        seen.append(gradient)
        return torch.zeros_like(gradient) if len(seen) == 1 else gradient

    assert adaptive_weight(native, term, layer, SUM, combine).item() == 0
    assert [gradient.flatten()[0].item() for gradient in seen] == [3, 0.5]


def test_gradient_checkpointing_keeps_the_weight():
    vae, images = small_vae(), pictures()
    weights = []
    for checkpointing in (False, True):
        vae.train()
        if checkpointing:
            vae.enable_gradient_checkpointing()
        mean = vae.encode(images).latent_dist.mean
        native, term = vae.decode(mean).sample.square().mean(), mean.abs().mean()
        weights.append(adaptive_weight(native, term, encoder_last_layer(vae), SUM).item())
        (native + term).backward()
    assert weights[1] == pytest.approx(weights[0], rel=1e-6)
