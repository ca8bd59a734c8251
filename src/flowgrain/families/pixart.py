"""PixArt-alpha and PixArt-sigma: a diffusion transformer that predicts noise and reads T5 by cross-attention.

The transformer gives twice the latent's channels: the noise, and an interpolation of the reverse process's variance
(learned sigma, Nichol and Dhariwal 2021). The pipelines draw with the first half alone; :meth:`PixArt.predict` gives
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
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities, Conditioning, ConditionInputs, Prediction
from flowgrain.families.diffusers_family import Configs, DiffusersFamily
from flowgrain.flow.paths import Path
from flowgrain.flow.time_laws import LinearShift
from flowgrain.flow.variance_preserving import BetaSchedule, NoiseSchedule, PredictionType, VariancePreserving

ADAPTER_TARGETS = (
    # attn1: within the image, attn2: to the text
    "transformer_blocks.*.attn1.to_q",
    "transformer_blocks.*.attn1.to_k",
    "transformer_blocks.*.attn1.to_v",
    "transformer_blocks.*.attn1.to_out.0",
    "transformer_blocks.*.attn2.to_q",
    "transformer_blocks.*.attn2.to_k",
    "transformer_blocks.*.attn2.to_v",
    "transformer_blocks.*.attn2.to_out.0",
    "transformer_blocks.*.ff.net.0.proj",
    "transformer_blocks.*.ff.net.2",
)
"""All attention and MLP linears of the blocks. Modulation (adaLN) layers, embedders and the final projection stay
untouched."""

MICRO_CONDITIONED_CELLS = 128
"""PixArtAlphaPipeline tells resolution and aspect ratio to models of this ``sample_size``, 1024 pixels, alone."""


class PixArt(DiffusersFamily, ABC):
    """A PixArt pipeline, frozen, behind the family contract."""

    backbone_name = "transformer"
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = ("prompt_embeds", "prompt_attention_mask")
    block_stacks: ClassVar = ("transformer_blocks",)
    max_text_tokens: ClassVar[int]
    """The pipeline's default."""

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, self.max_text_tokens)

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

        The table entry is floor(t T). A tap's value is the block's output, (b, tokens, width), rows of patches first.
        """
        height, width = x_t.shape[-2:]
        self._check_size(height, width, self._backbone.config.patch_size, "latent cells")
        total = self._pipeline.scheduler.config.num_train_timesteps
        steps = (times[:, 0].double() * total).floor().long().clamp(0, total - 1)
        latents = x_t.to(self.device, self._backbone.dtype)
        with self._captured(taps) as features:
            output = self._backbone(
                latents,
                encoder_hidden_states=conditioning.tensors["prompt_embeds"],
                encoder_attention_mask=conditioning.tensors["prompt_attention_mask"],
                timestep=steps.to(self.device),
                added_cond_kwargs=self._size_conditions(latents, conditioning),
                return_dict=False,
            )[0]
        return Prediction(prediction=output[:, : latents.shape[1]], taps=features)

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`."""
        self._require_backbone(component)
        return list(ADAPTER_TARGETS)

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`: the scheduler's own table and prediction type."""
        config = self._pipeline.scheduler.config
        schedule = NoiseSchedule(
            steps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            kind=config.beta_schedule,
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        )
        return VariancePreserving(schedule, config.prediction_type)

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`: none."""
        return None

    def default_time_law(self) -> Literal["logit_normal", "uniform"]:
        """See :meth:`Family.default_time_law`."""
        return "uniform"

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {
            "max_sequence_length": self.max_sequence_length,
            "clean_caption": False,
            "use_resolution_binning": False,
        }

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`."""
        return noise.to(self.device, self._backbone.dtype)

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

    def _size_conditions(
        self, latents: Float[Tensor, "b c h w"], conditioning: Conditioning
    ) -> dict[str, Tensor | None]:
        """``added_cond_kwargs`` of the transformer; none by default."""
        return {"resolution": None, "aspect_ratio": None}

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """raw * scale: the pipelines read no shift factor."""
        return raw * self._vae.config.scaling_factor

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return latents / self._vae.config.scaling_factor

    def _check_parts(self) -> None:
        super()._check_parts()
        transformer = self._pipeline.transformer
        channels, latent = transformer.config.in_channels, self._pipeline.vae.config.latent_channels
        if not isinstance(transformer, PixArtTransformer2DModel):
            raise ModelError(f"{self._source}: the transformer is a {type(transformer).__name__}, not PixArt's")
        if channels != latent:
            raise ModelError(
                f"{self._source}: the transformer takes {channels} channels, the autoencoder gives {latent}; only "
                "text-to-image models are supported"
            )
        config = self._pipeline.scheduler.config
        kind, prediction = config.get("beta_schedule"), config.get("prediction_type")
        known, predictions = get_args(BetaSchedule), get_args(PredictionType)
        if config.get("trained_betas") is not None or kind not in known or prediction not in predictions:
            raise ModelError(
                f"{self._source}: a scheduler with beta_schedule '{kind}' and prediction_type '{prediction}' is not "
                f"supported; beta_schedule may be {' or '.join(known)}, prediction_type {', '.join(predictions)}, and "
                "trained_betas null (scheduler/scheduler_config.json)"
            )


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

    def _size_conditions(
        self, latents: Float[Tensor, "b c h w"], conditioning: Conditioning
    ) -> dict[str, Tensor | None]:
        """Those of the conditioning; without any those of the picture itself, as in the pipeline."""
        if self._backbone.config.sample_size != MICRO_CONDITIONED_CELLS:
            return super()._size_conditions(latents, conditioning)
        if "resolution" in conditioning.tensors:
            return {name: conditioning.tensors[name] for name in ("resolution", "aspect_ratio")}
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
