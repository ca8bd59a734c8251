"""PixArt-alpha and PixArt-sigma: a diffusion transformer that predicts noise and reads T5 by cross-attention.

The transformer gives twice the latent's channels: the noise, and an interpolation of the reverse process's variance
(learned sigma, Nichol and Dhariwal 2021). The pipelines draw with the first half alone; the family gives
that half, and the variance is not trained. The 1024-pixel PixArt-alpha is told a resolution and an aspect ratio, at
sampling those of the picture. In training they are the slice's true ones, as in PixArt's own: its size in the source
before any upscaling, and the aspect ratio of its bucket.

Captions are lower-cased and stripped, which is the pipeline's preprocessing without ``clean_caption``. Cleaning (URLs
and HTML taken out, with beautifulsoup4 and ftfy) stays off in training and sampling alike, and so does
``use_resolution_binning``, which would draw another size than asked.

diffusers has no LoRA loader for these pipelines: :meth:`PixArt.pipeline` puts an adapter's layers into the transformer
through peft (:func:`flowgrain.families.loading.load_adapter`). Outside flowgrain a PixArt pipeline cannot load the
adapter file itself; merge it for that.
"""

from abc import ABC
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor

from flowgrain.families.autoencoder import cell_pixels, latent_capabilities
from flowgrain.families.base import Capabilities, ConditionInputs
from flowgrain.families.block_layers import in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.noise_table import NoiseTableFamily

ADAPTER_TARGETS = (
    # within the image, to the text
    *in_blocks("transformer_blocks", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *in_blocks("transformer_blocks", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    *in_blocks("transformer_blocks", "ff.net.0.proj", "ff.net.2"),
)
"""All attention and MLP linears of the blocks. Modulation (adaLN) layers, embedders and the final projection stay
untouched."""

MICRO_CONDITIONED_CELLS = 128
"""PixArtAlphaPipeline tells resolution and aspect ratio to models of this ``sample_size``, 1024 pixels, alone."""


class PixArt(NoiseTableFamily, ABC):
    """A PixArt pipeline, frozen, behind the family contract."""

    backbone_name = "transformer"
    backbone_class = PixArtTransformer2DModel
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = ("prompt_embeds", "prompt_attention_mask")
    block_stacks: ClassVar = ("transformer_blocks",)
    backbone_targets: ClassVar = ADAPTER_TARGETS
    max_text_tokens: ClassVar[int]
    """The pipeline's default."""

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, self.max_text_tokens)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        transformer, vae = configs["transformer"], configs["vae"]
        native = cell_pixels(vae) * transformer["sample_size"]
        return latent_capabilities(vae, "classifier_free", transformer["patch_size"], native)

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output = self._backbone(
            latents,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["prompt_attention_mask"],
            timestep=self._steps(times),
            added_cond_kwargs=self._size_conditions(latents, tensors),
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {
            "max_sequence_length": self.max_sequence_length,
            "clean_caption": False,
            "use_resolution_binning": False,
        }

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """T5 states and which of them are the caption's (1) or padding (0)."""
        if self.device.type == "meta":  # a skeleton: transformers looks at the values of masks
            mask = torch.ones(len(captions), self.max_sequence_length, dtype=torch.int64, device=self.device)
            width, dtype = self._pipeline.text_encoder.config.d_model, self._pipeline.text_encoder.dtype
            return {"prompt_embeds": mask.new_empty(*mask.shape, width, dtype=dtype), "prompt_attention_mask": mask}
        prompt, mask, _, _ = self._pipeline.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": prompt, "prompt_attention_mask": mask}

    def _text_length(self) -> int:
        return self.max_sequence_length

    def _size_conditions(self, latents: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """``added_cond_kwargs`` of the transformer; none by default."""
        return {"resolution": None, "aspect_ratio": None}

    def _check_parts(self) -> None:
        super()._check_parts()
        self._check_channels(self._pipeline.vae.config.latent_channels)


class PixArtAlpha(PixArt):
    """A PixArtAlphaPipeline: the autoencoder of Stable Diffusion 1, 120 T5 tokens, size conditions at 1024 pixels."""

    name = "pixart-alpha"
    pipeline_class = PixArtAlphaPipeline
    max_text_tokens = 120

    def _extra_conditioning(self, inputs: ConditionInputs, rows: int) -> dict[str, Tensor]:
        """Resolution (height, width) and aspect ratio (height / width) of each row, where geometry gives them."""
        geometry = inputs.geometry
        if geometry is None or self._backbone.config.sample_size != MICRO_CONDITIONED_CELLS:
            return {}
        ratio = geometry.target[:, :1] / geometry.target[:, 1:]
        return {"resolution": self._placed(geometry.original), "aspect_ratio": self._placed(ratio)}

    def _size_conditions(self, latents: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Those of the conditioning; without any those of the picture itself, as in the pipeline."""
        if self._backbone.config.sample_size != MICRO_CONDITIONED_CELLS:
            return super()._size_conditions(latents, tensors)
        if "resolution" in tensors:
            return {name: tensors[name] for name in ("resolution", "aspect_ratio")}
        rows, scale = len(latents), self.capabilities.latent_scale
        height, width = (scale * side for side in latents.shape[-2:])
        resolution, ratio = torch.tensor([[height, width]]), torch.tensor([[height / width]])
        return {
            "resolution": self._placed(resolution.float()).repeat(rows, 1),
            "aspect_ratio": self._placed(ratio).repeat(rows, 1),
        }


class PixArtSigma(PixArt):
    """A PixArtSigmaPipeline: the autoencoder of SDXL, 300 T5 tokens, up to 2048 pixels, no size conditions."""

    name = "pixart-sigma"
    pipeline_class = PixArtSigmaPipeline
    max_text_tokens = 300
