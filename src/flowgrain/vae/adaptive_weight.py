"""Weights of loss terms from gradients at a last layer (Esser et al. 2021, arXiv 2012.09841, Eq. 7).

    w = clamp(|grad_L native| / (|grad_L term| + delta), 0, maximum)        rule ``sum``
    w = clamp(|grad_L native| / max(|grad_L term|, delta), 0, maximum)      rule ``floor``

L is the last layer of the decoder for the adversarial term, of the encoder for the Gram term (Spatial Gram Alignment,
arXiv 2605.20808, Eqs. 6 and 7; rule and bounds are not printed there). Either way |w grad_L term| <= |grad_L native|:
a term of weight lambda moves the last layer by at most lambda times what the native loss does, also right after its
start.

What holds where the ratio says nothing:

1. A term without gradient at the layer (none flows, or all of it is zero) has weight 0, not ``maximum``: where the
   term depends on parameters beyond the layer, the ratio would blow that part up.
2. A native loss without gradient gives weight 0, as the formula does.
3. A gradient that is not finite gives weight 0: the weight itself is always finite and at least 0. The term's own value
   or gradient stays what it is, and the training loop stops at it.
4. Norms and weight are float32 whatever dtype the gradients have, also under autocast, and do not overflow: gradients
   are divided by their largest entry first. The weight has no gradient.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from flowgrain.config import Config

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Numerator = Literal["native", "reconstruction", "perceptual", "reconstruction_perceptual"]
Combine = Callable[[Tensor], Tensor]
"""Mean of a gradient over processes."""


class AdaptiveWeight(Config):
    """How a term's weight follows from gradients."""

    numerator: Numerator = Field(
        default="native",
        description="whose gradient is the measure: of all that the term joins (native), of the pixel error, of the "
        "perceptual distance (SC-VAE), or of both with its weight (latent diffusion, VA-VAE)",
    )
    rule: Literal["sum", "floor"] = Field(default="sum", description="the term's norm plus delta, or delta at least")
    delta: float = Field(default=1e-4, gt=0, description="keeps the denominator from zero")
    maximum: float = Field(default=1e4, gt=0, description="upper bound of the weight")


def encoder_last_layer(vae: "AutoencoderKL") -> nn.Parameter:
    """The weight that the encoder's moments leave last: of ``quant_conv`` where the model has one."""
    last: Any = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    return last.weight


def decoder_last_layer(vae: "AutoencoderKL") -> nn.Parameter:
    """The weight of the decoder's last convolution."""
    last: Any = vae.decoder.conv_out
    return last.weight


def layer_gradient(value: Float[Tensor, ""], layer: nn.Parameter) -> Tensor:
    """d value / d layer in float32, zero where nothing flows; the graph stays for the backward pass.

    ``layer.grad`` is not touched.
    """
    found = None
    if value.requires_grad and layer.requires_grad:
        (found,) = torch.autograd.grad(value, layer, retain_graph=True, allow_unused=True)
    return torch.zeros_like(layer, dtype=torch.float32) if found is None else found.detach().float()


def gradient_norm(value: Float[Tensor, ""], layer: nn.Parameter, combine: Combine | None = None) -> Float[Tensor, ""]:
    """|d value / d layer| in float32. ``combine`` averages the gradient over processes before the norm is taken."""
    gradient = layer_gradient(value, layer)
    if combine is not None:
        gradient = combine(gradient)
    return scaled_norm(gradient)


def scaled_norm(gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The norm of a float32 gradient, without overflow."""
    largest = gradient.abs().max()
    return largest * torch.linalg.vector_norm(gradient / largest.clamp(min=torch.finfo(torch.float32).tiny))


def adaptive_weight(
    native: Float[Tensor, ""],
    term: Float[Tensor, ""],
    layer: nn.Parameter,
    config: AdaptiveWeight,
    combine: Combine | None = None,
) -> Float[Tensor, ""]:
    """w of a term, in [0, maximum], float32, without gradient.

    ``native`` and ``term`` are means over the micro-batch. With ``combine`` all processes take the same weight.
    """
    norms = gradient_norm(native, layer, combine), gradient_norm(term, layer, combine)
    return weight_from_norms(*norms, config)


def weight_from_norms(native: Float[Tensor, ""], term: Float[Tensor, ""], config: AdaptiveWeight) -> Float[Tensor, ""]:
    """w from the two gradient norms, by the rules of the module."""
    bounded = term + config.delta if config.rule == "sum" else term.clamp(min=config.delta)
    ratio = (native / bounded).clamp(0, config.maximum)
    usable = native.isfinite() & term.isfinite() & (term > 0)
    return torch.where(usable, ratio, 0).float().detach()
