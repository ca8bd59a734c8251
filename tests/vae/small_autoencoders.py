"""Random AutoencoderKL models of a few thousand weights, images and noise for them."""

import torch
from diffusers import AutoencoderKL


def small_vae(seed=0, blocks=(8, 16), layers=1, quant=False, latent_channels=4, attention=False):
    """f2 with two blocks; weights larger than diffusers' own, so that pictures and latents vary."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(blocks),
            up_block_types=("UpDecoderBlock2D",) * len(blocks),
            block_out_channels=blocks,
            layers_per_block=layers,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=32,
            mid_block_add_attention=attention,
            use_quant_conv=quant,
            use_post_quant_conv=quant,
        )
        for parameter in vae.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return vae.eval()


def pictures(count=2, side=16, seed=1, width=None):
    """Smooth and rough pictures in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, width or side, generator=generator) * 2 - 1


def noise_for(vae, images, seed=2):
    with torch.no_grad():
        shape = vae.encode(images).latent_dist.mean.shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
