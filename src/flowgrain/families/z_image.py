"""Z-Image: rectified flow on the 16-channel latent of FLUX.1's autoencoder, one stream of image and text tokens.

The text is the layer before the last of Qwen3 for the caption as a user's message; only its own tokens are read. The
transformer counts time the other way, 0 for noise, and predicts x0 - noise: both are turned round here. It patches
latents itself. The pipeline's guidance scale counts from 0: pos + scale * (pos - neg), so 0 is none; Z-Image-Turbo is
distilled and drawn with 0.
"""

from typing import ClassVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.families.autoencoder import latent_capabilities
from flowgrain.families.base import Capabilities
from flowgrain.families.block_layers import in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.flow_matching import FlowMatchingFamily
from flowgrain.families.language_model_text import LENGTHS, PROMPT, padded, reading_digests

STACKS = ("noise_refiner", "context_refiner", "layers")
"""Blocks that image tokens pass alone, that text tokens pass alone, and that both pass together."""

_ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
_MLP = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
ADAPTER_TARGETS = tuple(target for stack in STACKS for target in in_blocks(stack, *_ATTENTION, *_MLP))
"""All attention and MLP linears of the blocks. Modulation (adaLN) layers, embedders and the final layer stay
untouched."""

MAX_TEXT_TOKENS = 512
"""The pipeline's default: longer captions are cut."""


class ZImage(FlowMatchingFamily):
    """A ZImagePipeline, frozen, behind the family contract; taps name blocks that image tokens pass."""

    name = "z-image"
    pipeline_class = ZImagePipeline
    backbone_name = "transformer"
    backbone_class = ZImageTransformer2DModel
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = (PROMPT, LENGTHS)
    block_stacks: ClassVar = ("noise_refiner", "layers")
    backbone_targets: ClassVar = ADAPTER_TARGETS

    def __init__(self, pipeline: ZImagePipeline, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = MAX_TEXT_TOKENS

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        return latent_capabilities(configs["vae"], "classifier_free", 2, configs["vae"]["sample_size"])

    def blocks(self) -> list[nn.Module]:
        """See :meth:`Family.blocks`: the refiners of both streams, then the joint layers."""
        return [block for stack in STACKS for block in getattr(self._backbone, stack)]

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        captions = [row[:length] for row, length in zip(tensors[PROMPT], tensors[LENGTHS].tolist(), strict=True)]
        steps = times[:, 0].to(self.device, torch.float32) * 1000
        output = self._backbone(
            list(latents.unsqueeze(2).unbind()),
            (1000 - steps) / 1000,
            captions,
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)

    def _image_tokens(self, tapped: Tensor, tokens: int) -> Tensor:
        return tapped[:, :tokens]  # before their padding and the text

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`: the pipeline steps in float32."""
        return noise.to(self.device, torch.float32)

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """The states of a caption's own tokens, as the pipeline's; it cannot run on a skeleton."""
        pipeline, (caption,) = self._pipeline, captions
        text = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        tokens = pipeline.tokenizer(
            [text], padding="max_length", max_length=self.max_sequence_length, truncation=True, return_tensors="pt"
        )
        states = pipeline.text_encoder(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device).bool(),
            output_hidden_states=True,
        ).hidden_states[-2]
        (own,) = tokens.attention_mask[0].nonzero(as_tuple=True)
        return padded(states[:, own.to(self.device)], self.max_sequence_length)

    def _placed(self, tensor: Tensor) -> Tensor:
        return super()._placed(tensor) if tensor.is_floating_point() else tensor.cpu()  # lengths decide shapes

    def _tokenizer_digests(self) -> list[str]:
        tokenizer = self._pipeline.tokenizer
        return reading_digests(tokenizer, tokenizer.chat_template)

    def _check_parts(self) -> None:
        super()._check_parts()
        self._check_channels(self._pipeline.vae.config.latent_channels)
        transformer = self._pipeline.transformer.config
        patches = (tuple(transformer.all_patch_size), tuple(transformer.all_f_patch_size))
        if patches != ((2,), (1,)):
            raise ModelError(
                f"{self._source}: the transformer takes patches of sides {patches[0]} and {patches[1]} frames, only "
                "(2,) and (1,) are supported"
            )
