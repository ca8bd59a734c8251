"""The quarter-memory identity, value and gradient, and capturing the input of the last convolution."""

import pytest
import torch
from small_autoencoders import pictures, small_vae
from torch import nn
from torch.nn import functional

from flowgrain.vae.deeper import deepen
from flowgrain.vae.scale_consistency import (
    PooledFeatures,
    captured_input,
    pooled_scale_consistency,
    scale_consistency,
)
from flowgrain.vae.teacher import Teacher


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_both_forms_are_one_number_with_one_gradient(factor):
    generator = torch.Generator().manual_seed(factor)
    teacher = torch.randn(3, 5, 4 * factor, 6 * factor, generator=generator, dtype=torch.float64)
    student = torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    full = scale_consistency(student, teacher, factor)
    upsampled = student.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert torch.allclose(full, (teacher - upsampled).square().mean((1, 2, 3)), rtol=1e-13)
    pooled = pooled_scale_consistency(student, PooledFeatures.of(teacher, factor))
    assert torch.allclose(full, pooled, rtol=1e-13)
    slopes = [torch.autograd.grad(value.sum(), student, retain_graph=True)[0] for value in (full, pooled)]
    assert torch.allclose(*slopes, rtol=1e-12, atol=1e-15)


def test_spread_is_the_variance_within_cells():
    features = torch.tensor([[[[0.0, 2.0, 5.0, 5.0], [4.0, 6.0, 5.0, 5.0]]]])
    pooled = PooledFeatures.of(features, 2)
    assert pooled.mean.flatten().tolist() == [3, 5]
    assert pooled.spread.item() == pytest.approx((features[..., :2].var(unbiased=False).item() + 0) / 2)
    # the best student cannot do better than that
    assert pooled_scale_consistency(pooled.mean, pooled).item() == pytest.approx(pooled.spread.item())


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="in cells of 2"):
        PooledFeatures.of(torch.zeros(1, 1, 3, 4), 2)
    with pytest.raises(ValueError, match="2 times as large"):
        scale_consistency(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 2)
    with pytest.raises(ValueError, match="against pooled"):
        pooled_scale_consistency(torch.zeros(1, 1, 4, 4), PooledFeatures.of(torch.zeros(1, 1, 4, 4), 2))


def test_positive_at_the_start_for_a_deeper_model():
    vae, images = deepen(small_vae()), pictures()
    teacher = Teacher(vae)
    with captured_input(vae.decoder.conv_out) as found:
        vae(images)
    value = pooled_scale_consistency(found.one(), teacher.pooled_features(images))
    assert (value > 0).all()
    assert torch.allclose(value, scale_consistency(found.one(), teacher.last_features(images), 2), rtol=1e-5)


def test_captured_is_the_input_of_the_last_convolution_with_its_graph():
    vae, images = small_vae(), pictures()
    with captured_input(vae.decoder.conv_out) as found:
        output = vae(images).sample
    last = vae.decoder.conv_out
    assert torch.allclose(functional.conv2d(found.one(), last.weight, last.bias, padding=1), output)
    assert found.one().requires_grad


def test_the_hook_goes_also_after_an_error():
    layer = nn.Conv2d(3, 3, 1)
    with pytest.raises(KeyError), captured_input(layer):
        raise KeyError("of the block")
    assert not layer._forward_pre_hooks
    with captured_input(layer) as found:
        pass
    with pytest.raises(RuntimeError, match="called 0 times"):
        found.one()


def test_tiles_are_noticed():
    vae = small_vae()
    vae.enable_tiling()
    with captured_input(vae.decoder.conv_out) as found, torch.no_grad():
        vae(pictures(side=64))
    with pytest.raises(RuntimeError, match=r"called \d+ times; switch tiling and slicing"):
        found.one()


def test_under_gradient_checkpointing():
    vae, images = deepen(small_vae()).train(), pictures()
    vae.enable_gradient_checkpointing()
    teacher = Teacher(vae)
    with captured_input(vae.decoder.conv_out) as found:
        vae(images)
    pooled_scale_consistency(found.one(), teacher.pooled_features(images)).sum().backward()
    assert vae.encoder.conv_in.weight.grad.abs().max() > 0
    assert len(found.maps) == 1
