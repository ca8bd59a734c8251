"""FLUX.1: rectified flow on packed 2x2 patches of a 16-channel latent, double and single transformer blocks.

All arithmetic around the transformer (packing, position ids, prompt encoding) is the pipeline's own code, called on
the loaded FluxPipeline, so that training sees exactly what sampling sees. What the pipeline has inline is repeated
here with a test that compares it: the timestep (t times 1000 in the latents' dtype, then divided by 1000; the
transformer multiplies by 1000 again) and the guidance tensor (float32, only for models with a guidance embedding).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgrain.families.autoencoder import latent_capabilities
from flowgrain.families.base import Capabilities, ConditionInputs
from flowgrain.families.block_layers import JOINT_ATTENTION, in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.flow_matching import FlowMatchingFamily

# under CPU autocast torch says once that its fused RMS norm is not used: nothing that a user could or should change
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")

TRANSFORMER = "transformer"
_MLPS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
ADAPTER_TARGETS = (
    *in_blocks("transformer_blocks", *JOINT_ATTENTION, *_MLPS),
    # attention, and the joint projection of attention and MLP
    *in_blocks("single_transformer_blocks", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"),
)
"""All attention and MLP linears of both block types. The paper (Semantic Granularity Alignment) does not name its
targets: this list is our choice. Modulation (adaLN) layers, embedders and the final projection stay untouched."""

MAX_TEXT_TOKENS = 512
MAX_TEXT_TOKENS_WITHOUT_GUIDANCE = 256
"""FLUX.1-schnell, the family's member without a guidance embedding, was distilled with 256 T5 tokens."""

MATH_ATTENTION_MAX_TOKENS = 256
"""On CPU, sequences up to this length that run in bfloat16 use torch's MATH attention, see :meth:`Flux._predicted`."""


class Flux(FlowMatchingFamily):
    """A FluxPipeline, frozen, behind the family contract."""

    name = "flux"
    pipeline_class = FluxPipeline
    backbone_name = "transformer"
    backbone_class = FluxTransformer2DModel
    text_encoder_names: ClassVar = ("text_encoder", "text_encoder_2")
    tokenizer_names: ClassVar = ("tokenizer", "tokenizer_2")
    text_tensors: ClassVar = ("prompt_embeds", "pooled_prompt_embeds")
    block_stacks: ClassVar = ("transformer_blocks", "single_transformer_blocks")
    backbone_targets: ClassVar = ADAPTER_TARGETS

    def __init__(self, pipeline: FluxPipeline, source: str):
        super().__init__(pipeline, source)
        self._guided = bool(self._backbone.config.guidance_embeds)
        limit = MAX_TEXT_TOKENS if self._guided else MAX_TEXT_TOKENS_WITHOUT_GUIDANCE
        self.max_sequence_length = min(pipeline.tokenizer_2.model_max_length, limit)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        guidance = "embedded" if configs["transformer"]["guidance_embeds"] else "none"
        return latent_capabilities(configs["vae"], guidance, 2, configs["vae"]["sample_size"])

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """See :meth:`DiffusersFamily._predicted`.

        Short bfloat16 sequences on CPU use torch's MATH attention, whose backward pass is faster there than the
        fused one's. The choice depends on device, dtype and length alone, so it is the same for all runs.
        """
        height, width = latents.shape[-2:]
        packed, prompt = self._pack(latents), tensors["prompt_embeds"]
        with self._attention(packed.shape[1] + prompt.shape[1]):
            output = self._backbone(
                hidden_states=packed,
                timestep=self._rounded_level(times),
                guidance=tensors.get("guidance"),
                pooled_projections=tensors["pooled_prompt_embeds"],
                encoder_hidden_states=prompt,
                txt_ids=torch.zeros(prompt.shape[1], 3, device=self.device, dtype=latents.dtype),
                img_ids=self._image_ids(height // 2, width // 2, latents.dtype),
                joint_attention_kwargs={},
                return_dict=False,
            )[0]
        scale = self.capabilities.latent_scale
        return FluxPipeline._unpack_latents(output, height * scale, width * scale, scale)

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """See :meth:`Family.pipeline_latents`: packed, as FluxPipeline takes them."""
        return self._pack(noise.to(self.device, self._backbone.dtype))

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """T5 states and the pooled CLIP vector."""
        prompt, pooled, _ = self._pipeline.encode_prompt(
            prompt=captions, prompt_2=captions, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}

    def _extra_conditioning(self, inputs: ConditionInputs, rows: int) -> dict[str, Tensor]:
        """The guidance input of distilled models."""
        if not self._guided:
            return {}
        return {"guidance": torch.full((rows,), inputs.guidance, device=self.device, dtype=torch.float32)}

    def _check_parts(self) -> None:
        super()._check_parts()
        self._check_channels(self._pipeline.vae.config.latent_channels, packed=4)

    def _pack(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return FluxPipeline._pack_latents(latents, *latents.shape)

    def _image_ids(self, rows: int, columns: int, dtype: torch.dtype) -> Float[Tensor, "n 3"]:
        return FluxPipeline._prepare_latent_image_ids(1, rows, columns, self.device, dtype)

    @contextmanager
    def _attention(self, length: int) -> Iterator[None]:
        # a checkpointed block runs again outside this context and must then take the same kernel: leave it alone
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        short = length <= MATH_ATTENTION_MAX_TOKENS and not self._backbone.is_gradient_checkpointing
        if self.device.type == "cpu" and short and (autocast or self._backbone.dtype == torch.bfloat16):
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield
