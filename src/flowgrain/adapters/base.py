"""The contract between the trainer and an adapter: a trainable subspace of a frozen model's weights."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from flowgrain.config import Config

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""File name that diffusers' ``load_lora_weights(folder)`` looks for."""


class InitConfig(Config):
    """An adapter that training starts from."""

    path: Path = Field(
        description="run folder (its newest checkpoint), checkpoint folder, adapter folder or safetensors file"
    )
    mode: Literal["continue", "fuse"] = Field(
        default="continue",
        description="continue: its weights are trained further; fuse: it joins the base weights and a fresh adapter "
        "is trained on top",
    )
    alpha: float | None = Field(
        default=None, gt=0, description="the alpha it was trained with, for a file that does not say"
    )


class AdapterConfig(Config):
    """Which subspace is trained. The defaults are the paper's FLUX settings (Semantic Granularity Alignment)."""

    kind: Literal["lora", "dora"] = Field(
        default="dora", description="low-rank update, or one with trained row magnitudes"
    )
    rank: int = Field(
        default=32, gt=0, description="rank of the update, at most the smallest side of a target's weight"
    )
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dropout on the update's input; drawn from torch's global generator, hence above 0 a run is no "
        "longer independent of its micro-batch size",
    )
    targets: list[str] | None = Field(
        default=None,
        min_length=1,
        description="module names, their dotted suffixes, or patterns with *; None = the family's",
    )
    exclude: list[str] = Field(default_factory=list, description="targets left out, named as targets are")
    ranks: dict[str, Annotated[int, Field(gt=0)]] = Field(
        default_factory=dict, description="rank of the layers that a name or pattern means, in place of rank"
    )
    alphas: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="alpha of the layers that a name or pattern means, in place of alpha"
    )
    init_from: InitConfig | None = Field(default=None, description="an adapter to start from; None = a fresh one")
    component: str = Field(default="transformer", description="module of the family that is adapted")


class Adapter(ABC):
    """Injected in a family's component: the family's predictions go through it and gradients reach it.

    Trainable parameters are float32 whatever the model's dtype. Names are those of the saved file.
    """

    config: AdapterConfig

    @abstractmethod
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and trainable parameters, always in the same order."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the parameters by name, on CPU."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set all parameters; raises CheckpointError naming what is missing, unexpected or of another shape."""

    @abstractmethod
    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write what the family's diffusers pipeline loads; ``metadata`` joins the file's header."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Set all parameters from a folder of :meth:`save`; raises CheckpointError where it does not fit."""

    @abstractmethod
    def train(self, mode: bool = True) -> None:
        """Switch the adapter's dropout on or off; it is on after injection and must be off for sampling."""

    @abstractmethod
    def enabled(self, mode: bool) -> AbstractContextManager[None]:
        """A context in which the adapter acts or does not."""

    @abstractmethod
    def merge(self) -> None:
        """Add the update to the base weights for good and take the adapter out."""

    @abstractmethod
    def remove(self) -> None:
        """Take the adapter out; the base weights are as right after injection."""
