"""The frozen pre-trained autoencoder that moments and last features are held against.

Moments of an image on the student's grid, two readings of Spatial Gram Alignment (arXiv 2605.20808), section 3.3:
``strided`` (A), the pre-trained encoder with the student's stride, from which the student starts, so that the loss
starts at exactly 0; ``downsampled`` (B), the pre-trained encoder as it is on the image made smaller by cell means.
"""

import copy
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowgrain.vae.deeper import depth_of, shallow_copy
from flowgrain.vae.moments import Moments
from flowgrain.vae.scale_consistency import PooledFeatures, captured_input

TeacherForm = Literal["strided", "downsampled"]


class Teacher:
    """A frozen copy of the pre-trained autoencoder; its two encoders share their weights."""

    def __init__(self, vae: AutoencoderKL):
        """``vae``: the student as it starts, deepened or not; trained weights are no teacher."""
        self.factor = depth_of(vae).factor
        self.vae = shallow_copy(vae).eval().requires_grad_(False)
        self.vae.disable_tiling()
        self.vae.disable_slicing()
        encoder = self.vae.encoder
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
        self._strided = copy.deepcopy(encoder, shared)
        self._strided.conv_in.stride = (self.factor, self.factor)

    def to(self, device: torch.device) -> "Teacher":
        """Itself, on another device; shared weights move once."""
        nn.Module.to(self.vae, device)
        self._strided.to(device)
        return self

    @torch.no_grad()
    def moments(self, images: Float[Tensor, "b c h w"], form: TeacherForm = "strided") -> Moments:
        """mu_0 and log sigma_0^2 on the student's grid."""
        vae: Any = self.vae
        if form == "strided":
            parameters = self._strided(images)
        else:
            parameters = vae.encoder(functional.avg_pool2d(images, self.factor) if self.factor > 1 else images)
        return Moments.of(parameters if vae.quant_conv is None else vae.quant_conv(parameters))

    @torch.no_grad()
    def last_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """h_t: the input of the last convolution on the way through the shallow model, by the posterior's mean.

        The released SC-VAE code samples the teacher's latent; the mean has less noise and the same place.
        """
        vae: Any = self.vae
        with captured_input(vae.decoder.conv_out) as found:
            vae.decode(vae.encode(images).latent_dist.mode())
        return found.one()

    def pooled_features(self, images: Float[Tensor, "b c h w"]) -> PooledFeatures:
        """What :func:`~flowgrain.vae.scale_consistency.pooled_scale_consistency` needs of h_t."""
        with torch.no_grad():
            return PooledFeatures.of(self.last_features(images), self.factor)
