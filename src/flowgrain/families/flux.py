"""FLUX.1: rectified flow on packed 2x2 patches of a 16-channel latent, double and single transformer blocks.

All arithmetic around the transformer (packing, position ids, prompt encoding) is the pipeline's own code, called on
the loaded FluxPipeline, so that training sees exactly what sampling sees. What the pipeline has inline is repeated
here with a test that compares it: the timestep (t times 1000 in the latents' dtype, then divided by 1000; the
transformer multiplies by 1000 again) and the guidance tensor (float32, only for models with a guidance embedding).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import FluxPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgrain.errors import ModelError
from flowgrain.families.base import (
    Conditioning,
    ConditionInputs,
    Family,
    Posterior,
    Prediction,
    Quantization,
    TextEmbedding,
)
from flowgrain.families.fingerprint import module_digest, tokenizer_digest
from flowgrain.families.flux_config import capabilities_of, shift_of
from flowgrain.families.flux_loading import check_parts, load_adapter, load_pipeline, skeleton_pipeline
from flowgrain.families.offload import EncoderOffload
from flowgrain.families.quantization import quantize_linears
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

_TEXT_NAMES = ("prompt_embeds", "pooled_prompt_embeds")


class Flux(Family):
    """A FluxPipeline, frozen, behind the family contract."""

    name = "flux"

    def __init__(self, pipeline: FluxPipeline, source: str):
        check_parts(pipeline, source)
        self._pipeline = pipeline
        self._source = source
        self._transformer = pipeline.transformer
        self._vae = pipeline.vae
        for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            module.requires_grad_(False).eval()
        self._guided = bool(pipeline.transformer.config.guidance_embeds)
        self.capabilities = capabilities_of(pipeline.transformer.config, pipeline.vae.config)
        limit = MAX_TEXT_TOKENS if self._guided else MAX_TEXT_TOKENS_WITHOUT_GUIDANCE
        self.max_sequence_length = min(pipeline.tokenizer_2.model_max_length, limit)
        self._fingerprint: str | None = None
        self._offload: EncoderOffload | None = None

    @classmethod
    def load(cls, model: str, dtype: torch.dtype, device: torch.device, quantization: Quantization = "none") -> "Flux":
        """See :meth:`Family.load`."""
        family = cls(load_pipeline(model, dtype), model)
        quantize_linears(family.blocks(), quantization, device)
        family._pipeline.to(device)
        return family

    @classmethod
    def skeleton(cls, model: str, dtype: torch.dtype) -> "Flux":
        """See :meth:`Family.skeleton`."""
        return cls(skeleton_pipeline(model, dtype), model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._transformer.device

    def components(self) -> dict[str, nn.Module]:
        """See :meth:`Family.components`."""
        return {TRANSFORMER: self._transformer}

    def encoders(self) -> dict[str, nn.Module]:
        """See :meth:`Family.encoders`, in the order in which a pipeline calls them."""
        pipe = self._pipeline
        return {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2, "vae": pipe.vae}

    def blocks(self) -> list[nn.Module]:
        """See :meth:`Family.blocks`: double blocks, then single blocks."""
        return [*self._transformer.transformer_blocks, *self._transformer.single_transformer_blocks]

    def gradient_checkpointing(self, enabled: bool) -> None:
        """See :meth:`Family.gradient_checkpointing`."""
        if enabled:
            self._transformer.enable_gradient_checkpointing()
        else:
            self._transformer.disable_gradient_checkpointing()

    def compile(self) -> None:
        """See :meth:`Family.compile`."""
        self._transformer.compile_repeated_blocks()

    def offload_encoders(self) -> None:
        """See :meth:`Family.offload_encoders`."""
        if self._offload is None:
            self._offload = EncoderOffload(list(self.encoders().values()), self.device)
        self._offload.park()

    def fingerprint(self) -> str:
        """See :meth:`Family.fingerprint`; covers the tokenizers and the text length too."""
        if self._fingerprint is None:
            pipe = self._pipeline
            parts = self.encoders()
            weights = module_digest({name: parts[name] for name in ("vae", "text_encoder", "text_encoder_2")})
            texts = f"{tokenizer_digest(pipe.tokenizer)}-{tokenizer_digest(pipe.tokenizer_2)}"
            self._fingerprint = f"flux-{weights}-{texts}-{self.max_sequence_length}"
        return self._fingerprint

    @torch.no_grad()
    def encode_pixels(self, pixels: Float[Tensor, "b 3 h w"]) -> Posterior:
        """See :meth:`Family.encode_pixels`; one image a call, so that an image's bits do not depend on its batch."""
        self._check_size(pixels.shape[-2], pixels.shape[-1], self.capabilities.pixel_multiple, "pixels")
        rows = pixels.to(self.device, self._vae.dtype).split(1)
        with self._parked_after():
            posteriors = [self._vae.encode(row).latent_dist for row in rows]
        return Posterior(
            mean=torch.cat([posterior.mean for posterior in posteriors]).float(),
            logvar=torch.cat([posterior.logvar for posterior in posteriors]).float(),
        )

    def latents(self, posterior: Posterior, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """See :meth:`Family.latents`: (mean + exp(logvar / 2) noise - shift) * scale."""
        sample = posterior.mean + torch.exp(0.5 * posterior.logvar) * noise
        return (sample - self._vae.config.shift_factor) * self._vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """See :meth:`Family.decode`; one image a call."""
        unscaled = latents / self._vae.config.scaling_factor + self._vae.config.shift_factor
        rows = unscaled.to(self.device, self._vae.dtype).split(1)
        with self._parked_after():
            return torch.cat([self._vae.decode(row, return_dict=False)[0] for row in rows]).float()

    def tokens(self, height: int, width: int) -> int:
        """See :meth:`Family.tokens`: one token a 2x2 patch of latent cells."""
        multiple = self.capabilities.pixel_multiple
        self._check_size(height, width, multiple, "pixels")
        return (height // multiple) * (width // multiple)

    @torch.no_grad()
    def embed_text(self, captions: list[str]) -> TextEmbedding:
        """See :meth:`Family.embed_text`; one caption a call, so that its bits do not depend on its batch."""
        length, rows = self.max_sequence_length, []
        with self._parked_after():
            for caption in captions:
                prompt, pooled, _ = self._pipeline.encode_prompt(
                    prompt=[caption], prompt_2=[caption], device=self.device, max_sequence_length=length
                )
                rows.append(TextEmbedding({"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}))  # pyright: ignore
        return TextEmbedding.stack(rows)

    def condition(self, inputs: ConditionInputs) -> Conditioning:
        """See :meth:`Family.condition`: T5 states, pooled CLIP and, for distilled models, the guidance input."""
        if inputs.captions is not None and inputs.embedding is None:
            text = self.embed_text(inputs.captions)
        elif inputs.embedding is not None and inputs.captions is None:
            text = inputs.embedding
        else:
            raise ValueError("conditioning is made of either captions or embeddings, give exactly one of them")
        tensors = {name: text.tensors[name].to(self.device, self._transformer.dtype) for name in _TEXT_NAMES}
        if self._guided:
            rows = tensors["prompt_embeds"].shape[0]
            tensors["guidance"] = torch.full((rows,), inputs.guidance, device=self.device, dtype=torch.float32)
        return Conditioning(tensors)

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
        dtype, prompt = self._transformer.dtype, conditioning.tensors["prompt_embeds"]
        packed = self._pack(x_t.to(self.device, dtype))
        level = (times[:, 0].to(self.device, torch.float32) * 1000).to(dtype) / 1000
        with self._captured(taps) as features, self._attention(packed.shape[1] + prompt.shape[1]):
            output = self._transformer(
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
        if component != TRANSFORMER:
            raise ModelError(f"a FLUX model has no component '{component}' to adapt; it has: {TRANSFORMER}")
        return list(ADAPTER_TARGETS)

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`."""
        return RectifiedFlow()

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`."""
        return shift_of(self._pipeline.scheduler.config)

    def pipeline(self, adapter: FilePath | None = None) -> FluxPipeline:
        """See :meth:`Family.pipeline`. The pipeline shares this family's weights, and a live adapter with them.

        The folder's adapter stays in the weights until ``unload_lora_weights``. Raises ModelError when a live
        adapter is in place already, or when the folder cannot be read.
        """
        pipe = FluxPipeline(**self._pipeline.components)
        pipe.set_progress_bar_config(disable=True)
        if adapter is None:
            return pipe
        if self._transformer._hf_peft_config_loaded:
            raise ModelError(f"{adapter}: the model carries an adapter already; remove it before loading another")
        load_adapter(pipe, adapter)
        return pipe

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {"max_sequence_length": self.max_sequence_length}

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """See :meth:`Family.pipeline_latents`: packed, as FluxPipeline takes them."""
        return self._pack(noise.to(self.device, self._transformer.dtype))

    @contextmanager
    def _parked_after(self) -> Iterator[None]:
        """Send offloaded encoders back to the CPU after the block, which may have called them."""
        try:
            yield
        finally:
            if self._offload is not None:
                self._offload.park()

    def _pack(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return FluxPipeline._pack_latents(latents, *latents.shape)

    def _image_ids(self, rows: int, columns: int, dtype: torch.dtype) -> Float[Tensor, "n 3"]:
        return FluxPipeline._prepare_latent_image_ids(1, rows, columns, self.device, dtype)

    @contextmanager
    def _attention(self, length: int) -> Iterator[None]:
        # a checkpointed block runs again outside this context and must then take the same kernel: leave it alone
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        short = length <= MATH_ATTENTION_MAX_TOKENS and not self._transformer.is_gradient_checkpointing
        if self.device.type == "cpu" and short and (autocast or self._transformer.dtype == torch.bfloat16):
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield

    @contextmanager
    def _captured(self, taps: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
        """Record the image tokens that the named blocks give while the block runs."""
        features: dict[str, Tensor] = {}
        handles = []
        try:
            for tap in taps:
                handles.append(self._block(tap).register_forward_hook(_recorder(features, tap)))
            yield features
        finally:
            for handle in handles:
                handle.remove()

    def _block(self, tap: str) -> nn.Module:
        transformer = self._transformer
        stacks = {
            "transformer_blocks": transformer.transformer_blocks,
            "single_transformer_blocks": transformer.single_transformer_blocks,
        }
        stack, _, index = tap.partition(".")
        if stack not in stacks or not index.isdigit() or int(index) >= len(stacks[stack]):
            ranges = ", ".join(f"{name}.0 to {name}.{len(blocks) - 1}" for name, blocks in stacks.items())
            raise ModelError(f"tap '{tap}' is no block of {self._source}; it has {ranges}")
        return stacks[stack][int(index)]

    def _check_size(self, height: int, width: int, multiple: int, unit: str) -> None:
        if height % multiple or width % multiple or min(height, width) <= 0:
            raise ModelError(
                f"height {height} and width {width} {unit} must be positive multiples of {multiple}: FLUX packs 2x2 "
                "latent cells into a token; choose other bucket sizes"
            )


def _recorder(features: dict[str, Tensor], tap: str) -> Any:
    def record(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        features[tap] = output[1]  # (text tokens, image tokens)

    return record
