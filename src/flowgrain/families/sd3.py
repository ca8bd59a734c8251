"""Stable Diffusion 3 and 3.5: rectified flow on a 16-channel latent, blocks of an image and a text stream (MM-DiT).

The text stream is two CLIP encoders' states side by side, padded with zeros to the width of T5, then T5's states; both
CLIP projections modulate the blocks. A folder may lack T5 (``text_encoder_3``, most of the model's memory): the
pipeline then gives zeros for its states, in training as in sampling. SD3.5-medium attends a second time within the
image in its first blocks (``attn2``, MMDiT-X). The transformer reads t times 1000.
"""

from typing import ClassVar

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.autoencoder import cell_pixels, latent_capabilities
from flowgrain.families.base import Capabilities
from flowgrain.families.block_layers import JOINT_ATTENTION, in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.flow_matching import FlowMatchingFamily
from flowgrain.families.unet import TEXT_TARGETS

_MLPS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
ADAPTER_TARGETS = in_blocks("transformer_blocks", *JOINT_ATTENTION, *_MLPS)
"""All attention and MLP linears of the blocks. Modulation (adaLN) layers, embedders and the final projection stay
untouched."""

DUAL_ATTENTION_TARGETS = in_blocks("transformer_blocks", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
"""The second attention of SD3.5-medium."""

CLIP_ENCODERS = ("text_encoder", "text_encoder_2")
"""Text encoders that diffusers' loader puts adapters into; it has no place for T5."""

MAX_T5_TOKENS = 256
"""The pipeline's default; T5's tokens come after the CLIP encoders' 77."""


class StableDiffusion3(FlowMatchingFamily):
    """A StableDiffusion3Pipeline, frozen, behind the family contract."""

    name = "sd3"
    pipeline_class = StableDiffusion3Pipeline
    backbone_name = "transformer"
    backbone_class = SD3Transformer2DModel
    text_encoder_names: ClassVar = (*CLIP_ENCODERS, "text_encoder_3")
    tokenizer_names: ClassVar = ("tokenizer", "tokenizer_2", "tokenizer_3")
    left_out: ClassVar = ("image_encoder", "feature_extractor")
    optional_parts: ClassVar = ("text_encoder_3", "tokenizer_3")
    text_tensors: ClassVar = ("prompt_embeds", "pooled_prompt_embeds")
    block_stacks: ClassVar = ("transformer_blocks",)
    backbone_targets: ClassVar = ADAPTER_TARGETS

    def __init__(self, pipeline: StableDiffusion3Pipeline, source: str):
        super().__init__(pipeline, source)
        tokenizer = pipeline.tokenizer_3
        limit = MAX_T5_TOKENS if tokenizer is None else tokenizer.model_max_length
        self.max_sequence_length = min(limit, MAX_T5_TOKENS)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        transformer, vae = configs["transformer"], configs["vae"]
        native = cell_pixels(vae) * transformer["sample_size"]
        return latent_capabilities(vae, "classifier_free", transformer["patch_size"], native)

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        scale = self._pipeline.scheduler.config.num_train_timesteps
        return self._backbone(
            hidden_states=latents,
            timestep=(times[:, 0].double() * scale).float().to(self.device),
            encoder_hidden_states=tensors["prompt_embeds"],
            pooled_projections=tensors["pooled_prompt_embeds"],
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`."""
        if component in CLIP_ENCODERS:
            return list(TEXT_TARGETS)
        dual = DUAL_ATTENTION_TARGETS if self._backbone.config.dual_attention_layers else ()
        return [*super().adapter_targets(component), *dual]

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """States of CLIP, CLIP and T5 one after the other, and both CLIP projections side by side."""
        prompt, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=captions,
            prompt_2=captions,
            prompt_3=captions,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}

    def _positions(self) -> int | None:
        return self._backbone.config.pos_embed_max_size

    def _check_parts(self) -> None:
        super()._check_parts()
        pipeline = self._pipeline
        self._check_channels(pipeline.vae.config.latent_channels)
        if pipeline.text_encoder_3 is not None and pipeline.tokenizer_3 is None:
            raise ModelError(f"{self._source}: has text_encoder_3 but no tokenizer_3; restore it or remove both")
