"""Exact tiles give the whole pass; blended ones (diffusers' own) do not; cache keys and pipelines know it."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flux import random_flux

from flowgrain.errors import ModelError
from flowgrain.families import tiled_autoencoder
from flowgrain.families.autoencoder import encoding_of, pass_bytes, set_tiling
from flowgrain.families.tiled_autoencoder import TiledDecoder, TiledEncoder, decoder_layers, encoder_layers, whole_bytes


def autoencoder(stride: int = 1, dtype: torch.dtype = torch.float64, attention: bool = True) -> AutoencoderKL:
    """Three resolutions, GroupNorms of several groups with weights of their own, attention in the middle."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8), layers_per_block=2, latent_channels=2, norm_num_groups=2, sample_size=32,
        mid_block_add_attention=attention,
    ).eval()  # fmt: skip
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    vae.encoder.conv_in.stride = (stride, stride)
    return vae.to(dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 12 cells, and no map within a resolution held whole."""
    monkeypatch.setattr(tiled_autoencoder, "TILE", 12)
    monkeypatch.setattr(tiled_autoencoder, "WHOLE_MAP", 0)


def passes(vae: AutoencoderKL, pixels: torch.Tensor, latents: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        return [posterior.mean, posterior.logvar, vae.decode(latents).sample]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("held", [0, 2**13, 2**30])
@pytest.mark.parametrize(("height", "width"), [(64, 40), (24, 88), (8, 16)])
def test_exact_tiles_are_the_whole_pass(monkeypatch, small_tiles, stride, held, height, width):
    """In float64 to 1e-11, whatever is held whole: norms of the whole map, attention, zeros at the edges alone."""
    monkeypatch.setattr(tiled_autoencoder, "WHOLE_MAP", held)
    vae = autoencoder(stride)
    pixels = torch.rand(2, 3, height * stride, width * stride, dtype=torch.float64) * 2 - 1
    latents = torch.randn(2, 2, height // 4, width // 4, dtype=torch.float64)
    set_tiling(vae, "off", "test")
    whole = passes(vae, pixels, latents)
    set_tiling(vae, "exact", "test")
    for tiled, one in zip(passes(vae, pixels, latents), whole, strict=True):
        torch.testing.assert_close(tiled, one, rtol=1e-10, atol=1e-11 * float(one.abs().max()))


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), tile=st.integers(3, 40), held=st.sampled_from([0, 2000, 10**6])
)
def test_any_size_and_tile(rows, columns, tile, held):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_autoencoder, "TILE", tile)
        patch.setattr(tiled_autoencoder, "WHOLE_MAP", held)
        vae = autoencoder(attention=False)
        pixels = torch.rand(1, 3, 4 * rows, 4 * columns, dtype=torch.float64)
        latents = torch.randn(1, 2, rows, columns, dtype=torch.float64)
        set_tiling(vae, "off", "test")
        whole = passes(vae, pixels, latents)
        set_tiling(vae, "exact", "test")
        for tiled, one in zip(passes(vae, pixels, latents), whole, strict=True):
            torch.testing.assert_close(tiled, one, rtol=1e-9, atol=1e-10 * float(one.abs().max()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_rounding_in_other_dtypes(small_tiles, dtype, bound):
    """Relative to the largest value; bfloat16 keeps its norms' statistics in float32, as torch does."""
    vae = autoencoder(dtype=dtype)
    pixels, latents = torch.rand(1, 3, 64, 64, dtype=dtype), torch.randn(1, 2, 16, 16, dtype=dtype)
    set_tiling(vae, "off", "test")
    whole = passes(vae, pixels, latents)
    set_tiling(vae, "exact", "test")
    for tiled, one in zip(passes(vae, pixels, latents), whole, strict=True):
        assert tiled.dtype == dtype
        assert float((tiled - one).abs().max() / one.abs().max()) < bound


def test_blended_tiles_are_another_picture(small_tiles):
    """diffusers' tiles have norms of their own: far beyond rounding, so never chosen by themselves."""
    vae = autoencoder()
    pixels = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    pixels[..., :32] *= 0.1  # halves of other contrast: other statistics
    latents = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    set_tiling(vae, "off", "test")
    whole = passes(vae, pixels, latents)
    set_tiling(vae, "blended", "test")
    for tiled, one in zip(passes(vae, pixels, latents), whole, strict=True):
        assert float((tiled - one).norm() / one.norm()) > 1e-3
    set_tiling(vae, "off", "test")
    assert all(torch.equal(a, b) for a, b in zip(passes(vae, pixels, latents), whole, strict=True))


def test_parameters_keep_their_names_and_gradients_run_whole(small_tiles):
    vae = autoencoder()
    before = {name: id(parameter) for name, parameter in vae.named_parameters()}
    names = list(vae.state_dict())
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    with torch.enable_grad():
        plain = vae.encode(pixels).latent_dist.mean
        set_tiling(vae, "exact", "test")
        whole = vae.encode(pixels).latent_dist.mean
    assert torch.equal(plain, whole) and whole.requires_grad
    assert {name: id(parameter) for name, parameter in vae.named_parameters()} == before
    assert list(vae.state_dict()) == names
    set_tiling(vae, "auto", "test")  # a second time: the same parameters still
    assert list(vae.state_dict()) == names
    assert isinstance(vae.encoder, TiledEncoder) and isinstance(vae.decoder, TiledDecoder)


def test_auto_tiles_above_its_limit_alone(monkeypatch):
    vae = autoencoder()
    set_tiling(vae, "auto", "test")
    small, large = (1, 3, 32, 32), (1, 3, 64, 64)
    monkeypatch.setattr(vae.encoder, "most", whole_bytes(encoder_layers(vae.encoder), small, 8))
    assert not vae.encoder.tiles(small, 8) and vae.encoder.tiles(large, 8)
    assert encoding_of(vae, 32, 32) == "" and "exact" in encoding_of(vae, 64, 64)


def test_several_pictures_pass_one_by_one(monkeypatch, small_tiles):
    """Where they are too much together: each as it passes alone, whole or in tiles."""
    vae = autoencoder()
    latents = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    set_tiling(vae, "auto", "test")
    alone = whole_bytes(decoder_layers(vae.decoder), (1, 2, 16, 16), 8)
    with torch.no_grad():
        for most in (alone, 0):
            monkeypatch.setattr(vae.decoder, "most", most)
            rows = [vae.decode(row).sample for row in latents.split(1)]
            assert torch.equal(vae.decode(latents).sample, torch.cat(rows))


def test_what_a_flux_autoencoder_takes_at_4096():
    """The shapes alone: 128 channels of 4096 x 4096 in float32 are 8 GiB, 256 before the decoder's last block 16."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, norm_num_groups=32,
            sample_size=1024, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    set_tiling(vae, "off", "flux")
    whole = pass_bytes(vae, 4096, 4096, 8)
    set_tiling(vae, "auto", "flux")
    tiled, small = pass_bytes(vae, 4096, 4096, 8), pass_bytes(vae, 1024, 1024, 8)
    assert whole is not None and tiled is not None and small is not None
    gib = 2**30
    assert (whole.encode, whole.decode) == (4 * 8 * gib, 4 * 16 * gib)
    assert tiled.encodes_in_tiles and tiled.decodes_in_tiles
    assert not small.encodes_in_tiles and not small.decodes_in_tiles
    # the maps on both sides of a resolution: 2 + 1 GiB of the encoder, 4 + 2 of the decoder, and tiles
    assert 3 * gib < tiled.encode < 4 * gib and 6 * gib < tiled.decode < 7 * gib


def test_groups_end_between_resolutions_and_never_inside_a_residual(monkeypatch):
    monkeypatch.setattr(tiled_autoencoder, "WHOLE_MAP", 0)
    vae = autoencoder()
    groups = list(tiled_autoencoder._groups(decoder_layers(vae.decoder), (1, 8, 16, 16), 4))
    assert [len(group) for group in groups] == [6, 7, 8]  # 3 blocks of 2; upsampling first, then 6; and the last
    assert all(not group[-1].keeps for group in groups)
    held = list(tiled_autoencoder._groups(encoder_layers(vae.encoder), (1, 3, 64, 64), 4))
    assert [len(group) for group in held] == [6, 5, 4]
    assert held[0][-1].corner


def test_other_blocks(monkeypatch):
    """Stays whole where nothing is asked for; 'exact' says what to do."""
    vae = autoencoder()
    vae.decoder.conv_out = torch.nn.Conv2d(4, 3, 1).double()
    encoder = type(vae.encoder)
    set_tiling(vae, "auto", "folder")
    assert type(vae.encoder) is encoder and encoding_of(vae, 64, 64) == ""
    assert pass_bytes(vae, 64, 64, 4) is None
    with pytest.raises(ModelError, match=r"folder: memory.vae_tiling 'exact'.*AutoencoderKL; use blended or off"):
        set_tiling(vae, "exact", "folder")
    set_tiling(vae, "blended", "folder")
    assert "blended" in encoding_of(vae, 64, 64)


def test_flux2s_autoencoder_is_known():
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
    ).eval()  # fmt: skip
    set_tiling(vae, "exact", "flux2")
    assert isinstance(vae.encoder, TiledEncoder)


def test_family_and_its_pipeline_decode_in_the_same_tiles(small_tiles):
    """The pipeline that samples shares the autoencoder; a cache key says how a picture was encoded."""
    family = random_flux()
    vae = family.encoders()["vae"]
    assert isinstance(vae.decoder, TiledDecoder) and vae.decoder.most == tiled_autoencoder.WHOLE_PASS
    assert family.encoding_of(64, 64) == ""
    latents = torch.randn(1, 4, 32, 32)
    whole = family.decode(latents)
    fingerprint = family.fingerprint()
    set_tiling(vae, "exact", "random")
    tiled = family.decode(latents)
    assert not torch.equal(tiled, whole) and float((tiled - whole).abs().max()) < 1e-4
    assert "exact tiles" in family.encoding_of(64, 64)
    family._fingerprint = None
    assert family.fingerprint() == fingerprint  # weights alone: the key has the tiles beside it
    pipeline = family.pipeline()
    assert pipeline.vae is vae
    family.offload_encoders()  # accelerate's hooks stay in force around the exchanged parts
    assert torch.equal(family.decode(latents), tiled)
