"""What the U-Net families (Stable Diffusion 1, 2 and XL) do alike: a table of noise levels, blocks, targets."""

from abc import ABC
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.families.autoencoder import cell_pixels, latent_capabilities
from flowgrain.families.base import Capabilities
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.noise_table import NoiseTableFamily

UNET = "unet"
LINEAR_TARGETS = (
    *(f"*.transformer_blocks.*.{attention}.{layer}" for attention in ("attn1", "attn2") for layer in
      ("to_q", "to_k", "to_v", "to_out.0")),
    "*.transformer_blocks.*.ff.net.0.proj",
    "*.transformer_blocks.*.ff.net.2",
    "*.attentions.*.proj_in",
    "*.attentions.*.proj_out",
)  # fmt: skip
"""All linears of the transformers inside the U-Net: what kohya's LoRA adapts (Transformer2DModel)."""

RESNET_TARGETS = ("*.resnets.*.time_emb_proj", "*.resnets.*.conv_shortcut")
CONVOLUTION_TARGETS = ("*.resnets.*.conv1", "*.resnets.*.conv2", "*.downsamplers.*.conv", "*.upsamplers.*.conv")
"""What LoCon adds (ResnetBlock2D, Downsample2D, Upsample2D). The two of RESNET_TARGETS are linear or 1x1 and take
the linear rank, as in kohya's trainer."""

TEXT_TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
"""CLIPAttention and CLIPMLP."""

MID_BLOCK = "mid_block"


class UNetFamily(NoiseTableFamily, ABC):
    """A U-Net that predicts noise, v or x0 at a table of noise levels.

    Taps name blocks, such as ``up_blocks.1`` or ``mid_block``; a tap's value is the block's feature map as tokens,
    (b, rows x columns of the map, width).
    """

    backbone_name = UNET
    backbone_class = UNet2DConditionModel
    block_stacks: ClassVar = ("down_blocks", "up_blocks")
    backbone_targets: ClassVar = LINEAR_TARGETS

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`; sides are multiples of what the U-Net halves evenly."""
        unet, vae = configs["unet"], configs["vae"]
        side = unet["sample_size"]
        native = cell_pixels(vae) * (side if isinstance(side, int) else max(side))
        return latent_capabilities(vae, "classifier_free", 2 ** (len(unet["block_out_channels"]) - 1), native)

    def blocks(self) -> list[nn.Module]:
        """See :meth:`Family.blocks`: down, middle, up."""
        unet = self._backbone
        return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`."""
        if component in self.text_encoder_names:
            return list(TEXT_TARGETS)
        return super().adapter_targets(component)

    def convolution_targets(self, component: str) -> list[str]:
        """See :meth:`Family.convolution_targets`."""
        if component in self.text_encoder_names:
            return super().convolution_targets(component)
        self._require_backbone(component)
        return [*RESNET_TARGETS, *CONVOLUTION_TARGETS]

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return self._backbone(
            latents,
            self._steps(times),
            encoder_hidden_states=tensors["prompt_embeds"],
            **self._backbone_arguments(tensors, latents),
            return_dict=False,
        )[0]

    def _backbone_arguments(self, tensors: dict[str, Tensor], latents: Tensor) -> dict[str, Any]:
        """What the U-Net reads beside noised latents, step and text; nothing by default."""
        return {}

    def _tapped(self, output: Any) -> Tensor:
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden.flatten(2).transpose(1, 2)

    def _image_tokens(self, tapped: Tensor, tokens: int) -> Tensor:
        return tapped  # a feature map, of its own size

    def _block(self, tap: str) -> nn.Module:
        if tap == MID_BLOCK:
            return self._backbone.mid_block
        stack, _, index = tap.partition(".")
        blocks = getattr(self._backbone, stack) if stack in self.block_stacks else []
        if not index.isdigit() or int(index) >= len(blocks):
            last = len(self._backbone.down_blocks) - 1
            raise ModelError(
                f"tap '{tap}' is no block of {self._source}; it has down_blocks.0 to down_blocks.{last}, {MID_BLOCK}, "
                f"up_blocks.0 to up_blocks.{last}"
            )
        return blocks[int(index)]

    def _check_parts(self) -> None:
        super()._check_parts()
        unet, vae = self._pipeline.unet.config, self._pipeline.vae.config
        self._check_channels(vae.latent_channels)
        if unet.time_cond_proj_dim is not None:
            raise ModelError(
                f"{self._source}: the U-Net takes the guidance scale as an input (a latent consistency model), which "
                "is not supported; train on the model that it was distilled from"
            )
        width = sum(getattr(self._pipeline, name).config.hidden_size for name in self.text_encoder_names)
        read = unet.cross_attention_dim
        if {width} != ({read} if isinstance(read, int) else set(read)):
            raise ModelError(
                f"{self._source}: the U-Net reads text of width {read}, {' and '.join(self.text_encoder_names)} give "
                f"{width}; these parts are of different models, give a complete diffusers folder"
            )
