"""Stable Diffusion XL and its derivatives (Animagine, Pony, Illustrious, NoobAI): a U-Net told of sizes and crops.

The U-Net reads the layer before the last of both text encoders, the projection of the second one, and six numbers:
original size, top-left corner of the crop, target size (Podell et al. 2023, arXiv 2307.01952, section 2.2). A slice
gives its true geometry: its size in the source before any upscaling, where framing cut it, and its bucket. Without
geometry the numbers are the pipeline's default: the size of the picture, not cropped.
"""

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.unet import UNetFamily


class StableDiffusionXL(UNetFamily):
    """A StableDiffusionXLPipeline, frozen, behind the family contract."""

    name = "sdxl"
    pipeline_class = StableDiffusionXLPipeline
    text_encoder_names: ClassVar = ("text_encoder", "text_encoder_2")
    tokenizer_names: ClassVar = ("tokenizer", "tokenizer_2")
    text_tensors: ClassVar = ("prompt_embeds", "pooled_prompt_embeds")
    left_out: ClassVar = ("image_encoder", "feature_extractor")

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`; the first text encoder's last layer is not read, so it cannot learn."""
        targets = super().adapter_targets(component)
        if component != "text_encoder":
            return targets
        read = self._pipeline.text_encoder.config.num_hidden_layers - 1
        return [f"encoder.layers.{layer}.{target}" for layer in range(read) for target in targets]

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """Both encoders' layer before the last, side by side, and the second one's projection."""
        prompt, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=captions, prompt_2=captions, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}

    def _extra_conditioning(self, inputs: ConditionInputs, rows: int) -> dict[str, Tensor]:
        """(original height, width, crop top, left, target height, width) of each row, where they are given."""
        geometry = inputs.geometry
        if geometry is None:
            return {}
        ids = torch.cat([geometry.original, geometry.crop, geometry.target], dim=1)
        return {"time_ids": ids.to(self.device, self._backbone.dtype)}

    def _backbone_arguments(self, tensors: dict[str, Tensor], latents: Tensor) -> dict[str, Any]:
        ids = tensors.get("time_ids")
        if ids is None:
            height, width = (float(self.capabilities.latent_scale * side) for side in latents.shape[-2:])
            row = torch.tensor([[height, width, 0.0, 0.0, height, width]])
            ids = row.expand(len(latents), 6).to(self.device, self._backbone.dtype)
        return {"added_cond_kwargs": {"text_embeds": tensors["pooled_prompt_embeds"], "time_ids": ids}}

    def _check_parts(self) -> None:
        super()._check_parts()
        unet, projected = self._pipeline.unet.config, self._pipeline.text_encoder_2.config.projection_dim
        read = unet.projection_class_embeddings_input_dim
        if unet.addition_embed_type != "text_time" or read != projected + 6 * unet.addition_time_embed_dim:
            raise ModelError(
                f"{self._source}: the U-Net reads {read} numbers beside the text (addition_embed_type "
                f"'{unet.addition_embed_type}'), not the {projected} of text_encoder_2 and six sizes of "
                f"{unet.addition_time_embed_dim}; only SDXL base models are supported (no refiner)"
            )

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Some derivatives give a mean and a deviation of each channel, which the pipeline undoes too."""
        statistics = self._channel_statistics()
        if statistics is None:
            return super()._normalised(raw)
        mean, std = statistics
        return (raw - mean.to(raw)) * self._vae.config.scaling_factor / std.to(raw)

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        statistics = self._channel_statistics()
        if statistics is None:
            return super()._denormalised(latents)
        mean, std = statistics
        return latents * std.to(latents) / self._vae.config.scaling_factor + mean.to(latents)

    def _channel_statistics(self) -> tuple[Tensor, Tensor] | None:
        config = self._vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return None
        return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)

    def _pipeline_settings(self) -> dict[str, Any]:
        return {
            "force_zeros_for_empty_prompt": self._pipeline.config.force_zeros_for_empty_prompt,
            "add_watermarker": False,
        }
