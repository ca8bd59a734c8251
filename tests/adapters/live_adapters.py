"""What several tests do with an adapter in a small random U-Net model."""

import torch
from random_unet import random_sdxl

from flowgrain.adapters.base import AdapterConfig, TextEncoderAdapterConfig
from flowgrain.families.base import ConditionInputs

CAPTIONS = ["a red fox", "an apple on a table"]
EVERYTHING = {"rank": 2, "alpha": 3.0, "conv_rank": 3, "conv_alpha": 2.0}
TEXT = TextEncoderAdapterConfig(rank=3, alpha=4.0)


def everything(kind, **changes):
    """All that can be adapted at once: linear layers, convolutions and both text encoders."""
    return AdapterConfig(kind=kind, **{"text_encoders": TEXT, **EVERYTHING, **changes})


def inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([[0.8], [0.3]])


def output(family, grad=False):
    """The prediction for two captions, encoded anew, as the adapter in the model has them."""
    conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=grad))
    return family.predict(*inputs(), conditioning).prediction


def predict(family):
    with torch.no_grad():
        return output(family)


def disturb(adapter, seed=3):
    """Move an adapter away from its start, every layer of it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))


def sdxl(dtype=torch.float32):
    family = random_sdxl()
    for module in family.components().values():
        module.to(dtype)
    return family
