"""Stable Diffusion 3 and 3.5: rectified flow on a 16-channel latent, blocks of an image and a text stream (MM-DiT).

The text stream is two CLIP encoders' states side by side, padded with zeros to the width of T5, then T5's states; both
CLIP projections modulate the blocks. A folder may lack T5 (``text_encoder_3``, most of the model's memory): the
pipeline then gives zeros for its states, in training as in sampling. SD3.5-medium attends a second time within the
image in its first blocks (``attn2``, MMDiT-X). The transformer reads t times 1000.
"""

from typing import Any, ClassVar

from diffusers import StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities, Conditioning, Prediction
from flowgrain.families.diffusers_family import Configs, DiffusersFamily
from flowgrain.families.flow_matching import check_scheduler, shift_of
from flowgrain.families.unet import TEXT_TARGETS
from flowgrain.flow.paths import Path, RectifiedFlow
from flowgrain.flow.time_laws import LinearShift

ADAPTER_TARGETS = (
    # image stream, text stream; the last block has no output for the text
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
)
"""All attention and MLP linears of the blocks. Modulation (adaLN) layers, embedders and the final projection stay
untouched."""

DUAL_ATTENTION_TARGETS = (
    "transformer_blocks.*.attn2.to_q",
    "transformer_blocks.*.attn2.to_k",
    "transformer_blocks.*.attn2.to_v",
    "transformer_blocks.*.attn2.to_out.0",
)
"""The second attention of SD3.5-medium."""

CLIP_ENCODERS = ("text_encoder", "text_encoder_2")
"""Text encoders that diffusers' loader puts adapters into; it has no place for T5."""

MAX_T5_TOKENS = 256
"""The pipeline's default; T5's tokens come after the CLIP encoders' 77."""


class StableDiffusion3(DiffusersFamily):
    """A StableDiffusion3Pipeline, frozen, behind the family contract."""

    name = "sd3"
    pipeline_class = StableDiffusion3Pipeline
    backbone_name = "transformer"
    text_encoder_names: ClassVar = (*CLIP_ENCODERS, "text_encoder_3")
    tokenizer_names: ClassVar = ("tokenizer", "tokenizer_2", "tokenizer_3")
    left_out: ClassVar = ("image_encoder", "feature_extractor")
    optional_parts: ClassVar = ("text_encoder_3", "tokenizer_3")
    text_tensors: ClassVar = ("prompt_embeds", "pooled_prompt_embeds")
    block_stacks: ClassVar = ("transformer_blocks",)

    def __init__(self, pipeline: StableDiffusion3Pipeline, source: str):
        super().__init__(pipeline, source)
        tokenizer = pipeline.tokenizer_3
        limit = MAX_T5_TOKENS if tokenizer is None else tokenizer.model_max_length
        self.max_sequence_length = min(limit, MAX_T5_TOKENS)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        transformer, vae = configs["transformer"], configs["vae"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return Capabilities(
            guidance="classifier_free",
            pixel_multiple=scale * transformer["patch_size"],
            latent_channels=vae["latent_channels"],
            latent_scale=scale,
            native_size=scale * transformer["sample_size"],
        )

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        times: Float[Tensor, "b g"],
        conditioning: Conditioning,
        taps: tuple[str, ...] = (),
    ) -> Prediction:
        """See :meth:`Family.predict`; taps name blocks, such as ``transformer_blocks.10``.

        A tap's value is the block's output for the image tokens, (b, tokens, width), rows of patches first.
        """
        height, width = x_t.shape[-2:]
        self._check_size(height, width, self._backbone.config.patch_size, "latent cells")
        scale = self._pipeline.scheduler.config.num_train_timesteps
        with self._captured(taps) as features:
            output = self._backbone(
                hidden_states=x_t.to(self.device, self._backbone.dtype),
                timestep=(times[:, 0].double() * scale).float().to(self.device),
                encoder_hidden_states=conditioning.tensors["prompt_embeds"],
                pooled_projections=conditioning.tensors["pooled_prompt_embeds"],
                joint_attention_kwargs=None,
                return_dict=False,
            )[0]
        return Prediction(prediction=output, taps=features)

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`."""
        if component in CLIP_ENCODERS:
            return list(TEXT_TARGETS)
        self._require_backbone(component)
        dual = DUAL_ATTENTION_TARGETS if self._backbone.config.dual_attention_layers else ()
        return [*ADAPTER_TARGETS, *dual]

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`."""
        return RectifiedFlow()

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`."""
        return shift_of(self._pipeline.scheduler.config)

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {"max_sequence_length": self.max_sequence_length}

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`."""
        return noise.to(self.device, self._backbone.dtype)

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

    def _text_length(self) -> int:
        return self.max_sequence_length

    def _tapped(self, output: Any) -> Tensor:
        return output[1]  # (text tokens, image tokens)

    def _check_size(self, height: int, width: int, multiple: int, unit: str) -> None:
        super()._check_size(height, width, multiple, unit)
        limit = self._backbone.config.pos_embed_max_size * multiple
        if max(height, width) > limit:
            raise ModelError(
                f"height {height} and width {width} {unit} must be at most {limit}, as many as {self._source} has "
                "positions for; choose smaller buckets"
            )

    def _check_parts(self) -> None:
        super()._check_parts()
        pipeline = self._pipeline
        channels, latent = pipeline.transformer.config.in_channels, pipeline.vae.config.latent_channels
        if channels != latent:
            raise ModelError(
                f"{self._source}: the transformer takes {channels} channels, the autoencoder gives {latent}; only "
                "text-to-image models are supported"
            )
        if pipeline.text_encoder_3 is not None and pipeline.tokenizer_3 is None:
            raise ModelError(f"{self._source}: has text_encoder_3 but no tokenizer_3; restore it or remove both")
        check_scheduler(pipeline.scheduler, self._source)
