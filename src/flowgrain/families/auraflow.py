"""AuraFlow: rectified flow on a 4-channel latent, joint blocks of image and text, then blocks of one common stream.

The text encoder's states (Pile-T5, a UMT5) are set to zero after the caption's end; the transformer reads no mask. It
reads t itself, not t times 1000: the pipeline's timestep divided by 1000, rounded to the latents' dtype. Positions are
learned, a square of them, of which a picture takes the middle.
"""

from typing import Any, ClassVar

import torch
from diffusers import AuraFlowPipeline
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities, Conditioning, Prediction
from flowgrain.families.diffusers_family import Configs, DiffusersFamily
from flowgrain.families.flow_matching import check_scheduler, shift_of
from flowgrain.flow.paths import Path, RectifiedFlow
from flowgrain.flow.time_laws import LinearShift

ADAPTER_TARGETS = (
    # joint blocks: image stream, text stream
    "joint_transformer_blocks.*.attn.to_q",
    "joint_transformer_blocks.*.attn.to_k",
    "joint_transformer_blocks.*.attn.to_v",
    "joint_transformer_blocks.*.attn.to_out.0",
    "joint_transformer_blocks.*.attn.add_q_proj",
    "joint_transformer_blocks.*.attn.add_k_proj",
    "joint_transformer_blocks.*.attn.add_v_proj",
    "joint_transformer_blocks.*.attn.to_add_out",
    "joint_transformer_blocks.*.ff.linear_1",
    "joint_transformer_blocks.*.ff.linear_2",
    "joint_transformer_blocks.*.ff.out_projection",
    "joint_transformer_blocks.*.ff_context.linear_1",
    "joint_transformer_blocks.*.ff_context.linear_2",
    "joint_transformer_blocks.*.ff_context.out_projection",
    # single blocks
    "single_transformer_blocks.*.attn.to_q",
    "single_transformer_blocks.*.attn.to_k",
    "single_transformer_blocks.*.attn.to_v",
    "single_transformer_blocks.*.attn.to_out.0",
    "single_transformer_blocks.*.ff.linear_1",
    "single_transformer_blocks.*.ff.linear_2",
    "single_transformer_blocks.*.ff.out_projection",
)
"""All attention and MLP linears of both block types. Modulation (adaLN) layers, embedders and the final projection
stay untouched."""

MAX_TEXT_TOKENS = 256
"""The pipeline's default."""
MAX_NATIVE_SIZE = 1024
"""The pipeline's default size; the configuration's ``sample_size`` is that of an early stage of the training."""


class AuraFlow(DiffusersFamily):
    """An AuraFlowPipeline, frozen, behind the family contract."""

    name = "auraflow"
    pipeline_class = AuraFlowPipeline
    backbone_name = "transformer"
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = ("prompt_embeds",)
    block_stacks: ClassVar = ("joint_transformer_blocks", "single_transformer_blocks")

    def __init__(self, pipeline: AuraFlowPipeline, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, MAX_TEXT_TOKENS)

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        transformer, vae = configs["transformer"], configs["vae"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        multiple = scale * transformer["patch_size"]
        return Capabilities(
            guidance="classifier_free",
            pixel_multiple=multiple,
            latent_channels=vae["latent_channels"],
            latent_scale=scale,
            native_size=min(MAX_NATIVE_SIZE, multiple * _positions(transformer["pos_embed_max_size"])),
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
        """
        height, width = x_t.shape[-2:]
        patch, dtype = self._backbone.config.patch_size, self._backbone.dtype
        self._check_size(height, width, patch, "latent cells")
        scale = self._pipeline.scheduler.config.num_train_timesteps
        level = (times[:, 0].double() * scale).float() / 1000
        with self._captured(taps) as features:
            output = self._backbone(
                x_t.to(self.device, dtype),
                encoder_hidden_states=conditioning.tensors["prompt_embeds"],
                timestep=level.to(self.device, dtype),
                return_dict=False,
                attention_kwargs=None,
            )[0]
        tokens = (height // patch) * (width // patch)  # the common stream has the text and its registers first
        return Prediction(prediction=output, taps={tap: states[:, -tokens:] for tap, states in features.items()})

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

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`."""
        return noise.to(self.device, self._backbone.dtype)

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

    def _text_length(self) -> int:
        return self.max_sequence_length

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """raw * scale: the pipeline reads no shift factor."""
        return raw * self._vae.config.scaling_factor

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return latents / self._vae.config.scaling_factor

    def _tapped(self, output: Any) -> Tensor:
        return output[1] if isinstance(output, tuple) else output  # joint blocks: (text tokens, image tokens)

    def _check_size(self, height: int, width: int, multiple: int, unit: str) -> None:
        super()._check_size(height, width, multiple, unit)
        limit = _positions(self._backbone.config.pos_embed_max_size) * multiple
        if max(height, width) > limit:  # the transformer itself would take wrong positions
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
        check_scheduler(pipeline.scheduler, self._source)


def _positions(size: int) -> int:
    """Positions along one side of the square of ``size`` learned ones."""
    return int(size**0.5)
