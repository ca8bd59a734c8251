"""AuraFlow: rectified flow on a 4-channel latent, joint blocks of image and text, then blocks of one common stream.

The text encoder's states (Pile-T5, a UMT5) are set to zero after the caption's end; the transformer reads no mask. It
reads t itself, not t times 1000: the pipeline's timestep divided by 1000, rounded to the latents' dtype. Positions are
learned, a square of them, of which a picture takes the middle.
"""

from typing import ClassVar

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
from torch import Tensor

from flowgrain.families.autoencoder import cell_pixels, latent_capabilities
from flowgrain.families.base import Capabilities
from flowgrain.families.block_layers import ATTENTION, JOINT_ATTENTION, in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.flow_matching import FlowMatchingFamily

_MLP = ("ff.linear_1", "ff.linear_2", "ff.out_projection")
_TEXT_MLP = ("ff_context.linear_1", "ff_context.linear_2", "ff_context.out_projection")
ADAPTER_TARGETS = (
    *in_blocks("joint_transformer_blocks", *JOINT_ATTENTION, *_MLP, *_TEXT_MLP),
    *in_blocks("single_transformer_blocks", *ATTENTION, *_MLP),
)
"""All attention and MLP linears of both block types. Modulation (adaLN) layers, embedders and the final projection
stay untouched."""

MAX_TEXT_TOKENS = 256
"""The pipeline's default."""
MAX_NATIVE_SIZE = 1024
"""The pipeline's default size; the configuration's ``sample_size`` is that of an early stage of the training."""


class AuraFlow(FlowMatchingFamily):
    """An AuraFlowPipeline, frozen, behind the family contract."""

    name = "auraflow"
    pipeline_class = AuraFlowPipeline
    backbone_name = "transformer"
    backbone_class = AuraFlowTransformer2DModel
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = ("prompt_embeds",)
    block_stacks: ClassVar = ("joint_transformer_blocks", "single_transformer_blocks")
    backbone_targets: ClassVar = ADAPTER_TARGETS
    shifts_latents: ClassVar = False

    def __init__(self, pipeline: AuraFlowPipeline, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, MAX_TEXT_TOKENS)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        transformer, vae = configs["transformer"], configs["vae"]
        patch, positions = transformer["patch_size"], _side(transformer["pos_embed_max_size"])
        native = min(MAX_NATIVE_SIZE, cell_pixels(vae) * patch * positions)
        return latent_capabilities(vae, "classifier_free", patch, native)

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        scale = self._pipeline.scheduler.config.num_train_timesteps
        level = (times[:, 0].double() * scale).float() / 1000
        return self._backbone(
            latents,
            encoder_hidden_states=tensors["prompt_embeds"],
            timestep=level.to(self.device, latents.dtype),
            return_dict=False,
            attention_kwargs=None,
        )[0]

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """The text encoder's states, zero after the caption's end."""
        if self.device.type == "meta":  # a skeleton: transformers looks at the values of masks
            encoder = self._pipeline.text_encoder
            shape = (len(captions), self.max_sequence_length, encoder.config.d_model)
            return {"prompt_embeds": torch.empty(shape, dtype=encoder.dtype, device=self.device)}
        prompt, _, _, _ = self._pipeline.encode_prompt(
            prompt=captions,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": prompt}

    def _positions(self) -> int | None:
        return _side(self._backbone.config.pos_embed_max_size)  # beyond them the transformer would take wrong ones

    def _check_parts(self) -> None:
        super()._check_parts()
        self._check_channels(self._pipeline.vae.config.latent_channels)


def _side(size: int) -> int:
    """Positions along one side of the square of ``size`` learned ones."""
    return int(size**0.5)
