"""Z-Image: rectified flow on the 16-channel latent of FLUX.1's autoencoder, one stream of image and text tokens.

The text is the layer before the last of Qwen3 for the caption as a user's message; only its own tokens are read. The
transformer counts time the other way, 0 for noise, and predicts x0 - noise: both are turned round here. It patches
latents itself. The pipeline's guidance scale counts from 0: pos + scale * (pos - neg), so 0 is none; Z-Image-Turbo is
distilled and drawn with 0.
"""

from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities, Conditioning, Prediction
from flowgrain.families.diffusers_family import Configs, DiffusersFamily
from flowgrain.families.flow_matching import check_scheduler, shift_of
from flowgrain.families.language_model_text import LENGTHS, PROMPT, padded, reading_digests
from flowgrain.flow.paths import Path, RectifiedFlow
from flowgrain.flow.time_laws import LinearShift

STACKS = ("noise_refiner", "context_refiner", "layers")
"""Blocks that image tokens pass alone, that text tokens pass alone, and that both pass together."""

ADAPTER_TARGETS = tuple(
    f"{stack}.*.{layer}"
    for stack in STACKS
    for layer in (
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    )
)
"""All attention and MLP linears of the blocks. Modulation (adaLN) layers, embedders and the final layer stay
untouched."""

MAX_TEXT_TOKENS = 512
"""The pipeline's default: longer captions are cut."""


class ZImage(DiffusersFamily):
    """A ZImagePipeline, frozen, behind the family contract."""

    name = "z-image"
    pipeline_class = ZImagePipeline
    backbone_name = "transformer"
    text_encoder_names: ClassVar = ("text_encoder",)
    tokenizer_names: ClassVar = ("tokenizer",)
    text_tensors: ClassVar = (PROMPT, LENGTHS)
    block_stacks: ClassVar = ("noise_refiner", "layers")

    def __init__(self, pipeline: ZImagePipeline, source: str):
        super().__init__(pipeline, source)
        self.max_sequence_length = MAX_TEXT_TOKENS

    @classmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """See :meth:`DiffusersFamily.capabilities_of`."""
        vae = configs["vae"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return Capabilities(
            guidance="classifier_free",
            pixel_multiple=2 * scale,
            latent_channels=vae["latent_channels"],
            latent_scale=scale,
            native_size=vae["sample_size"],
        )

    def blocks(self) -> list[nn.Module]:
        """See :meth:`Family.blocks`: the refiners of both streams, then the joint layers."""
        return [block for stack in STACKS for block in getattr(self._backbone, stack)]

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        times: Float[Tensor, "b g"],
        conditioning: Conditioning,
        taps: tuple[str, ...] = (),
    ) -> Prediction:
        """See :meth:`Family.predict`; taps name blocks that image tokens pass, such as ``layers.10``.

        A tap's value is the block's output for the image tokens, (b, tokens, width), rows of patches first.
        """
        height, width = x_t.shape[-2:]
        self._check_size(height, width, 2, "latent cells")
        tensors = conditioning.tensors
        captions = [row[:length] for row, length in zip(tensors[PROMPT], tensors[LENGTHS].tolist(), strict=True)]
        steps = times[:, 0].to(self.device, torch.float32) * 1000
        with self._captured(taps) as features:
            output = self._backbone(
                list(x_t.to(self.device, self._backbone.dtype).unsqueeze(2).unbind()),
                (1000 - steps) / 1000,
                captions,
                joint_attention_kwargs=None,
                return_dict=False,
            )[0]
        tokens = (height // 2) * (width // 2)  # before their padding and the text
        return Prediction(
            prediction=-torch.stack(output).squeeze(2), taps={tap: value[:, :tokens] for tap, value in features.items()}
        )

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

    def _text_length(self) -> int:
        return self.max_sequence_length

    def _check_parts(self) -> None:
        super()._check_parts()
        backbone, latent = self._pipeline.transformer, self._pipeline.vae.config.latent_channels
        if not isinstance(backbone, ZImageTransformer2DModel):
            raise ModelError(f"{self._source}: the transformer is a {type(backbone).__name__}, not Z-Image's")
        transformer: Any = backbone.config
        patches = (tuple(transformer.all_patch_size), tuple(transformer.all_f_patch_size))
        if transformer.in_channels != latent or patches != ((2,), (1,)):
            raise ModelError(
                f"{self._source}: the transformer takes {transformer.in_channels} channels in patches of {patches}, "
                f"the autoencoder gives {latent}; only text-to-image models with 2x2 patches are supported"
            )
        check_scheduler(self._pipeline.scheduler, self._source)
