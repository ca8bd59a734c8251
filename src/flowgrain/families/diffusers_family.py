"""What all families do alike: everything that an ordinary diffusers pipeline already defines.

A family's own file names its pipeline class and backbone, says what may be asked of the model, how a caption becomes
tensors, and how the backbone is called. All else is here, on the loaded pipeline's own parts.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.families.autoencoder import encoding_of, set_tiling
from flowgrain.families.base import (
    Capabilities,
    Conditioning,
    ConditionInputs,
    CutCaptions,
    Family,
    Posterior,
    Prediction,
    Quantization,
    TextEmbedding,
)
from flowgrain.families.fingerprint import module_digest, tokenizer_digest
from flowgrain.families.loading import (
    load_adapter,
    load_component,
    load_pipeline,
    quiet_libraries,
    read_configs,
    skeleton_component,
    skeleton_pipeline,
)
from flowgrain.families.offload import EncoderOffload
from flowgrain.families.peft_layers import carries_adapter
from flowgrain.families.pipeline_parts import refuse_incomplete, refuse_other_backbone, refuse_other_channels
from flowgrain.families.quantization import quantize_linears
from flowgrain.families.taps import captured
from flowgrain.families.token_counts import cut_captions

Configs = Mapping[str, Mapping[str, Any]]
"""Part name -> its configuration: of the diffusers models and the scheduler."""


class DiffusersFamily(Family):
    """A diffusers pipeline, frozen, behind the family contract."""

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    backbone_name: str
    backbone_class: ClassVar[type[nn.Module]]
    text_encoder_names: ClassVar[tuple[str, ...]]
    """Parts that read captions, in the order in which the pipeline calls them."""
    tokenizer_names: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]] = ()
    """Optional parts of the pipeline that are not loaded (a safety checker)."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Text encoders and tokenizers that a folder may lack (the T5 of Stable Diffusion 3)."""
    text_tensors: ClassVar[tuple[str, ...]]
    """Names of what :meth:`_encode_caption` gives."""
    block_stacks: ClassVar[tuple[str, ...]]
    """Attributes of the backbone that hold its repeated blocks, in running order."""
    backbone_targets: ClassVar[tuple[str, ...]]
    """Layers of the backbone that an adapter takes where nothing else is asked for."""
    shifts_latents: ClassVar[bool] = True
    """Whether the pipeline reads the autoencoder's shift factor."""

    def __init__(self, pipeline: Any, source: str):
        self._pipeline = pipeline
        self._source = source
        self._check_parts()
        self._backbone: Any = getattr(pipeline, self.backbone_name)
        self._vae = pipeline.vae
        set_tiling(self._vae, "auto", source)
        for module in (self._backbone, *self.encoders().values()):
            module.requires_grad_(False).eval()
        configs = {name: part.config for name, part in pipeline.components.items() if isinstance(part, ConfigMixin)}
        self.capabilities = self.capabilities_of(configs)
        self._fingerprint: str | None = None
        self._offload: EncoderOffload | None = None

    @classmethod
    @abstractmethod
    def capabilities_of(cls, configs: Configs) -> Capabilities:
        """What a model with these configurations can be asked for; raises KeyError for an incomplete one."""

    @abstractmethod
    def _encode_caption(self, captions: list[str]) -> dict[str, Tensor]:
        """Everything the backbone reads of captions, by the names of ``text_tensors``; with gradient where it is on."""

    @abstractmethod
    def _predicted(self, latents: Tensor, times: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The backbone's prediction (b, c, h, w) of latents in its dtype, at times (b, g), with the conditioning's."""

    @classmethod
    def load(
        cls, model: str, dtype: torch.dtype, device: torch.device, quantization: Quantization = "none"
    ) -> "DiffusersFamily":
        """See :meth:`Family.load`."""
        family = cls(load_pipeline(cls.pipeline_class, model, dtype, cls.left_out, cls.optional_parts), model)
        quantize_linears(family.blocks(), quantization, device)
        family._pipeline.to(device)
        return family

    @classmethod
    def skeleton(cls, model: str, dtype: torch.dtype) -> "DiffusersFamily":
        """See :meth:`Family.skeleton`."""
        family = cls(skeleton_pipeline(cls.pipeline_class, model, dtype, cls.left_out, cls.optional_parts), model)
        for name in family._there(cls.text_encoder_names):  # the default attention looks at the values of masks
            getattr(family._pipeline, name).set_attn_implementation("eager")
        return family

    @classmethod
    def read_capabilities(cls, model: str) -> Capabilities:
        """See :meth:`Family.read_capabilities`."""
        try:
            return cls.capabilities_of(read_configs(cls.pipeline_class, model))
        except KeyError as error:
            raise ModelError(f"{model}: its configuration files lack {error}; restore them") from None

    def with_autoencoder(self, folder: FilePath) -> "DiffusersFamily":
        """See :meth:`Family.with_autoencoder`; only shapes where this family's weights are on the meta device."""
        vae = (skeleton_component if self.device.type == "meta" else load_component)(folder, self._vae)
        parts = {**self._pipeline.components, "vae": vae}
        return type(self)(self.pipeline_class(**parts, **self._pipeline_settings()), self._source)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._backbone.device

    @property
    def backbone(self) -> nn.Module:
        """See :meth:`Family.backbone`."""
        return self._backbone

    def components(self) -> dict[str, nn.Module]:
        """See :meth:`Family.components`: the backbone, then the text encoders."""
        encoders = {name: getattr(self._pipeline, name) for name in self._there(self.text_encoder_names)}
        return {self.backbone_name: self._backbone, **encoders}

    def encoders(self) -> dict[str, nn.Module]:
        """See :meth:`Family.encoders`, in the order in which a pipeline calls them."""
        return {name: getattr(self._pipeline, name) for name in (*self._there(self.text_encoder_names), "vae")}

    def blocks(self) -> list[nn.Module]:
        """See :meth:`Family.blocks`."""
        return [block for stack in self.block_stacks for block in getattr(self._backbone, stack)]

    def gradient_checkpointing(self, enabled: bool) -> None:
        """See :meth:`Family.gradient_checkpointing`."""
        if enabled:
            self._backbone.enable_gradient_checkpointing()
        else:
            self._backbone.disable_gradient_checkpointing()

    def compile(self) -> None:
        """See :meth:`Family.compile`; what diffusers names, else :meth:`blocks`."""
        if self._backbone._repeated_blocks:
            self._backbone.compile_repeated_blocks()
            return
        for block in self.blocks():
            block.compile()

    def offload_encoders(self) -> None:
        """See :meth:`Family.offload_encoders`."""
        if self._offload is None:
            self._offload = EncoderOffload(list(self.encoders().values()), self.device)
        self._offload.park()

    def fingerprint(self) -> str:
        """See :meth:`Family.fingerprint`; covers the tokenizers and the text length too."""
        if self._fingerprint is None:
            parts = self.encoders()
            weights = module_digest({name: parts[name] for name in ("vae", *self._there(self.text_encoder_names))})
            texts = "-".join(self._tokenizer_digests())
            self._fingerprint = f"{self.name}-{weights}-{texts}-{self._text_length()}"
        return self._fingerprint

    @torch.no_grad()
    def encode_pixels(self, pixels: Float[Tensor, "b 3 h w"]) -> Posterior:
        """See :meth:`Family.encode_pixels`; one image a call, so that an image's bits do not depend on its batch."""
        self._check_size(pixels.shape[-2], pixels.shape[-1], self.capabilities.pixel_multiple, "pixels")
        rows = pixels.to(self.device, self._vae.dtype).split(1)
        with self._parked_after():
            posteriors = [self._encoded(row) for row in rows]
        mean, logvar = (torch.cat(parts).float() for parts in zip(*posteriors, strict=True))
        return Posterior(mean, logvar)

    def encoding_of(self, height: int, width: int) -> str:
        """See :meth:`Family.encoding_of`."""
        return encoding_of(self._vae, height, width)

    def latents(self, posterior: Posterior, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """See :meth:`Family.latents`: mean + exp(logvar / 2) noise, normalised as the pipeline undoes it."""
        return self._normalised(posterior.mean + torch.exp(0.5 * posterior.logvar) * noise)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """See :meth:`Family.decode`; one image a call."""
        rows = self._denormalised(latents).to(self.device, self._vae.dtype).split(1)
        with self._parked_after():
            return torch.cat([self._decoded(row) for row in rows]).float()

    def tokens(self, height: int, width: int) -> int:
        """See :meth:`Family.tokens`: a token for each square of ``pixel_multiple`` pixels."""
        multiple = self.capabilities.pixel_multiple
        self._check_size(height, width, multiple, "pixels")
        return (height // multiple) * (width // multiple)

    @torch.no_grad()
    def embed_text(self, captions: list[str]) -> TextEmbedding:
        """See :meth:`Family.embed_text`; one caption a call, so that its bits do not depend on its batch."""
        with self._parked_after():
            return TextEmbedding.stack([self._embedded(caption) for caption in captions])

    def cut_captions(self, captions: Iterable[str]) -> CutCaptions:
        """See :meth:`Family.cut_captions`; of several text encoders the last gives the sequence."""
        tokenizer = getattr(self._pipeline, self._there(self.tokenizer_names)[-1])
        return cut_captions(tokenizer, captions, self._text_length())

    def condition(self, inputs: ConditionInputs) -> Conditioning:
        """See :meth:`Family.condition`: what the captions give, then what else the model reads."""
        if inputs.captions is not None and inputs.embedding is None:
            with torch.set_grad_enabled(inputs.grad and torch.is_grad_enabled()):
                text = TextEmbedding.stack([self._embedded(caption) for caption in inputs.captions])
        elif inputs.embedding is not None and inputs.captions is None:
            text = inputs.embedding
        else:
            raise ValueError("conditioning is made of either captions or embeddings, give exactly one of them")
        tensors = {name: self._placed(text.tensors[name]) for name in self.text_tensors}
        return Conditioning({**tensors, **self._extra_conditioning(inputs, len(tensors[self.text_tensors[0]]))})

    def pipeline(self, adapter: FilePath | None = None) -> Any:
        """See :meth:`Family.pipeline`. The pipeline shares this family's weights, and a live adapter with them.

        The folder's adapter stays in the weights until ``unload_adapter``. Raises ModelError when a live
        adapter is in place already, or when the folder cannot be read.
        """
        pipe = self.pipeline_class(**self._pipeline.components, **self._pipeline_settings())
        pipe.set_progress_bar_config(disable=True)
        if adapter is not None:
            if any(carries_adapter(part) for part in self.components().values()):
                raise ModelError(f"{adapter}: the model carries an adapter already; remove it before loading another")
            load_adapter(pipe, adapter)
        return pipe

    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        times: Float[Tensor, "b g"],
        conditioning: Conditioning,
        taps: tuple[str, ...] = (),
    ) -> Prediction:
        """See :meth:`Family.predict`; taps name blocks, such as ``transformer_blocks.10``.

        A tap's value is the block's output for the image tokens, (b, tokens, width), rows first; of a U-Net its map.
        """
        cells = self.capabilities.pixel_multiple // self.capabilities.latent_scale
        height, width = x_t.shape[-2:]
        self._check_size(height, width, cells, "latent cells")
        with captured({tap: self._block(tap) for tap in taps}, self._tapped) as features:
            prediction = self._predicted(x_t.to(self.device, self._backbone.dtype), times, conditioning.tensors)
        tokens = (height // cells) * (width // cells)
        return Prediction(prediction, {tap: self._image_tokens(value, tokens) for tap, value in features.items()})

    def adapter_targets(self, component: str) -> list[str]:
        """See :meth:`Family.adapter_targets`: ``backbone_targets``."""
        self._require_backbone(component)
        return list(self.backbone_targets)

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {}

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """See :meth:`Family.pipeline_latents`: on the model's device, in its dtype."""
        return noise.to(self.device, self._backbone.dtype)

    def _check_parts(self) -> None:
        """Raise ModelError for a pipeline that lacks a part or has another backbone; families add what must fit."""
        needed = (self.backbone_name, *self.encoders_needed(), *self.tokenizer_names, "scheduler")
        names = [name for name in needed if name not in self.optional_parts]
        refuse_incomplete(self._pipeline, names, self.name, self._source)
        refuse_other_backbone(self._pipeline, self.backbone_name, self.backbone_class, self.name, self._source)

    def _check_channels(self, latent: int, packed: int = 1) -> None:
        """Raise ModelError unless the backbone takes ``packed`` cells of ``latent`` channels, nothing more."""
        backbone = self._pipeline.components[self.backbone_name]
        refuse_other_channels(self.backbone_name, backbone.config["in_channels"], latent, packed, self._source)

    def _there(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``names`` that this model has."""
        return tuple(name for name in names if getattr(self._pipeline, name) is not None)

    @classmethod
    def encoders_needed(cls) -> tuple[str, ...]:
        """Names of the parts of :meth:`encoders`."""
        return (*cls.text_encoder_names, "vae")

    def _extra_conditioning(self, inputs: ConditionInputs, rows: int) -> dict[str, Tensor]:
        """What the backbone reads beside the captions (guidance, sizes), for ``rows`` captions; nothing by default."""
        return {}

    def _placed(self, tensor: Tensor) -> Tensor:
        """A text tensor on the model's device; floating point in the backbone's dtype."""
        dtype = self._backbone.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype)

    def _pipeline_settings(self) -> dict[str, Any]:
        """Constructor arguments of the pipeline besides its parts."""
        return {}

    def _embedded(self, caption: str) -> TextEmbedding:
        """One caption's embedding. That it may be cut is told once for all captions, not here by the libraries."""
        with quiet_libraries():
            return TextEmbedding(self._encode_caption([caption]))

    def _tokenizer_digests(self) -> list[str]:
        """Short hashes of what turns captions into token ids: part of the fingerprint."""
        return [tokenizer_digest(getattr(self._pipeline, name)) for name in self._there(self.tokenizer_names)]

    def _text_length(self) -> int:
        """Tokens of a caption's embedding: part of the fingerprint."""
        return min(getattr(self._pipeline, name).model_max_length for name in self.tokenizer_names)

    def _encoded(self, pixels: Float[Tensor, "1 3 height width"]) -> tuple[Tensor, Tensor]:
        """The autoencoder's mean and log-variance (1, c, h, w) of one picture."""
        posterior = self._vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar

    def _decoded(self, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 3 height width"]:
        """The autoencoder's picture of one latent in its own scale."""
        return self._vae.decode(latents, return_dict=False)[0]

    def _normalised(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The autoencoder's latents in the model's scale: (raw - shift) * scale."""
        return (raw - self._latent_shift()) * self._vae.config.scaling_factor

    def _denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The inverse of :meth:`_normalised`."""
        return latents / self._vae.config.scaling_factor + self._latent_shift()

    def _latent_shift(self) -> float:
        return (self._vae.config.shift_factor or 0.0) if self.shifts_latents else 0.0

    @contextmanager
    def _parked_after(self) -> Iterator[None]:
        """Send offloaded encoders back to the CPU after the block, which may have called them."""
        try:
            yield
        finally:
            if self._offload is not None:
                self._offload.park()

    def _check_size(self, height: int, width: int, multiple: int, unit: str) -> None:
        if height % multiple or width % multiple or min(height, width) <= 0:
            raise ModelError(
                f"height {height} and width {width} {unit} must be positive multiples of {multiple} for {self.name}; "
                "choose other bucket sizes"
            )
        positions = self._positions()
        if positions is not None and max(height, width) > positions * multiple:
            raise ModelError(
                f"height {height} and width {width} {unit} must be at most {positions * multiple}, as many as "
                f"{self._source} has positions for; choose smaller buckets"
            )

    def _positions(self) -> int | None:
        """Learned positions along a side, in tokens; None where positions are computed."""
        return None

    def _tapped(self, output: Any) -> Tensor:
        """The tokens (b, n, width) of a block's output, which is alone or (text tokens, image tokens)."""
        return output[-1] if isinstance(output, tuple) else output

    def _image_tokens(self, tapped: Tensor, tokens: int) -> Tensor:
        """Those of the image among a block's tokens: after the text, where there is any."""
        return tapped[:, -tokens:]

    def _block(self, tap: str) -> nn.Module:
        stacks = {name: getattr(self._backbone, name) for name in self.block_stacks}
        stack, _, index = tap.partition(".")
        if stack not in stacks or not index.isdigit() or int(index) >= len(stacks[stack]):
            ranges = ", ".join(f"{name}.0 to {name}.{len(blocks) - 1}" for name, blocks in stacks.items())
            raise ModelError(f"tap '{tap}' is no block of {self._source}; it has {ranges}")
        return stacks[stack][int(index)]

    def _require_backbone(self, component: str) -> None:
        """Raise ModelError for a component that the family has no default targets in."""
        if component != self.backbone_name:
            raise ModelError(
                f"a {self.name} model has no component '{component}' to adapt; it has: {self.backbone_name}"
            )
