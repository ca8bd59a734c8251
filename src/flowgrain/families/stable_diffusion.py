"""Stable Diffusion 1.x and 2.x: a U-Net that reads one CLIP text encoder's last layer, and nothing else.

The two generations differ in configuration alone: 2.x projects with linear layers, has heads of one width and, at
768 pixels, predicts v (Salimans and Ho 2022). The safety checker, which reads finished pictures, is left out.
"""

from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline
from torch import Tensor

from flowgrain.families.unet import UNetFamily


class StableDiffusion(UNetFamily):
    """A StableDiffusionPipeline, frozen, behind the family contract."""

    name = "stable-diffusion"
    pipeline_class = StableDiffusionPipeline
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = ("prompt_embeds",)
    left_out: ClassVar = ("safety_checker", "feature_extractor", "image_encoder")

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """The text encoder's last layer after its norm."""
        prompt, _ = self._pipeline.encode_prompt(
            prompt=captions, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": prompt}

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"requires_safety_checker": False}
