"""What the U-Net families (Stable Diffusion 1, 2 and XL) do alike: a table of noise levels, blocks, targets."""

from abc import ABC
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import EulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities, Conditioning, Prediction
from flowgrain.families.diffusers_family import Configs, DiffusersFamily
from flowgrain.flow.paths import Path
from flowgrain.flow.time_laws import LinearShift
from flowgrain.flow.variance_preserving import BetaSchedule, NoiseSchedule, PredictionType, VariancePreserving

UNET = "unet"
LINEAR_TARGETS = (
    *(f"*.transformer_blocks.*.{attention}.{layer}" for attention in ("attn1", "attn2") for layer in
      ("to_q", "to_k", "to_v", "to_out.0")),
    "*.transformer_blocks.*.ff.net.0.proj",
    "*.transformer_blocks.*.ff.net.2",
    "*.attentions.*.proj_in",
    "*.attentions.*.proj_out",
)  # fmt: skip
"""All linears of the transformers inside the U-Net: what kohya's LoRA adapts (Transformer2DModel)."""

RESNET_TARGETS = ("*.resnets.*.time_emb_proj", "*.resnets.*.conv_shortcut")
CONVOLUTION_TARGETS = ("*.resnets.*.conv1", "*.resnets.*.conv2", "*.downsamplers.*.conv", "*.upsamplers.*.conv")
"""What LoCon adds (ResnetBlock2D, Downsample2D, Upsample2D). The two of RESNET_TARGETS are linear or 1x1 and take
the linear rank, as in kohya's trainer."""

TEXT_TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
"""CLIPAttention and CLIPMLP."""

MID_BLOCK = "mid_block"
RESCALED = "rescale_betas_zero_snr"
"""diffusers' name for zero terminal SNR in the configuration of schedulers that know it."""
ROUNDING = 1e-5
"""How far a scheduler's float32 table may be from the exact one. Cutting zero terminal SNR at 2^-24 is within it."""


class UNetFamily(DiffusersFamily, ABC):
    """A U-Net that predicts noise, v or x0 at a table of noise levels."""

    backbone_name = UNET
    block_stacks: ClassVar = ("down_blocks", "up_blocks")

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`; sides are multiples of what the U-Net halves evenly."""
        unet, vae = configs["unet"], configs["vae"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        side = unet["sample_size"]
        return Capabilities(
            guidance="classifier_free",
            pixel_multiple=scale * 2 ** (len(unet["block_out_channels"]) - 1),
            latent_channels=vae["latent_channels"],
            latent_scale=scale,
            native_size=scale * (side if isinstance(side, int) else max(side)),
        )

    def blocks(self) -> list[nn.Module]:
        """See :meth:`Family.blocks`: down, middle, up."""
        unet = self._backbone
        return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`: the scheduler's own table and prediction type."""
        return VariancePreserving(self._schedule(), self._pipeline.scheduler.config.prediction_type)

    def override_path(self, prediction: PredictionType | None, zero_terminal_snr: bool | None) -> None:
        """See :meth:`Family.override_path`: the scheduler is made anew.

        One that does not know zero terminal SNR becomes Euler's; sampling then begins at the last step ("trailing"), as
        Lin et al. (arXiv 2305.08891) have it.
        """
        scheduler = self._pipeline.scheduler
        changes: dict[str, Any] = {} if prediction is None else {"prediction_type": prediction}
        known = RESCALED in scheduler.config
        if zero_terminal_snr or (zero_terminal_snr is not None and known):
            changes[RESCALED] = zero_terminal_snr
        if zero_terminal_snr:
            changes["timestep_spacing"] = "trailing"
        kind = EulerDiscreteScheduler if zero_terminal_snr and not known else type(scheduler)
        self._pipeline.scheduler = kind.from_config(scheduler.config, **changes)
        self._check_noise_levels()

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`: none."""
        return None

    def default_time_law(self) -> Literal["logit_normal", "uniform"]:
        """See :meth:`Family.default_time_law`."""
        return "uniform"

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`."""
        if component in self.text_encoder_names:
            return list(TEXT_TARGETS)
        self._require_backbone(component)
        return list(LINEAR_TARGETS)

    def convolution_targets(self, component: str) -> list[str]:
        """See :meth:`Family.convolution_targets`."""
        if component in self.text_encoder_names:
            return super().convolution_targets(component)
        self._require_backbone(component)
        return [*RESNET_TARGETS, *CONVOLUTION_TARGETS]

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        times: Float[Tensor, "b g"],
        conditioning: Conditioning,
        taps: tuple[str, ...] = (),
    ) -> Prediction:
        """See :meth:`Family.predict`; taps name blocks, such as ``up_blocks.1`` or ``mid_block``.

        The table entry is floor(t T). A tap's value is the block's feature map as tokens, (b, rows x columns, width).
        """
        cells = self.capabilities.pixel_multiple // self.capabilities.latent_scale
        height, width = x_t.shape[-2:]
        self._check_size(height, width, cells, "latent cells")
        total = self._pipeline.scheduler.config.num_train_timesteps
        steps = (times[:, 0].double() * total).floor().long().clamp(0, total - 1)
        with self._captured(taps) as features:
            output = self._backbone(
                x_t.to(self.device, self._backbone.dtype),
                steps.to(self.device),
                encoder_hidden_states=conditioning.tensors["prompt_embeds"],
                **self._backbone_arguments(conditioning, x_t),
                return_dict=False,
            )[0]
        return Prediction(prediction=output, taps=features)

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`."""
        return noise.to(self.device, self._backbone.dtype)

    def _backbone_arguments(self, conditioning: Conditioning, x_t: Float[Tensor, "b c h w"]) -> dict[str, Any]:
        """What the U-Net reads beside noised latents, step and text; nothing by default."""
        return {}

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """raw * scale: these pipelines read no shift factor."""
        return raw * self._vae.config.scaling_factor

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return latents / self._vae.config.scaling_factor

    def _tapped(self, output: Any) -> Tensor:
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden.flatten(2).transpose(1, 2)

    def _block(self, tap: str) -> nn.Module:
        if tap == MID_BLOCK:
            return self._backbone.mid_block
        stack, _, index = tap.partition(".")
        blocks = getattr(self._backbone, stack) if stack in self.block_stacks else []
        if not index.isdigit() or int(index) >= len(blocks):
            last = len(self._backbone.down_blocks) - 1
            raise ModelError(
                f"tap '{tap}' is no block of {self._source}; it has down_blocks.0 to down_blocks.{last}, {MID_BLOCK}, "
                f"up_blocks.0 to up_blocks.{last}"
            )
        return blocks[int(index)]

    def _schedule(self) -> NoiseSchedule:
        config = self._pipeline.scheduler.config
        return NoiseSchedule(
            steps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            kind=config.beta_schedule,
            zero_terminal_snr=bool(config.get(RESCALED, False)),
        )

    def _check_parts(self) -> None:
        super()._check_parts()
        unet, vae = self._pipeline.unet.config, self._pipeline.vae.config
        if unet.in_channels != vae.latent_channels:
            raise ModelError(
                f"{self._source}: the U-Net takes {unet.in_channels} channels, the autoencoder gives "
                f"{vae.latent_channels}; only text-to-image models are supported (no inpainting or depth variants)"
            )
        if unet.time_cond_proj_dim is not None:
            raise ModelError(
                f"{self._source}: the U-Net takes the guidance scale as an input (a latent consistency model), which "
                "is not supported; train on the model that it was distilled from"
            )
        width = sum(getattr(self._pipeline, name).config.hidden_size for name in self.text_encoder_names)
        read = unet.cross_attention_dim
        if {width} != ({read} if isinstance(read, int) else set(read)):
            raise ModelError(
                f"{self._source}: the U-Net reads text of width {read}, {' and '.join(self.text_encoder_names)} give "
                f"{width}; these parts are of different models, give a complete diffusers folder"
            )
        self._check_noise_levels()

    def _check_noise_levels(self) -> None:
        """Raise ModelError unless the scheduler is the table of noise levels that its configuration says."""
        scheduler = self._pipeline.scheduler
        config, name = scheduler.config, type(scheduler).__name__
        kind, prediction = config.get("beta_schedule"), config.get("prediction_type")
        known, predictions = get_args(BetaSchedule), get_args(PredictionType)
        if config.get("trained_betas") is not None or kind not in known or prediction not in predictions:
            raise ModelError(
                f"{self._source}: {name} with beta_schedule '{kind}' and prediction_type '{prediction}' is not "
                f"supported; beta_schedule may be {' or '.join(known)}, prediction_type {', '.join(predictions)}, "
                "and trained_betas null (scheduler/scheduler_config.json)"
            )
        ours = self._schedule().alphas_cumprod()
        if not torch.allclose(scheduler.alphas_cumprod.double(), ours, rtol=0, atol=ROUNDING):
            raise ModelError(
                f"{self._source}: the noise levels of {name} are not those that its configuration says (it does not "
                "know rescale_betas_zero_snr, say); name a scheduler that does in model_index.json, such as "
                "EulerDiscreteScheduler"
            )
