"""The contract between the trainer and a backbone family.

A family loads an ordinary diffusers model, turns pixels and captions into what the backbone wants, predicts, and
gives back an ordinary diffusers pipeline. Latents travel unpacked, (b, c, h, w); packing, ids and guidance
embeddings are the family's own business.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.flow.paths import Path
from flowgrain.flow.time_laws import LinearShift
from flowgrain.flow.variance_preserving import PredictionType

Quantization = Literal["none", "int8", "nf4", "fp8"]
"""How the linear layers of a frozen backbone are stored: as they are, 8-bit integers, 4-bit normal floats, 8-bit
floats. Activations and adapters are not quantised."""


@dataclass(frozen=True)
class Capabilities:
    """What a model can be asked for."""

    guidance: Literal["embedded", "classifier_free", "none"]
    """``embedded``: guidance is an input of a distilled model (FLUX.1-dev)."""
    pixel_multiple: int
    """Image sides must be multiples of this many pixels."""
    latent_channels: int
    latent_scale: int
    """Pixels per latent cell and side (8 for f8 autoencoders)."""
    native_size: int = 1024
    """Side in pixels of the square pictures that the model was made for."""


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance of the autoencoder's posterior, before the model's shift and scale."""

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class TextEmbedding:
    """Everything the backbone reads of a caption, one row a caption, named as the family likes."""

    tensors: dict[str, Tensor]

    @staticmethod
    def stack(rows: list["TextEmbedding"]) -> "TextEmbedding":
        """Concatenate rows along the batch axis."""
        return TextEmbedding({name: torch.cat([row.tensors[name] for row in rows]) for name in rows[0].tensors})


@dataclass(frozen=True)
class SizeGeometry:
    """Sizes in pixels, (height, width) rows: of the slice in its source, the crop's top-left, the bucket."""

    original: Float[Tensor, "b 2"]
    crop: Float[Tensor, "b 2"]
    target: Float[Tensor, "b 2"]


@dataclass(frozen=True)
class ConditionInputs:
    """What conditioning is made of: captions or their cached embeddings, guidance, geometry."""

    captions: list[str] | None
    embedding: TextEmbedding | None
    guidance: float
    geometry: SizeGeometry | None = None
    grad: bool = False
    """Whether captions are encoded with gradient: a text encoder trains."""


@dataclass(frozen=True)
class Conditioning:
    """Ready conditioning of a micro-batch, on the model's device."""

    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Prediction:
    """The backbone's output, shaped as the latents, and the features of the taps asked for."""

    prediction: Float[Tensor, "b c h w"]
    taps: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CutCaptions:
    """Captions of which a model does not see the end."""

    limit: int
    """Tokens that it reads."""
    lengths: dict[str, int]
    """Tokens of each longer caption."""


class Family(ABC):
    """A loaded model of one architecture."""

    name: str
    capabilities: Capabilities
    backbone_name: str
    """The name of :meth:`backbone` among :meth:`components`."""

    @classmethod
    @abstractmethod
    def load(
        cls, model: str, dtype: torch.dtype, device: torch.device, quantization: Quantization = "none"
    ) -> "Family":
        """Load a diffusers folder or hub id, frozen and in eval mode; ``quantization`` is of :meth:`blocks` alone.

        Raises ModelError naming what is wrong, MissingExtraError where the quantisation's library is not installed.
        """

    @classmethod
    @abstractmethod
    def skeleton(cls, model: str, dtype: torch.dtype) -> "Family":
        """The model from its configuration files alone, every weight on the meta device: what forecasts run on.

        Raises ModelError naming what is wrong.
        """

    @classmethod
    @abstractmethod
    def read_capabilities(cls, model: str) -> Capabilities:
        """Capabilities from the configuration files alone; raises ModelError naming what is wrong."""

    def with_autoencoder(self, folder: FilePath) -> "Family":
        """This model over the autoencoder of ``folder``, of the same class, instead of its own.

        Raises ModelError for one that cannot be read or gives other channels than the backbone takes.
        """
        raise ModelError(f"a {self.name} model takes no other autoencoder; remove model.vae")

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The network that predicts."""

    @abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """Named modules that an adapter may be injected in, the backbone first."""

    @abstractmethod
    def encoders(self) -> dict[str, nn.Module]:
        """Autoencoder and text encoders by name: what an update over cached data does not need."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The backbone's repeated blocks: what is checkpointed, compiled and quantised, in running order."""

    @abstractmethod
    def gradient_checkpointing(self, enabled: bool) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again there; same gradients."""

    @abstractmethod
    def compile(self) -> None:
        """Compile each kind of repeated block once with torch.compile; equal to rounding."""

    @abstractmethod
    def offload_encoders(self) -> None:
        """Move :meth:`encoders` to the CPU; they come to the device when they are called.

        Calls of this class send them back afterwards. A pipeline's call leaves the last one that it used on the
        device, until this method is called again.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash of autoencoder and text-encoder weights and dtype: part of every cache key."""

    @abstractmethod
    def encode_pixels(self, pixels: Float[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior of images in [-1, 1], without gradient."""

    def encoding_of(self, height: int, width: int) -> str:
        """How pictures of a size are encoded where it is not in one whole pass: part of a posterior's cache key."""
        return ""

    @abstractmethod
    def latents(self, posterior: Posterior, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Sample the posterior with the given noise, then shift and scale: the model's x0."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images in [-1, 1] of latents in the model's scale, without gradient."""

    @abstractmethod
    def tokens(self, height: int, width: int) -> int:
        """Number of image tokens at a pixel size."""

    @abstractmethod
    def embed_text(self, captions: list[str]) -> TextEmbedding:
        """Embeddings of captions, without gradient."""

    @abstractmethod
    def cut_captions(self, captions: Iterable[str]) -> CutCaptions:
        """The captions that the text encoder giving the token sequence cuts: what follows is not seen."""

    @abstractmethod
    def condition(self, inputs: ConditionInputs) -> Conditioning:
        """Conditioning of a micro-batch."""

    @abstractmethod
    def predict(
        self,
        x_t: Float[Tensor, "b c h w"],
        times: Float[Tensor, "b g"],
        conditioning: Conditioning,
        taps: tuple[str, ...] = (),
    ) -> Prediction:
        """Run the backbone at noise levels ``times`` (t = 1 is noise)."""

    @abstractmethod
    def adapter_targets(self, component: str) -> list[str]:
        """Default linear (and 1x1) target modules of an adapter in ``component``, as peft suffix names."""

    def convolution_targets(self, component: str) -> list[str]:
        """Default targets among the convolutions larger than 1x1 (LoCon); raises ModelError where there are none."""
        raise ModelError(f"a {self.name} model has no convolutions to adapt in {component}; remove adapter.conv_rank")

    @abstractmethod
    def default_path(self) -> Path:
        """The probability path that the model was trained on."""

    def override_path(self, prediction: PredictionType | None, zero_terminal_snr: bool | None) -> None:
        """Take another prediction type or last noise level for the model's own, in pipelines too; None leaves it.

        For weights whose scheduler says otherwise than they were or are to be trained. Raises ModelError for a family
        without a table of noise levels.
        """
        raise ModelError(f"a {self.name} model predicts the velocity and has no table of noise levels; remove path")

    @abstractmethod
    def default_shift(self) -> LinearShift | None:
        """The resolution shift of the model's own scheduler, None where it has none."""

    def default_time_law(self) -> Literal["logit_normal", "uniform"]:
        """The kind of law of noise levels that the model was trained with."""
        return "logit_normal"

    @abstractmethod
    def pipeline(self, adapter: FilePath | None = None) -> Any:
        """The ordinary diffusers pipeline over these weights, with an adapter folder loaded into it."""

    @abstractmethod
    def pipeline_options(self) -> dict[str, Any]:
        """Call options that the pipeline needs for this model (for example ``max_sequence_length``)."""

    def guidance_options(self, guidance: float, pictures: int) -> dict[str, Any]:
        """Call options that draw ``pictures`` pictures with a guidance scale, in the pipeline's own meaning of it."""
        return {"guidance_scale": guidance}

    def pipeline_latents(self, noise: Float[Tensor, "b c h w"]) -> Tensor:
        """Initial noise as the pipeline's ``latents`` argument wants it; unchanged unless the family packs it."""
        return noise
