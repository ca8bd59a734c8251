"""FLUX.1: rectified flow on packed 2x2 patches of a 16-channel latent, double and single transformer blocks.

All arithmetic around the transformer (packing, position ids, prompt encoding) is the pipeline's own code, called on
the loaded FluxPipeline, so that training sees exactly what sampling sees. What the pipeline has inline is repeated
here with a test that compares it: the timestep (t times 1000 in the latents' dtype, then divided by 1000; the
transformer multiplies by 1000 again) and the guidance tensor (float32, only for models with a guidance embedding).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities, Conditioning, ConditionInputs, Prediction
from flowgrain.families.diffusers_family import Configs, DiffusersFamily
from flowgrain.families.flow_matching import shift_of
from flowgrain.flow.paths import Path, RectifiedFlow
from flowgrain.flow.time_laws import LinearShift

# under CPU autocast torch says once that its fused RMS norm is not used: nothing that a user could or should change
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")

TRANSFORMER = "transformer"
ADAPTER_TARGETS = (
    # double blocks: image stream, text stream
    "transformer_blocks.*.attn.to_q",
    "transformer_blocks.*.attn.to_k",
    "transformer_blocks.*.attn.to_v",
    "transformer_blocks.*.attn.to_out.0",
    "transformer_blocks.*.attn.add_q_proj",
    "transformer_blocks.*.attn.add_k_proj",
    "transformer_blocks.*.attn.add_v_proj",
    "transformer_blocks.*.attn.to_add_out",
    "transformer_blocks.*.ff.net.0.proj",
    "transformer_blocks.*.ff.net.2",
    "transformer_blocks.*.ff_context.net.0.proj",
    "transformer_blocks.*.ff_context.net.2",
    # single blocks: attention, and the joint projection of attention and MLP
    "single_transformer_blocks.*.attn.to_q",
    "single_transformer_blocks.*.attn.to_k",
    "single_transformer_blocks.*.attn.to_v",
    "single_transformer_blocks.*.proj_mlp",
    "single_transformer_blocks.*.proj_out",
)
"""All attention and MLP linears of both block types. The paper (Semantic Granularity Alignment) does not name its
targets: this list is our choice. Modulation (adaLN) layers, embedders and the final projection stay untouched."""

MAX_TEXT_TOKENS = 512
MAX_TEXT_TOKENS_WITHOUT_GUIDANCE = 256
"""FLUX.1-schnell, the family's member without a guidance embedding, was distilled with 256 T5 tokens."""

MATH_ATTENTION_MAX_TOKENS = 256
"""On CPU, sequences up to this length that run in bfloat16 use torch's MATH attention, see :meth:`Flux.predict`."""


class Flux(DiffusersFamily):
    """A FluxPipeline, frozen, behind the family contract."""

    name = "flux"
    pipeline_class = FluxPipeline
    backbone_name = "transformer"
    text_encoder_names: ClassVar = ("text_encoder", "text_encoder_2")
    tokenizer_names: ClassVar = ("tokenizer", "tokenizer_2")
    text_tensors: ClassVar = ("prompt_embeds", "pooled_prompt_embeds")
    block_stacks: ClassVar = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, pipeline: FluxPipeline, source: str):
        super().__init__(pipeline, source)
        self._guided = bool(self._backbone.config.guidance_embeds)
        limit = MAX_TEXT_TOKENS if self._guided else MAX_TEXT_TOKENS_WITHOUT_GUIDANCE
        self.max_sequence_length = min(pipeline.tokenizer_2.model_max_length, limit)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        transformer, vae = configs["transformer"], configs["vae"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return Capabilities(
            guidance="embedded" if transformer["guidance_embeds"] else "none",
            pixel_multiple=2 * scale,
            latent_channels=vae["latent_channels"],
            latent_scale=scale,
            native_size=vae["sample_size"],
        )

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        times: Float[Tensor, "b g"],
        conditioning: Conditioning,
        taps: tuple[str, ...] = (),
    ) -> Prediction:
        """See :meth:`Family.predict`; taps name blocks, such as ``single_transformer_blocks.10``.

        A tap's value is the block's output for the image tokens, (b, tokens, width), rows of patches first.
        Short bfloat16 sequences on CPU use torch's MATH attention, whose backward pass is faster there than the
        fused one's. The choice depends on device, dtype and length alone, so it is the same for all runs.
        """
        height, width = x_t.shape[-2:]
        self._check_size(height, width, 2, "latent cells")
        dtype, prompt = self._backbone.dtype, conditioning.tensors["prompt_embeds"]
        packed = self._pack(x_t.to(self.device, dtype))
        level = (times[:, 0].to(self.device, torch.float32) * 1000).to(dtype) / 1000
        with self._captured(taps) as features, self._attention(packed.shape[1] + prompt.shape[1]):
            output = self._backbone(
                hidden_states=packed,
                timestep=level,
                guidance=conditioning.tensors.get("guidance"),
                pooled_projections=conditioning.tensors["pooled_prompt_embeds"],
                encoder_hidden_states=prompt,
                txt_ids=torch.zeros(prompt.shape[1], 3, device=self.device, dtype=dtype),
                img_ids=self._image_ids(height // 2, width // 2, dtype),
                joint_attention_kwargs={},
                return_dict=False,
            )[0]
        scale = self.capabilities.latent_scale
        prediction = FluxPipeline._unpack_latents(output, height * scale, width * scale, scale)
        return Prediction(prediction=prediction, taps=features)

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`."""
        self._require_backbone(component)
        return list(ADAPTER_TARGETS)

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`."""
        return RectifiedFlow()

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`."""
        return shift_of(self._pipeline.scheduler.config)

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {"max_sequence_length": self.max_sequence_length}

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

    def _text_length(self) -> int:
        return self.max_sequence_length

    def _tapped(self, output: Any) -> Tensor:
        return output[1]  # (text tokens, image tokens)

    def _check_parts(self) -> None:
        super()._check_parts()
        pipeline = self._pipeline
        packed, latent = pipeline.transformer.config.in_channels, pipeline.vae.config.latent_channels
        if packed != 4 * latent:
            raise ModelError(
                f"{self._source}: the transformer takes {packed} channels, the autoencoder gives {latent} times 4 "
                "packed; only text-to-image FLUX models are supported (no Fill, Control or Depth variants)"
            )
        scheduler = pipeline.scheduler.config
        if scheduler.use_dynamic_shifting and scheduler.time_shift_type != "exponential":
            raise ModelError(
                f"{self._source}: scheduler time_shift_type '{scheduler.time_shift_type}' is not supported, only "
                "'exponential'"
            )

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
