"""The seam of structure encoders: pixels in, tokens on a grid out.

The picture is resized so that the encoder gives the grid that is asked for; features are never interpolated (Spatial
Gram Alignment, arXiv 2605.20808, section 3).
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.align.encoders.normalisation import Normalisation
from flowgrain.align.grids import Grid, encoder_input
from flowgrain.errors import ConfigError, ModelError
from flowgrain.pretrained.precision import Precision

CODE_VERSION = "1"
"""Raised whenever the same picture and weights would give other tokens."""


class StructureEncoder(ABC):
    """A frozen vision model. It says what it is; a subclass gives :meth:`feature_map`."""

    def __init__(
        self,
        *,
        kind: str,
        label: str,
        origin: str,
        patch: int,
        width: int,
        normalisation: Normalisation,
        grid_multiple: int = 1,
        device: str = "cpu",
        precision: Precision = "float32",
    ):
        """``label`` names network and features for people, ``origin`` its weights and all else that it computes by."""
        self.kind = kind
        """How it is written in a recipe: ``dino``, ``sam2``, ..."""
        self.patch = patch
        """Pixels along a side of what one token stands for."""
        self.width = width
        """Channels of a token."""
        self.grid_multiple = grid_multiple
        """What the sides of its grids must be multiples of."""
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, precision)
        self.name = f"{label}, patch {patch}, {width}-d, {precision}"
        """For people: reports and logs."""
        self.version = f"{kind} {origin}, {normalisation.describe()}, {precision}, code {CODE_VERSION}"
        """All that its numbers depend on besides picture and grid; part of the keys of caches."""
        self._normalisation = normalisation

    # not inference_mode, whose tensors no later backward pass may keep
    @torch.no_grad()
    def tokens(self, pixels: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b n c"]:
        """Features of pictures (RGB in [-1, 1], any size) on ``grid``, row by row, float32, on the encoder's device.

        A row depends on its picture alone up to rounding: for equal bits encode one picture a call. Raises
        :class:`ConfigError` for a grid that the encoder cannot give.
        """
        if min(grid) < 1 or grid.height % self.grid_multiple or grid.width % self.grid_multiple:
            raise ConfigError(f"{self.name}: grid {grid}; sides must be positive multiples of {self.grid_multiple}")
        with torch.autocast(self.device.type, enabled=False):  # alike inside and outside of a training step
            shown = resized(pixels.to(self.device, torch.float32), *encoder_input(grid, self.patch))
            features = self.feature_map(self._normalisation(shown).to(self.dtype))
        if tuple(features.shape[1:]) != (self.width, *grid):
            found = f"{features.shape[1]} channels on {Grid(*features.shape[2:])}"
            raise ModelError(f"{self.name}: {found} where {self.width} on {grid} were expected; check its config.json")
        return features.flatten(2).mT.float().contiguous()

    def move(self, device: str) -> None:
        """Take its networks to another device; there it computes from now on."""
        self.device = torch.device(device)
        for network in self.networks():
            network.to(self.device)

    def networks(self) -> list[nn.Module]:
        """What it computes with: every attribute that is a module."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(t.nbytes for network in self.networks() for t in (*network.parameters(), *network.buffers()))

    @abstractmethod
    def feature_map(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Features of normalised pixels whose sides are multiples of ``patch * grid_multiple``: a place a patch."""


def resized(pixels: Float[Tensor, "b 3 h w"], height: int, width: int) -> Float[Tensor, "b 3 i j"]:
    """Pixels in [-1, 1] at another size: bicubic with antialiasing, clipped; the same tensor where the size is right.

    The one rule for all encoders, whatever their own files say of sizes: the grid decides the size here.
    """
    if tuple(pixels.shape[2:]) == (height, width):
        return pixels
    # without antialiasing, as REPA's code resizes, a 4K picture at 448 pixels would be sampled, not averaged
    return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)


def patch_map(tokens: Float[Tensor, "b n c"], pixels: Float[Tensor, "b 3 h w"], patch: int) -> Float[Tensor, "b c i j"]:
    """The last ``n`` tokens of a transformer, one a patch of ``pixels``, as a map; what precedes them is left out."""
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    return tokens[:, -rows * columns :].mT.unflatten(2, (rows, columns))
