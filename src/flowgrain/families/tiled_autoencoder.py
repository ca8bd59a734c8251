"""An autoencoder's convolutions in tiles, with the result of the whole pass to rounding.

What makes ordinary tiles differ is what a layer sees of the whole picture: each GroupNorm's mean and variance, and the
attention of the middle block. Here each tile has the statistics of the whole map (found in passes of their own, one
for each norm, and merged as Chan, Golub and LeVeque 1979 merge variances), the middle block runs on the whole map at
the latents' size, and a tile sees as many pixels beyond its edges as its 3x3 convolutions reach, with zeros outside
the picture alone. So nothing is blended and there are no seams.

Only the maps between resolutions are held whole (and those within one that are small), never the widest ones at full
size. The price is time: convolutions before a norm are computed again for each norm after them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowgrain.errors import ModelError

TILE = 256
"""Side of a tile in cells of the map that it is a part of."""
WHOLE_MAP = 2**30
"""Bytes up to which a map within one resolution is held whole, which saves computing it again."""
WHOLE_PASS = 6 * 2**30
"""Bytes of a whole pass up to which nothing is tiled."""
_MAPS = 4
"""Maps of the widest layer alive at once in a whole pass: a block's input, its norm, its activation, and what the
convolution works in (measured: ``benchmarks/tiled_vae.py``)."""

Span = tuple[int, int]
"""Half-open interval of rows or columns."""
Window = tuple[Span, Span]
Tile = tuple[Tensor, Tensor | None]
"""A layer's input on a window, and the residual that is still to be added, on the same window."""


@dataclass
class Layer:
    """A 3x3 convolution and what stands around it."""

    conv: nn.Conv2d
    norm: nn.GroupNorm | None = None
    """Before it, with SiLU."""
    enlarge: int = 1
    """Nearest upsampling before it."""
    corner: bool = False
    """Whether zeros are right and below alone, as in diffusers' downsampling."""
    keeps: bool = False
    """Whether its input is the residual of its block."""
    adds: bool = False
    """Whether the residual is added to its output, through ``shortcut`` where there is one."""
    shortcut: nn.Conv2d | None = None
    affine: tuple[Tensor, Tensor] | None = field(default=None)
    """Factor and offset (b, c, 1, 1) that the norm comes to, once its statistics are known."""

    @property
    def stride(self) -> int:
        """Cells of the input from one output cell to the next."""
        return int(self.conv.stride[0])

    def length(self, length: int) -> int:
        """Output cells of ``length`` input cells: a padding of one on each side, or two on one with ``corner``."""
        return (length * self.enlarge + (1 if self.corner else 2) - 3) // self.stride + 1

    def reach(self, span: Span) -> Span:
        """Enlarged input cells behind output cells, some of them perhaps outside the picture."""
        first = span[0] * self.stride - (0 if self.corner else 1)
        return first, first + (span[1] - span[0] - 1) * self.stride + 3

    def needs(self, span: Span, length: int) -> Span:
        """Input cells, of ``length``, that output cells are made of."""
        first, end = self.reach(span)
        return max(first, 0) // self.enlarge, -(-min(end, length * self.enlarge) // self.enlarge)

    def run(self, tile: Tile, here: Window, there: Window, size: tuple[int, int]) -> Tile:
        """The output on the window ``there`` of the input, of ``size``, on the window ``here``."""
        value, residual = tile
        kept = value if self.keeps else residual
        if self.affine is not None:
            factor, offset = self.affine
            scaled = torch.addcmul(offset, value.to(offset.dtype), factor).to(value.dtype)
            value = functional.silu(scaled, inplace=True)
        if self.enlarge > 1:
            value = functional.interpolate(value, scale_factor=self.enlarge, mode="nearest")
        for axis, length in enumerate(size):
            first, end = self.reach(there[axis])
            inside = max(first, 0), min(end, length * self.enlarge)
            value = value.narrow(axis + 2, inside[0] - here[axis][0] * self.enlarge, inside[1] - inside[0])
            zeros = [0, 0, 0, 0]
            zeros[2 - 2 * axis : 4 - 2 * axis] = inside[0] - first, end - inside[1]
            value = functional.pad(value, zeros) if any(zeros) else value
        value = functional.conv2d(value, self.conv.weight, self.conv.bias, self.stride)
        if kept is not None:
            kept = _cut(kept, here, there)
        if self.adds and kept is not None:
            value = value + (kept if self.shortcut is None else self.shortcut(kept))
            kept = None
        return value, kept


class TiledEncoder(Encoder):
    """An encoder that works in tiles where the whole pass would take more than ``most`` bytes (None: never).

    The parameters are those of the plain one, names included. With gradients it always runs whole.
    """

    def __init__(self, plain: Encoder, most: int | None):
        _take_over(self, plain)
        self.most = most

    def forward(self, sample: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """What :class:`Encoder` gives, to rounding."""
        if torch.is_grad_enabled() or not self.tiles(sample.shape, sample.itemsize):
            return super().forward(sample)
        if len(sample) > 1:  # several pictures too large together may be small enough alone
            return torch.cat([self(row) for row in sample.split(1)])
        deep = self.mid_block(run_tiled(encoder_layers(self), sample))
        return run_tiled([Layer(self.conv_out, self.conv_norm_out)], deep)

    def tiles(self, shape: torch.Size | tuple[int, ...], itemsize: int) -> bool:
        """Whether a picture (b, c, h, w) is encoded in tiles where no gradient is wanted."""
        return self.most is not None and whole_bytes(encoder_layers(self), shape, itemsize) > self.most


class TiledDecoder(Decoder):
    """A decoder that works in tiles where the whole pass would take more than ``most`` bytes (None: never).

    The parameters are those of the plain one, names included. With gradients it always runs whole.
    """

    def __init__(self, plain: Decoder, most: int | None):
        _take_over(self, plain)
        self.most = most

    def forward(
        self, sample: Float[Tensor, "b c h w"], latent_embeds: Tensor | None = None
    ) -> Float[Tensor, "b d i j"]:
        """What :class:`Decoder` gives, to rounding. ``latent_embeds`` belong to other models' norms: run whole."""
        if torch.is_grad_enabled() or latent_embeds is not None or not self.tiles(sample.shape, sample.itemsize):
            return super().forward(sample, latent_embeds)
        if len(sample) > 1:
            return torch.cat([self(row) for row in sample.split(1)])
        return run_tiled(decoder_layers(self), self.mid_block(self.conv_in(sample)))

    def tiles(self, shape: torch.Size | tuple[int, ...], itemsize: int) -> bool:
        """Whether a latent (b, c, h, w) is decoded in tiles where no gradient is wanted."""
        return self.most is not None and whole_bytes(decoder_layers(self), shape, itemsize) > self.most


def can_tile(encoder: nn.Module, decoder: nn.Module) -> bool:
    """Whether both are made of the blocks that this module knows."""
    if not (isinstance(encoder, Encoder) and isinstance(decoder, Decoder)):
        return False
    ends = (encoder.conv_in, encoder.conv_out, decoder.conv_in, decoder.conv_out)
    blocks: list[Any] = [*encoder.down_blocks, *decoder.up_blocks]
    norms = (encoder.conv_norm_out, decoder.conv_norm_out)
    return (
        all(type(block) in (DownEncoderBlock2D, UpDecoderBlock2D) for block in blocks)
        and all(type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) for conv in ends)
        and all(type(norm) is nn.GroupNorm for norm in norms)
        and all(type(act) is nn.SiLU for act in (encoder.conv_act, decoder.conv_act))
        and all(_is_plain(block) for part in blocks for block in part.resnets)
    )


def encoder_layers(encoder: Encoder) -> list[Layer]:
    """Everything before the middle block."""
    layers, blocks = [Layer(encoder.conv_in)], cast(list[Any], encoder.down_blocks)
    for block in blocks:
        layers += [layer for resnet in block.resnets for layer in _resnet_layers(resnet)]
        layers += [Layer(down.conv, corner=True) for down in block.downsamplers or ()]
    return layers


def decoder_layers(decoder: Decoder) -> list[Layer]:
    """Everything after the middle block."""
    layers: list[Layer] = []
    for block in cast(list[Any], decoder.up_blocks):
        layers += [layer for resnet in block.resnets for layer in _resnet_layers(resnet)]
        layers += [Layer(up.conv, enlarge=2) for up in block.upsamplers or ()]
    return [*layers, Layer(decoder.conv_out, cast(nn.GroupNorm, decoder.conv_norm_out))]


def whole_bytes(layers: list[Layer], shape: torch.Size | tuple[int, ...], itemsize: int) -> int:
    """About what the whole pass of an input (b, c, h, w) holds at its peak, attention left out: four widest maps."""
    sizes = _sizes(layers, (shape[2], shape[3]))
    maps = [
        layer.conv.in_channels * size[0] * size[1] * layer.enlarge**2
        for layer, size in zip(layers, sizes, strict=False)
    ]
    maps += [layer.conv.out_channels * size[0] * size[1] for layer, size in zip(layers, sizes[1:], strict=True)]
    return _MAPS * shape[0] * itemsize * max(maps)


def tiled_bytes(layers: list[Layer], shape: torch.Size | tuple[int, ...], itemsize: int) -> int:
    """About what the same takes in tiles: the maps before and after the largest group of layers, and a tile's own."""
    size, peak = (shape[2], shape[3]), 0
    for group in _groups(layers, shape, itemsize):
        sizes = _sizes(group, size)
        before = group[0].conv.in_channels * size[0] * size[1]
        size = sizes[-1]
        after = group[-1].conv.out_channels * size[0] * size[1]
        widest = max(max(layer.conv.in_channels, layer.conv.out_channels) for layer in group)
        tile = _MAPS * widest * (min(TILE, size[0]) + 16) * (min(TILE, size[1]) + 16)
        peak = max(peak, shape[0] * itemsize * (before + after + tile))
    return peak


def run_tiled(layers: list[Layer], value: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
    """The layers' output, a group of them at a time."""
    for group in _groups(layers, value.shape, value.itemsize):
        sizes = _sizes(group, (value.shape[2], value.shape[3]))
        for number, layer in enumerate(group):
            if layer.norm is not None:
                layer.affine = _affine(layer.norm, group[:number], value, sizes)
        value = _assembled(group, value, sizes)
    return value


def _take_over(module: Any, plain: Encoder | Decoder) -> None:
    """Make ``plain``'s children those of ``module``: the names of parameters stay."""
    nn.Module.__init__(module)
    for name, child in plain.named_children():
        module.add_module(name, child)
    module.layers_per_block = plain.layers_per_block
    module.gradient_checkpointing = plain.gradient_checkpointing
    module.train(plain.training)


def _is_plain(block: nn.Module) -> bool:
    """Whether a block is norm, SiLU, convolution, twice, and a residual."""
    return (
        type(block) is ResnetBlock2D
        and block.time_emb_proj is None
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _resnet_layers(block: ResnetBlock2D) -> list[Layer]:
    return [
        Layer(block.conv1, block.norm1, keeps=True),
        Layer(block.conv2, block.norm2, adds=True, shortcut=block.conv_shortcut),
    ]


def _groups(layers: list[Layer], shape: torch.Size | tuple[int, ...], itemsize: int) -> Iterator[list[Layer]]:
    """Layers between two maps that are held whole: before upsampling, after downsampling, and small ones."""
    group: list[Layer] = []
    sizes = _sizes(layers, (shape[2], shape[3]))
    for number, layer in enumerate(layers):
        group.append(layer)
        rows, columns = sizes[number + 1]
        small = shape[0] * itemsize * layer.conv.out_channels * rows * columns <= WHOLE_MAP
        last = number + 1 == len(layers)
        if last or layer.corner or layers[number + 1].enlarge > 1 or (small and not layer.keeps):
            yield group
            group = []


def _sizes(layers: list[Layer], size: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of the first layer's input and of each layer's output."""
    sizes = [size]
    for layer in layers:
        sizes.append((layer.length(sizes[-1][0]), layer.length(sizes[-1][1])))
    return sizes


def _windows(size: tuple[int, int]) -> Iterator[Window]:
    rows, columns = ([(start, min(start + TILE, length)) for start in range(0, length, TILE)] for length in size)
    yield from product(rows, columns)


def _tile(layers: list[Layer], value: Tensor, sizes: list[tuple[int, int]], window: Window) -> Tensor:
    """The output of layers on a window."""
    windows = [window]
    for layer, size in zip(reversed(layers), reversed(sizes[: len(layers)]), strict=True):
        (rows, columns), (height, width) = windows[0], size
        windows.insert(0, (layer.needs(rows, height), layer.needs(columns, width)))
    everything: Window = ((0, value.shape[2]), (0, value.shape[3]))
    tile: Tile = (_cut(value, everything, windows[0]), None)
    for number, layer in enumerate(layers):
        tile = layer.run(tile, windows[number], windows[number + 1], sizes[number])
    return tile[0]


def _assembled(layers: list[Layer], value: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    whole: Tensor | None = None
    for window in _windows(sizes[len(layers)]):
        tile = _tile(layers, value, sizes, window)
        if whole is None:
            whole = tile.new_empty(*tile.shape[:2], *sizes[len(layers)])
        (top, bottom), (left, right) = window
        whole[:, :, top:bottom, left:right] = tile
    if whole is None:
        raise ModelError("an empty picture cannot be encoded or decoded")
    return whole


def _affine(
    norm: nn.GroupNorm, before: list[Layer], value: Tensor, sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Factor and offset of a norm over the whole map that the layers ``before`` it give."""
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    for window in _windows(sizes[len(before)]):
        tile = _tile(before, value, sizes, window)
        dtype = torch.promote_types(tile.dtype, torch.float32)
        grouped = tile.reshape(len(tile), norm.num_groups, -1).to(dtype)
        variance, average = (each.double() for each in torch.var_mean(grouped, dim=2, correction=0))
        own = grouped.shape[2]
        difference = average - mean.to(average)
        spread = spread.to(average) + variance * own + difference.square() * (count * own / (count + own))
        mean = mean.to(average) + difference * (own / (count + own))
        count += own
    scale = (spread / count + norm.eps).rsqrt()
    shape = (len(value), norm.num_channels, 1, 1)
    repeats = norm.num_channels // norm.num_groups
    factor, offset = (each.repeat_interleave(repeats, dim=1).view(shape) for each in (scale, -mean * scale))
    weight, bias = (each.double().view(1, -1, 1, 1) for each in (norm.weight, norm.bias))
    dtype = torch.promote_types(value.dtype, torch.float32)
    return (factor * weight).to(dtype), (offset * weight + bias).to(dtype)


def _cut(value: Tensor, here: Window, there: Window) -> Tensor:
    (top, _), (left, _) = here
    (first, end), (start, stop) = there
    return value[:, :, first - top : end - top, start - left : stop - left]
