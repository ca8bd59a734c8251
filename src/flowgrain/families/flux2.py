"""FLUX.2: rectified flow on normalised 2x2 patches of a 32-channel latent, double and single transformer blocks.

FLUX.2-dev reads three layers of Mistral Small 3.2 and its guidance is an input; the Klein models read three layers of
Qwen3 and are guided without a classifier, or not at all where they were distilled to few steps. All 512 text tokens,
padding included, are read: their states are what is cached.

Latents are those of the autoencoder, (b, 32, h, w), each 2x2 patch of them shifted and scaled by the statistics of a
batch norm; the pipeline's own initial noise is the same patches as 128 channels. The arithmetic around the
transformer is the pipeline's code, save the timestep: t times 1000 in the latents' dtype, divided by 1000.
"""

import dataclasses
from abc import ABC
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_torchvision_available

from flowgrain.errors import ModelError
from flowgrain.families.autoencoder import latent_capabilities
from flowgrain.families.base import Capabilities, ConditionInputs
from flowgrain.families.block_layers import JOINT_ATTENTION, in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.flow_matching import FlowMatchingFamily
from flowgrain.families.language_model_text import reading_digests
from flowgrain.families.loading import quiet_libraries
from flowgrain.flow.time_laws import LinearShift
from flowgrain.pretrained.weights import LOAD_ERRORS, one_line

ADAPTER_TARGETS = (
    *in_blocks("transformer_blocks", *JOINT_ATTENTION),
    *in_blocks("transformer_blocks", "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
    # attention and MLP are one projection in and one out
    *in_blocks("single_transformer_blocks", "attn.to_qkv_mlp_proj", "attn.to_out"),
)
"""All attention and MLP linears of both block types. The modulations, which all blocks share, embedders and the final
projection stay untouched."""

MAX_TEXT_TOKENS = 512
"""The pipeline's default: the length that captions are padded to."""


class Flux2Family(FlowMatchingFamily, ABC):
    """What FLUX.2-dev and the Klein models do alike."""

    backbone_name = "transformer"
    backbone_class = Flux2Transformer2DModel
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = ("prompt_embeds",)
    block_stacks: ClassVar = ("transformer_blocks", "single_transformer_blocks")
    backbone_targets: ClassVar = ADAPTER_TARGETS

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = MAX_TEXT_TOKENS

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        guidance = "embedded" if configs["transformer"]["guidance_embeds"] else "classifier_free"
        return latent_capabilities(configs["vae"], guidance, 2, configs["vae"]["sample_size"])

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        patches, prompt = self._patchify(latents), tensors["prompt_embeds"]
        output = self._backbone(
            hidden_states=Flux2Pipeline._pack_latents(patches),
            timestep=self._rounded_level(times),
            guidance=tensors.get("guidance"),
            encoder_hidden_states=prompt,
            txt_ids=Flux2Pipeline._prepare_text_ids(prompt).to(self.device),
            img_ids=Flux2Pipeline._prepare_latent_ids(patches).to(self.device),
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
        return self._unpatchify(output.transpose(1, 2).reshape(patches.shape))

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`: the scheduler's line.

        It is the pipeline's empirical mu at 200 steps, and at any number of steps above 4300 tokens; what the pipeline
        adds for fewer steps makes up for their coarseness and says nothing of the levels to train at.
        """
        return super().default_shift()

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`: patches as channels."""
        return self._patchify(super().pipeline_latents(noise))

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """States of three layers of the language model, side by side."""
        prompt, _ = self._pipeline.encode_prompt(
            prompt=captions, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": prompt}

    def _tokenizer_digests(self) -> list[str]:
        reader = self._pipeline.tokenizer
        return reading_digests(reader, reader.chat_template)

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Each patch of 2x2 cells normalised channel by channel."""
        mean, std = self._patch_statistics()
        return self._unpatchify((self._patchify(raw) - mean.to(raw)) / std.to(raw))

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean, std = self._patch_statistics()
        return self._unpatchify(self._patchify(latents) * std.to(latents) + mean.to(latents))

    def _patch_statistics(self) -> tuple[Tensor, Tensor]:
        norm = self._vae.bn
        variance = norm.running_var.view(1, -1, 1, 1)
        return norm.running_mean.view(1, -1, 1, 1), torch.sqrt(variance + self._vae.config.batch_norm_eps)

    def _patchify(self, latents: Float[Tensor, "b c h w"]) -> Tensor:
        return Flux2Pipeline._patchify_latents(latents)

    def _unpatchify(self, patches: Tensor) -> Float[Tensor, "b c h w"]:
        return Flux2Pipeline._unpatchify_latents(patches)

    def _check_parts(self) -> None:
        super()._check_parts()
        self._check_channels(self._pipeline.vae.config.latent_channels, packed=4)


class Flux2(Flux2Family):
    """A Flux2Pipeline, frozen, behind the family contract."""

    name = "flux2"
    pipeline_class = Flux2Pipeline
    left_out: ClassVar = () if is_torchvision_available() else ("tokenizer",)
    """The published tokenizer is a processor of texts and pictures, which exists where torchvision does."""

    def __init__(self, pipeline: Any, source: str):
        if pipeline.tokenizer is None:
            pipeline.register_modules(tokenizer=_tokenizer(source))
        super().__init__(pipeline, source)

    def _extra_conditioning(self, inputs: ConditionInputs, rows: int) -> dict[str, Tensor]:
        """The guidance input."""
        return {"guidance": torch.full((rows,), inputs.guidance, device=self.device, dtype=torch.float32)}

    def _check_parts(self) -> None:
        super()._check_parts()
        if not self._pipeline.transformer.config.guidance_embeds:
            raise ModelError(f"{self._source}: a Flux2Pipeline whose transformer reads no guidance is not supported")


def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer and chat template inside a processor: for captions the same as the processor."""
    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(model, subfolder="tokenizer")
    except LOAD_ERRORS as error:
        raise ModelError(f"{model}/tokenizer: cannot be loaded ({one_line(error)}); restore it") from None


class Flux2Klein(Flux2Family):
    """A Flux2KleinPipeline, frozen, behind the family contract."""

    name = "flux2-klein"
    pipeline_class = Flux2KleinPipeline

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        if pipeline.config.is_distilled:
            self.capabilities = dataclasses.replace(self.capabilities, guidance="none")

    @classmethod
    def read_capabilities(cls, model: str) -> Capabilities:
        """See :meth:`Family.read_capabilities`; model_index.json says whether the model is distilled."""
        capabilities = super().read_capabilities(model)  # raises ModelError for unreadable files
        index: Any = Flux2KleinPipeline.load_config(model)
        return dataclasses.replace(capabilities, guidance="none") if index.get("is_distilled") else capabilities

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"is_distilled": self._pipeline.config.is_distilled}

    def _check_parts(self) -> None:
        super()._check_parts()
        if self._pipeline.transformer.config.guidance_embeds:
            raise ModelError(
                f"{self._source}: a Flux2KleinPipeline whose transformer reads a guidance scale is not supported: the "
                "pipeline gives it none"
            )
