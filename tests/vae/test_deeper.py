"""Deeper compression by stride: sizes, the exact pieces, the released shift, and what stays untouched."""

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from small_autoencoders import pictures, small_vae
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import flowgrain
from flowgrain.errors import ConfigError
from flowgrain.vae.deeper import (
    Depth,
    cell_pixels,
    deepen,
    depth_of,
    set_parts,
    shallow_copy,
    upsampled_convolution,
)


def convolution(seed, channels=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, channels, 3, 3, generator=generator, dtype=dtype)
    return weight, torch.randn(3, generator=generator, dtype=dtype)


def features(seed, height, width, channels=5, dtype=torch.float32):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def as_released(h, weight, bias):
    """2 x 2 pieces of an even map as Diffusion-4K's code cuts them: zeros at the picture's border, crop from 1."""
    half = (h.shape[2] // 2, h.shape[3] // 2)
    padded = functional.pad(h, (1, 1, 1, 1))
    rows = []
    for top in (0, half[0]):
        row = []
        for left in (0, half[1]):
            piece = padded[:, :, top : top + half[0] + 2, left : left + half[1] + 2]
            piece = functional.conv2d(functional.interpolate(piece, scale_factor=2), weight, bias, padding=1)
            row.append(piece[:, :, 1 : 1 + 2 * half[0], 1 : 1 + 2 * half[1]])
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)


@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    factor=st.sampled_from([1, 2, 4]),
    parts=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_pieces_are_the_whole_map_to_the_last_bit(height, width, factor, parts, seed):
    # whole numbers: sums are exact in any order, so the equality does not hang on how a library blocks its loops
    parts = min(parts, height, width)
    h, weight, bias = features(seed, height, width).round(), *(one.round() for one in convolution(seed))
    whole = functional.conv2d(h.repeat_interleave(factor, 2).repeat_interleave(factor, 3), weight, bias, padding=1)
    assert torch.equal(upsampled_convolution(h, weight, bias, factor, parts), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_of_arbitrary_weights(dtype):
    h, (weight, bias) = features(0, 16, 24, dtype=dtype), convolution(1, dtype=dtype)
    whole = upsampled_convolution(h, weight, bias, 2)
    for parts in (2, 4):
        assert (upsampled_convolution(h, weight, bias, 2, parts) - whole).abs().max() == 0


def test_released_shift():
    h, (weight, bias) = features(0, 8, 12, dtype=torch.float64), convolution(1, dtype=torch.float64)
    full = upsampled_convolution(h, weight, bias, 2)
    for parts in (1, 2, 3):
        shifted = upsampled_convolution(h, weight, bias, 2, parts, legacy_shift=True)
        assert torch.equal(shifted[:, :, 1:, 1:], full[:, :, :-1, :-1])
        assert torch.equal(shifted, as_released(h, weight, bias))
    # the first row and column see zeros around the map: only the kernel's last row and column meet it
    expected = bias[0] + (weight[0, :, 2, 2] * h[0, :, 0, 0]).sum()
    assert shifted[0, 0, 0, 0].item() == pytest.approx(expected.item())


def test_parts_that_do_not_fit():
    h, (weight, bias) = features(0, 4, 4), convolution(0)
    for parts in (0, 5):
        with pytest.raises(ValueError, match="parts a side of a map of 4x4"):
            upsampled_convolution(h, weight, bias, 2, parts)


@pytest.mark.parametrize("doublings", [0, 1, 2])
def test_sizes(doublings):
    vae, factor = deepen(small_vae(), doublings), 2**doublings
    images = pictures(1, side=16, width=24)
    mean = vae.encode(images).latent_dist.mean
    assert mean.shape[2:] == (8 // factor, 12 // factor)
    assert vae.decode(mean).sample.shape == images.shape
    assert cell_pixels(vae) == 2 * factor
    assert depth_of(vae) == Depth(doublings)


def test_the_stride_takes_every_second_pixel_of_the_first_convolution():
    vae = small_vae()
    images = pictures()
    before = vae.encoder.conv_in(images)
    deepen(vae)
    assert torch.allclose(vae.encoder.conv_in(images), before[:, :, ::2, ::2], rtol=1e-5, atol=1e-6)


def test_output_is_the_shallow_decoder_upsampled_before_its_last_convolution():
    vae = small_vae()
    latents = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    found = []
    handle = vae.decoder.conv_out.register_forward_pre_hook(lambda _layer, inputs: found.append(inputs[0]))
    vae.decode(latents)
    handle.remove()
    last = vae.decoder.conv_out
    expected = functional.conv2d(functional.interpolate(found[0], scale_factor=2), last.weight, last.bias, padding=1)
    assert torch.equal(deepen(vae).decode(latents).sample, expected)


def test_parameters_keep_names_and_identity():
    vae = small_vae()
    before = dict(vae.named_parameters())
    deepen(vae)
    after = dict(vae.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    vae.decode(torch.zeros(1, 4, 2, 2)).sample.sum().backward()
    assert vae.decoder.conv_out.weight.grad is not None


def test_parts_change_memory_alone():
    vae, latents = deepen(small_vae()), torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents).sample
    set_parts(vae, 4)
    assert torch.allclose(vae.decode(latents).sample, whole, rtol=1e-6, atol=1e-7)
    with pytest.raises(ConfigError, match="0 parts"):
        set_parts(vae, 0)
    with pytest.raises(ConfigError, match="of a deeper autoencoder"):
        set_parts(small_vae(), 2)


def test_pieces_hold_a_fraction_of_the_largest_map():
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.numel())
            return result

    h, (weight, bias), sizes = features(0, 32, 32, channels=64), convolution(0, channels=64), []
    for parts in (1, 4):
        with Largest() as largest, torch.no_grad():
            upsampled_convolution(h, weight, bias, 2, parts)
        sizes.append(largest.size)
    assert sizes[0] == 2 * 64 * 64 * 64
    # a piece of 8 x 8 with its border is 10 x 10, a tenth of the whole; the bordered small map is larger still
    assert sizes[1] == 2 * 64 * 34 * 34


def test_shallow_copy_is_the_model_before():
    vae, images = small_vae(), pictures(side=16)
    expected = vae(images).sample
    copied = shallow_copy(deepen(vae))
    assert torch.equal(copied(images).sample, expected)
    assert depth_of(vae).doublings == 1
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
    assert torch.equal(copied(images).sample, expected)


def test_tiles_keep_their_size_in_pixels():
    vae = deepen(small_vae())
    vae.enable_tiling()
    images = pictures(1, side=48)  # tiles are 32 pixels, 8 latents
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        assert latents.shape[2:] == (12, 12)
        assert vae.decode(latents).sample.shape == images.shape
    assert shallow_copy(vae).tile_latent_min_size == 16


def test_mistakes():
    with pytest.raises(ConfigError, match="1 doublings already"):
        deepen(deepen(small_vae()))
    for doublings, shift in ((-1, False), (2, True), (0, True)):
        with pytest.raises(ConfigError, match="doublings; take 0 or more, and 1 with legacy_shift"):
            deepen(small_vae(), doublings, legacy_shift=shift)


def test_the_embedded_autoencoder():
    from pathlib import Path

    folder = Path(flowgrain.__file__).parent / "assets/tiny-flux/vae"
    vae = deepen(AutoencoderKL.from_pretrained(folder))
    images = pictures(1, side=64)
    with torch.no_grad():
        mean = vae.encode(images).latent_dist.mean
        assert mean.shape == (1, 16, 4, 4)
        assert vae.decode(mean).sample.shape == images.shape
    assert cell_pixels(vae) == 16
