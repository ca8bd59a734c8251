"""Scale consistency: the last features of the deeper autoencoder against those of the shallow one.

Diffusion-4K (arXiv 2503.18352), reused by Spatial Gram Alignment (arXiv 2605.20808, section 3.3): h is the input of
the decoder's last convolution, of the student at the lower resolution, of the frozen teacher at the full one:

    L_SC = MSE(h_t, Up_k(h_s)) = MSE(AvgPool_k(h_t), h_s) + mean variance of h_t within the k x k cells

The right side needs 1 / k^2 of the student's memory and has the same value and gradient; its second part is a constant.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class PooledFeatures:
    """What the loss needs of the teacher's features: cell means and the spread within cells."""

    mean: Float[Tensor, "b c i j"]
    spread: Float[Tensor, " b"]
    """Mean variance within the cells, by sample."""

    @classmethod
    def of(cls, features: Float[Tensor, "b c h w"], factor: int) -> "PooledFeatures":
        """Of cells of ``factor`` x ``factor``, at least in float32. Raises ValueError for sides that it does not
        divide."""
        if features.shape[2] % factor or features.shape[3] % factor:
            raise ValueError(f"features of {tuple(features.shape[2:])} in cells of {factor}")
        values = _precise(features)
        mean = functional.avg_pool2d(values, factor)
        spread = (values - _upsampled(mean, factor)).square().mean(dim=(1, 2, 3))
        return cls(mean, spread)


def scale_consistency(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c i j"], factor: int
) -> Float[Tensor, " b"]:
    """L_SC as printed, by sample: the student's features are upsampled. Raises ValueError for sizes that do not fit."""
    upsampled = _upsampled(_precise(student), factor)
    if upsampled.shape != teacher.shape:
        raise ValueError(f"features of {tuple(student.shape)}, {factor} times as large, against {tuple(teacher.shape)}")
    return (_precise(teacher) - upsampled).square().mean(dim=(1, 2, 3))


def pooled_scale_consistency(student: Float[Tensor, "b c h w"], teacher: PooledFeatures) -> Float[Tensor, " b"]:
    """The same number and gradient from the pooled teacher. Raises ValueError for sizes that do not fit."""
    if student.shape != teacher.mean.shape:
        raise ValueError(f"features of {tuple(student.shape)} against pooled {tuple(teacher.mean.shape)}")
    return (_precise(student) - teacher.mean).square().mean(dim=(1, 2, 3)) + teacher.spread


class CapturedInput:
    """What went into a layer during a :func:`captured_input` block."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def one(self) -> Tensor:
        """The input of the one call that there must have been.

        Raises RuntimeError for none or several: tiled and sliced decoding call the layer once a piece.
        """
        if len(self.maps) != 1:
            raise RuntimeError(f"the layer was called {len(self.maps)} times; switch tiling and slicing of the VAE off")
        return self.maps[0]


@contextmanager
def captured_input(layer: nn.Module) -> Iterator[CapturedInput]:
    """Keep what goes into ``layer``, with its graph; the hook is gone after the block, also after an error.

    For layers outside of checkpointed blocks, as the decoder's last convolution is: recomputation would call it again.
    """
    found = CapturedInput()

    def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.maps.append(inputs[0])

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _upsampled(features: Tensor, factor: int) -> Tensor:
    return functional.interpolate(features, scale_factor=factor, mode="nearest") if factor > 1 else features


def _precise(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
