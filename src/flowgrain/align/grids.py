"""The grid on which features of the model and of a vision foundation model are compared.

Spatial Gram Alignment (arXiv 2605.20808), section 3: features of the foundation model are never interpolated; the
*picture* is resized so that the encoder gives the grid. With the long edge ``g`` of the grid a picture of H x W,
H >= W, has (g, round(g W / H)) places, and the encoder sees as many patches: 32 places are 448 pixels for DINOv2
(patch 14), 512 for DINOv3 (16) and 1024 for SAM2 (32).
"""

from typing import Literal, NamedTuple

from pydantic import Field

from flowgrain.config import Config
from flowgrain.errors import ConfigError


class Grid(NamedTuple):
    """Places of a grid, read row by row."""

    height: int
    width: int

    @property
    def places(self) -> int:
        """Number of tokens."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


class GridConfig(Config):
    """The grid of a picture by its size."""

    shape: Literal["aspect", "square"] = Field(
        default="aspect",
        description="aspect: as near to the picture's as whole places allow; square: edge x edge whatever the picture, "
        "for autoencoders trained on squares",
    )
    edge: int = Field(default=32, ge=1, description="places along the long edge; the paper's are 32, and 64 in Table 7")

    def of(self, height: int, width: int, multiple: int = 1, finest: Grid | None = None) -> Grid:
        """The grid of a picture of ``height`` x ``width``, in pixels, latents or tokens: only their ratio counts.

        Sides are multiples of ``multiple`` (see ``StructureEncoder.grid_multiple``), halves rounded up. ``finest`` is
        the grid that the model's own features have in front of pooling: no side becomes larger, so that small pictures
        get a smaller grid instead of one that their features cannot fill.

        Raises :class:`ConfigError` where the edge is no such multiple, or ``finest`` holds no grid of such sides, and
        ValueError for sides that are not positive.
        """
        if height < 1 or width < 1:
            raise ValueError(f"sides must be positive, got {height} x {width}")
        if self.edge % multiple:
            raise ConfigError(f"grid edge {self.edge}: sides of this encoder's grids must be multiples of {multiple}")
        if finest is None:
            return self._at(self.edge, height, width, multiple)
        room = Grid(*(side // multiple * multiple for side in finest))
        if not room.places:
            raise ConfigError(
                f"the model's features have a grid of {finest}, the encoder's have at least {multiple} x {multiple}; "
                "use larger pictures, a smaller stride of the head or another level of the encoder"
            )
        wanted = self._at(min(self.edge, max(room)), height, width, multiple)
        return Grid(min(wanted.height, room.height), min(wanted.width, room.width))

    def _at(self, edge: int, height: int, width: int, multiple: int) -> Grid:
        if self.shape == "square":
            return Grid(edge, edge)
        short, long = sorted((height, width))
        # edge * short / long in multiples, to the nearest integer, halves up, exactly
        other = max((2 * edge * short + multiple * long) // (2 * multiple * long), 1) * multiple
        return Grid(edge, other) if height >= width else Grid(other, edge)


def encoder_input(grid: Grid, patch: int) -> tuple[int, int]:
    """(height, width) in pixels that an encoder with patches of ``patch`` pixels must see to give ``grid``."""
    return grid.height * patch, grid.width * patch


def aspect_distortion(grid: Grid, height: int, width: int) -> float:
    """How much wider, relative to its height, the encoder sees a picture of ``height`` x ``width`` than it is.

    0.01 is one percent wider, -0.01 narrower; 0 where the grid has the picture's aspect.
    """
    return grid.width * height / (grid.height * width) - 1
