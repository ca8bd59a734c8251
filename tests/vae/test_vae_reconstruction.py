"""Pixel errors by hand, and what the clamp does to gradients."""

import pytest
import torch

from flowgrain.vae.reconstruction import reconstruction_error


def test_errors_by_hand():
    images = torch.zeros(2, 1, 1, 2)
    output = torch.tensor([[[[0.5, -0.5]]], [[[3.0, 0.0]]]])
    assert reconstruction_error(output, images, "l1").tolist() == [0.5, 1.5]
    assert reconstruction_error(output, images, "l2").tolist() == [0.25, 4.5]
    assert reconstruction_error(output, images, "l1", clamp=True).tolist() == [0.5, 0.5]
    assert reconstruction_error(output, images, "l2", clamp=True).tolist() == [0.25, 0.5]


def test_outside_of_the_range_the_clamp_has_no_gradient():
    output = torch.tensor([[[[0.5, 3.0]]]], requires_grad=True)
    reconstruction_error(output, torch.zeros(1, 1, 1, 2), "l2", clamp=True).sum().backward()
    assert output.grad.flatten().tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_precision(dtype, expected):
    images = torch.zeros(1, 3, 4, 4, dtype=dtype)
    assert reconstruction_error(images, images).dtype == expected
