"""The contract between the trainer and an adapter: a trainable subspace of a frozen model's weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from flowgrain.config import Config, without_nulls
from flowgrain.errors import CheckpointError

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""File name that diffusers' ``load_lora_weights(folder)`` looks for."""
FULL_NAME = "full.json"
"""File that marks the folder of fully fine-tuned components and names them."""


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


class TextEncoderAdapterConfig(Config):
    """Text encoders that train beside the backbone; whatever is left out is as for the backbone."""

    names: list[str] | None = Field(
        default=None, min_length=1, description="parts of the model; null: all text encoders that can be adapted"
    )
    rank: int | None = Field(default=None, gt=0, description="null: adapter.rank")
    alpha: float | None = Field(default=None, gt=0, description="null: adapter.alpha")
    targets: list[str] | None = Field(
        default=None, min_length=1, description="layers, named as adapter.targets are; null: the family's"
    )


class AdapterConfig(Config):
    """Which subspace is trained. The defaults are the paper's FLUX settings (Semantic Granularity Alignment)."""

    kind: Literal["lora", "dora", "full"] = Field(
        default="dora",
        description="low-rank update, one with trained row magnitudes, or the weights themselves",
    )
    rank: int = Field(
        default=32, gt=0, description="rank of the update, at most the smallest side of a target's weight"
    )
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")
    conv_rank: int | None = Field(
        default=None, gt=0, description="rank of convolutions larger than 1x1 (LoCon); null: they are not adapted"
    )
    conv_alpha: float | None = Field(
        default=None, gt=0, description="alpha of these convolutions; null: scaled as the linear layers are"
    )
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
    ranks: Annotated[dict[str, Annotated[int, Field(gt=0)]], BeforeValidator(without_nulls)] = Field(
        default_factory=dict, description="rank of the layers that a name or pattern means, in place of rank"
    )
    alphas: Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(without_nulls)] = Field(
        default_factory=dict, description="alpha of the layers that a name or pattern means, in place of alpha"
    )
    init_from: InitConfig | None = Field(default=None, description="an adapter to start from; None = a fresh one")
    component: str | None = Field(default=None, description="the backbone's name; null says the same of any family")
    text_encoders: TextEncoderAdapterConfig | None = Field(
        default=None, description="text encoders that train as well; null: they stay frozen"
    )

    @property
    def resolved_conv_alpha(self) -> float | None:
        """Alpha of convolutions larger than 1x1, None where they are not adapted."""
        if self.conv_rank is None:
            return None
        return self.conv_alpha or self.alpha * self.conv_rank / self.rank

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "AdapterConfig":
        # compared by value: the resolved recipe of a run spells out every key and must stay valid
        if self.conv_alpha is not None and self.conv_rank is None:
            raise ValueError("adapter.conv_alpha is not read without adapter.conv_rank: set that too, or remove it")
        if self.kind != "full":
            return self
        sections: list[tuple[str, Config]] = [("adapter", self)]
        if self.text_encoders is not None:
            sections.append(("adapter.text_encoders", self.text_encoders))
        for section, values in sections:
            for key in _LOW_RANK_KEYS & type(values).model_fields.keys():
                if getattr(values, key) != type(values).model_fields[key].get_default(call_default_factory=True):
                    raise ValueError(f"{section}.{key} is not read by kind full, which trains all weights: remove it")
        if self.init_from is not None and self.init_from.mode == "continue" and self.init_from.alpha is not None:
            raise ValueError("adapter.init_from.alpha is not read where whole weights are continued: remove it")
        return self


_LOW_RANK_KEYS = frozenset(
    ("rank", "alpha", "conv_rank", "conv_alpha", "dropout", "targets", "exclude", "ranks", "alphas")
)


class Adapter(ABC):
    """Injected in one or several of a family's components: predictions go through it and gradients reach it.

    Trainable parameters are float32 whatever the model's dtype. Names are those of the saved file: the component's
    name first.
    """

    config: AdapterConfig
    _acts: bool = True

    @property
    @abstractmethod
    def trains_text(self) -> bool:
        """Whether text encoders train: captions must then be encoded anew, with gradient, for every micro-batch."""

    @abstractmethod
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and trainable parameters, always in the same order: the backbone's, then the text encoders'."""

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the parameters by name, on CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set all parameters; raises CheckpointError naming what is missing, unexpected or of another shape."""
        own = dict(self.parameters())
        problems = [f"missing {some(own.keys() - state.keys())}"] if own.keys() - state.keys() else []
        if state.keys() - own.keys():
            problems.append(f"unexpected {some(state.keys() - own.keys())}")
        for name in own.keys() & state.keys():
            if own[name].shape != state[name].shape:
                problems.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}")
        if problems:
            raise CheckpointError(f"the adapter's weights do not fit this run's adapter: {'; '.join(problems[:4])}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    @abstractmethod
    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write what the family's diffusers pipeline loads; ``metadata`` is kept beside the weights."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Set all parameters from a folder of :meth:`save`; raises CheckpointError where it does not fit."""

    @abstractmethod
    def train(self, mode: bool = True) -> None:
        """Switch the adapter's dropout on or off; it is on after injection and must be off for sampling."""

    @contextmanager
    def enabled(self, mode: bool) -> Iterator[None]:
        """A context in which the adapter acts or does not; contexts nest."""
        before = self._acts
        self._set(mode)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, mode: bool) -> None:
        self._switch(mode)
        self._acts = mode

    @abstractmethod
    def _switch(self, mode: bool) -> None:
        """Let the adapter act or not, whatever it does now."""

    @abstractmethod
    def merge(self) -> None:
        """Make the update part of the base weights for good and take the adapter out."""

    @abstractmethod
    def remove(self) -> None:
        """Take the adapter out; the base weights are as right after injection."""


def some(names: Any) -> str:
    """The first three names, sorted, and how many more there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
