"""Moment alignment against diffusers' own distribution, and the two forms of the teacher."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from small_autoencoders import pictures, small_vae
from torch.nn import functional

from flowgrain.vae.deeper import deepen
from flowgrain.vae.moments import Moments, kl_to_standard_normal, moment_alignment
from flowgrain.vae.teacher import Teacher


def parameters(seed, count=3):
    return torch.randn(count, 8, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_diffusers_divergence():
    own, other = parameters(0), parameters(1)
    a, b = DiagonalGaussianDistribution(own), DiagonalGaussianDistribution(other)
    elements = own[0].numel() // 2
    value = moment_alignment(Moments.of(own), Moments.of(other), "kl")
    assert torch.allclose(value, a.kl(b) / elements, rtol=1e-12)
    assert torch.allclose(kl_to_standard_normal(Moments.of(own)), a.kl() / elements, rtol=1e-12)
    noise = torch.randn(a.mean.shape, dtype=torch.float64)
    assert torch.allclose(Moments.of(own).sample(noise), a.mean + a.std * noise)


def test_squared_differences_by_hand():
    zero, own = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    assert moment_alignment(Moments.of(own), Moments.of(zero), "mse").tolist() == [(1 + 9) / 2 + 4 / 2]


def test_log_variance_is_clamped_as_in_diffusers():
    wild = torch.tensor([[[[0.0]], [[1e4]]], [[[0.0]], [[-1e4]]]], requires_grad=True)
    moments = Moments.of(wild)
    assert torch.equal(moments.logvar, DiagonalGaussianDistribution(wild).logvar)
    assert moment_alignment(moments, Moments.of(torch.zeros(2, 2, 1, 1)), "mse").tolist() == [400, 900]
    moments.logvar.sum().backward()
    assert wild.grad.abs().max() == 0


@pytest.mark.parametrize("form", ["mse", "kl"])
def test_zero_of_equal_moments_and_no_less(form):
    one, two = Moments.of(parameters(0).float()), Moments.of(parameters(1).float())
    assert moment_alignment(one, one, form).tolist() == [0] * 3
    assert (moment_alignment(one, two, form) > 0).all()


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match="against"):
        moment_alignment(Moments.of(torch.zeros(1, 2, 4, 4)), Moments.of(torch.zeros(1, 2, 2, 2)))


@pytest.mark.parametrize("quant", [False, True])
@pytest.mark.parametrize("doublings", [0, 1, 2])
def test_form_a_is_zero_at_the_start_and_form_b_is_not(quant, doublings):
    vae, images = deepen(small_vae(quant=quant), doublings), pictures(side=16)
    teacher = Teacher(vae)
    own = Moments.of(vae.encode(images).latent_dist.parameters)
    for form in ("mse", "kl"):
        assert moment_alignment(own, teacher.moments(images, "strided"), form).tolist() == [0, 0]
    other = moment_alignment(own, teacher.moments(images, "downsampled"))
    assert (other > 0).all() if doublings else other.tolist() == [0, 0]


def test_form_b_is_the_shallow_encoder_on_the_small_image():
    vae, images = small_vae(quant=True), pictures(side=16)
    expected = vae.encode(functional.avg_pool2d(images, 2)).latent_dist.mean.detach()
    teacher = Teacher(deepen(vae))
    assert torch.equal(teacher.moments(images, "downsampled").mean, expected)


def test_teacher_stays_what_it_was_while_the_student_trains():
    vae, images = deepen(small_vae()), pictures()
    teacher = Teacher(vae)
    before = teacher.moments(images), teacher.last_features(images)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1)
    assert torch.equal(teacher.moments(images).mean, before[0].mean)
    assert torch.equal(teacher.last_features(images), before[1])
    moved = Moments.of(vae.encode(images).latent_dist.parameters)
    assert (moment_alignment(moved, teacher.moments(images)) > 0).all()
    assert not any(parameter.requires_grad for parameter in teacher.vae.parameters())


def test_both_encoders_of_the_teacher_are_one_set_of_weights():
    teacher = Teacher(deepen(small_vae()))
    images = pictures()
    before = teacher.moments(images, "strided").mean
    with torch.no_grad():
        teacher.vae.encoder.conv_in.weight.mul_(2)
    assert not torch.equal(teacher.moments(images, "strided").mean, before)
