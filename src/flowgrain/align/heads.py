"""Projection heads: features of the model brought to the grid, and to the width, of a vision foundation model's.

A head trains with the adapter, is saved for resuming and has no part in inference.

- ``conv``: Spatial Gram Alignment (arXiv 2605.20808, section 3.3): one convolution, then adaptive average pooling where
  its output is not the grid already. No norm and no activation. Stride 1 is iREPA's (arXiv 2512.10794).
- ``mlp``: REPA's (arXiv 2410.06940): three linear layers with SiLU between them, on each token by itself.
- ``identity``: none; the features must have the grid.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from flowgrain import rng
from flowgrain.align.grids import Grid
from flowgrain.config import Config
from flowgrain.errors import ConfigError


class Head(nn.Module, ABC):
    """Features of the model to tokens on a grid."""

    out_channels: int
    """Channels of the tokens that come out."""

    def forward(
        self,
        features: Float[Tensor, "b n c"] | Float[Tensor, "b c h w"],
        grid: Grid,
        shape: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Tokens of ``grid``, row by row, of a map, or of tokens that form a map of ``shape`` row by row.

        Raises :class:`ConfigError` where the grid is finer than what there is to pool, ValueError for tokens whose
        number is not that of ``shape``.
        """
        projected = self.project(_as_map(features, shape))
        return _pooled(projected, grid).flatten(2).mT

    @abstractmethod
    def project(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The head in front of pooling."""

    @abstractmethod
    def output_grid(self, shape: Grid) -> Grid:
        """Grid of :meth:`project` for a map of this shape: the finest that the head can give."""


class ConvHead(Head):
    """One convolution, with torch's own initialisation. State dict: ``conv.weight``, ``conv.bias``."""

    def __init__(self, in_channels: int, out_channels: int, config: "ConvHeadConfig"):
        super().__init__()
        self.out_channels = out_channels
        self._config = config
        self.conv = nn.Conv2d(
            in_channels, out_channels, config.kernel, config.stride, config.edge_padding, bias=config.bias
        )

    def project(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The convolution, in the precision of its weights."""
        return self.conv(maps.to(self.conv.weight.dtype))

    def output_grid(self, shape: Grid) -> Grid:
        """See :meth:`Head.output_grid`. Raises :class:`ConfigError` for a map smaller than the kernel."""
        kernel, padding = self._config.kernel, self._config.edge_padding
        sides = [(side + 2 * padding - kernel) // self._config.stride + 1 for side in shape]
        if min(sides) < 1:
            raise ConfigError(f"head: a map of {shape} is smaller than the kernel of {kernel}; lower head.kernel")
        return Grid(*sides)


class MlpHead(Head):
    """REPA's projector. State dict: ``layers.0``, ``layers.2`` and ``layers.4``, each with weight and bias."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int):
        super().__init__()
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, out_channels),
        )

    def project(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The layers on each place by itself, in the precision of their weights."""
        places = maps.permute(0, 2, 3, 1).to(next(self.layers.parameters()).dtype)
        return self.layers(places).permute(0, 3, 1, 2)

    def output_grid(self, shape: Grid) -> Grid:
        """See :meth:`Head.output_grid`: the map's own."""
        return shape


class IdentityHead(Head):
    """No parameters and no pooling: self-similarities are compared as the features are, whatever their width."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.out_channels = in_channels

    def forward(
        self,
        features: Float[Tensor, "b n c"] | Float[Tensor, "b c h w"],
        grid: Grid,
        shape: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        """See :meth:`Head.forward`. Raises :class:`ConfigError` for features of another grid."""
        maps = _as_map(features, shape)
        if tuple(maps.shape[2:]) != grid:
            raise ConfigError(
                f"head.kind is identity, but the features have a grid of {Grid(*maps.shape[2:])} and the reference of "
                f"{grid}; set head.kind to conv, or the grid's edge to {max(maps.shape[2:])}"
            )
        return maps.flatten(2).mT

    def project(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The map itself."""
        return maps

    def output_grid(self, shape: Grid) -> Grid:
        """See :meth:`Head.output_grid`: the map's own."""
        return shape


class ConvHeadConfig(Config):
    """One convolution."""

    kind: Literal["conv"] = "conv"
    kernel: int = Field(default=3, ge=1, description="side of the kernel; the papers' is 3, iREPA's older runs used 1")
    stride: int = Field(
        default=1, ge=1, description="the paper's is 1 on latents and 2 on the tokens of a transformer at 4K"
    )
    padding: int | None = Field(default=None, ge=0, description="zeros around the map; null: half the kernel")
    bias: bool = Field(default=True, description="whether a bias is added")

    @property
    def edge_padding(self) -> int:
        """The padding in places."""
        return self.kernel // 2 if self.padding is None else self.padding

    def build(self, in_channels: int, out_channels: int, seed: int, name: str) -> ConvHead:
        """The head; its weights depend on the run's ``seed`` and on ``name`` (term and tap) alone."""
        with rng.seeded(seed, "head", name):
            return ConvHead(in_channels, out_channels, self)


class MlpHeadConfig(Config):
    """REPA's projector."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=2048, ge=1, description="width of the two hidden layers")

    def build(self, in_channels: int, out_channels: int, seed: int, name: str) -> MlpHead:
        """The head; its weights depend on the run's ``seed`` and on ``name`` (term and tap) alone."""
        with rng.seeded(seed, "head", name):
            return MlpHead(in_channels, out_channels, self.hidden)


class IdentityHeadConfig(Config):
    """No head."""

    kind: Literal["identity"] = "identity"

    def build(self, in_channels: int, out_channels: int, seed: int, name: str) -> IdentityHead:
        """The head: ``out_channels`` is for losses that compare channels to check, see :func:`check_width`."""
        return IdentityHead(in_channels)


HeadConfig = Annotated[ConvHeadConfig | MlpHeadConfig | IdentityHeadConfig, Field(discriminator="kind")]
"""The configuration of a head."""


def check_width(head: Head, width: int, purpose: str) -> None:
    """Refuse a head whose tokens have another ``width`` than the reference, for a loss that compares channels.

    ``purpose`` names the loss. Raises :class:`ConfigError`.
    """
    if head.out_channels != width:
        raise ConfigError(
            f"{purpose} compares channels: the features have {head.out_channels}, the reference {width}; set head.kind "
            "to conv or mlp"
        )


def _as_map(features: Tensor, shape: Grid | None) -> Tensor:
    if features.ndim == 4:
        return features
    if shape is None or features.shape[1] != shape.places:
        raise ValueError(f"{features.shape[1]} tokens do not form a map of {shape}")
    return features.mT.unflatten(2, tuple(shape))


def _pooled(maps: Tensor, grid: Grid) -> Tensor:
    found = Grid(*maps.shape[2:])
    if found == grid:
        return maps
    if found.height < grid.height or found.width < grid.width:
        raise ConfigError(
            f"head: it gives a grid of {found}, coarser than the reference's {grid}; pooling cannot add places: lower "
            "head.stride or the grid's edge"
        )
    return F.adaptive_avg_pool2d(maps, (grid.height, grid.width))
