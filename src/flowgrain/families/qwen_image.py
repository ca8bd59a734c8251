"""Qwen-Image: rectified flow on packed 2x2 patches of a 16-channel latent, blocks of an image and a text stream.

The text stream is the last layer of Qwen2.5-VL for a fixed template around the caption, without the template's own
first tokens. The autoencoder is a video one: a picture is one frame, and its latents are normalised by a mean and a
deviation of each channel. Guidance is without a classifier (``true_cfg_scale`` with a negative prompt), and the guided
prediction is scaled back to the norm of the conditional one.

The scheduler ends its sigmas at ``shift_terminal`` (0.02) by stretching them: a matter of its last step. Training
keeps the shift alone, whose law has next to nothing below that level.
"""

from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities
from flowgrain.families.block_layers import JOINT_ATTENTION, in_blocks
from flowgrain.families.diffusers_family import Configs
from flowgrain.families.flow_matching import FlowMatchingFamily
from flowgrain.families.language_model_text import LENGTHS, PROMPT, padded, reading_digests

ADAPTER_TARGETS = (
    *in_blocks("transformer_blocks", *JOINT_ATTENTION),
    *in_blocks("transformer_blocks", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
)
"""All attention and MLP linears of the blocks. Modulation layers, embedders and the final projection stay untouched."""

MAX_TEXT_TOKENS = 512
"""The pipeline's default: longer captions are cut."""

NATIVE_SIZE = 1024
"""The pipeline's default side; no configuration file of the model names one."""

NEGATIVE_PROMPT = " "
"""What the model is guided away from where nothing is asked for (the model's own examples)."""


class QwenImage(FlowMatchingFamily):
    """A QwenImagePipeline, frozen, behind the family contract."""

    name = "qwen-image"
    pipeline_class = QwenImagePipeline
    backbone_name = "transformer"
    backbone_class = QwenImageTransformer2DModel
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = (PROMPT, LENGTHS)
    block_stacks: ClassVar = ("transformer_blocks",)
    backbone_targets: ClassVar = ADAPTER_TARGETS

    def __init__(self, pipeline: QwenImagePipeline, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = MAX_TEXT_TOKENS

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        vae = configs["vae"]
        scale = 2 ** len(vae["temperal_downsample"])
        return Capabilities(
            guidance="classifier_free",
            pixel_multiple=2 * scale,
            latent_channels=vae["z_dim"],
            latent_scale=scale,
            native_size=NATIVE_SIZE,
        )

    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        height, width = latents.shape[-2:]
        prompt, mask = self._text(tensors)
        output = self._backbone(
            hidden_states=self._pack(latents),
            timestep=self._rounded_level(times),
            guidance=None,
            encoder_hidden_states_mask=mask,
            encoder_hidden_states=prompt,
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            attention_kwargs={},
            return_dict=False,
        )[0]
        scale = self.capabilities.latent_scale
        return QwenImagePipeline._unpack_latents(output, height * scale, width * scale, scale).squeeze(2)

    def guidance_options(self, guidance: float, pictures: int) -> dict[str, Any]:
        """See :meth:`Family.guidance_options`: above 1 with an empty negative prompt a picture."""
        if guidance <= 1:
            return {"true_cfg_scale": 1.0}
        return {"true_cfg_scale": guidance, "negative_prompt": [NEGATIVE_PROMPT] * pictures}

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """See :meth:`Family.pipeline_latents`: packed."""
        return self._pack(super().pipeline_latents(noise))

    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """The last layer's states after the template's beginning, as the pipeline's; it cannot run on a skeleton."""
        pipeline, (caption,) = self._pipeline, captions
        beginning = pipeline.prompt_template_encode_start_idx
        tokens = pipeline.tokenizer(
            [pipeline.prompt_template_encode.format(caption)],
            max_length=pipeline.tokenizer_max_length + beginning,
            truncation=True,
            return_tensors="pt",
        )
        states = pipeline.text_encoder(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            output_hidden_states=True,
        ).hidden_states[-1]
        return padded(states[:, beginning:], self.max_sequence_length)

    def _text(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """States up to the longest caption's end, and which of them are captions' own, None where all are."""
        lengths = tensors[LENGTHS]
        longest = int(lengths.max())
        prompt = tensors[PROMPT][:, :longest]
        if bool((lengths == longest).all()):
            return prompt, None
        return prompt, (torch.arange(longest) < lengths[:, None]).long().to(self.device)

    def _placed(self, tensor: Tensor) -> Tensor:
        return super()._placed(tensor) if tensor.is_floating_point() else tensor.cpu()  # lengths decide shapes

    def _tokenizer_digests(self) -> list[str]:
        return reading_digests(self._pipeline.tokenizer, self._pipeline.prompt_template_encode)

    def _encoded(self, pixels: Float[Tensor, "1 3 height width"]) -> tuple[Tensor, Tensor]:
        posterior = self._vae.encode(pixels.unsqueeze(2)).latent_dist
        return posterior.mean.squeeze(2), posterior.logvar.squeeze(2)

    def _decoded(self, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 3 height width"]:
        return self._vae.decode(latents.unsqueeze(2), return_dict=False)[0].squeeze(2)

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(raw - mean) / deviation, channel by channel."""
        mean, std = self._channel_statistics(raw)
        return (raw - mean) / std

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean, std = self._channel_statistics(latents)
        return latents * std + mean

    def _channel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self._vae.config
        mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        return mean.view(1, -1, 1, 1).to(like), std.view(1, -1, 1, 1).to(like)

    def _pack(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return QwenImagePipeline._pack_latents(latents, *latents.shape)

    def _check_parts(self) -> None:
        super()._check_parts()
        self._check_channels(self._pipeline.vae.config.z_dim, packed=4)
        transformer = self._pipeline.transformer.config
        if transformer.guidance_embeds or transformer.use_additional_t_cond:
            raise ModelError(
                f"{self._source}: the transformer reads a guidance scale or a second condition beside the text "
                "(guidance_embeds, use_additional_t_cond); only text-to-image models are supported"
            )
