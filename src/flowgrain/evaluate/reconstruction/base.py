"""The seam of reconstruction metrics: an original and its reconstruction in, one number for each pair out."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import DataError


class PairScore(ABC):
    """A number for each pair of an original and its reconstruction."""

    title: str
    version: str
    """Everything that changes the number: definition, weights, range."""
    higher_is_better: bool

    @abstractmethod
    def __call__(
        self, originals: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """One value a pair of pictures in [0, 1]; a value does not depend on the other pairs."""

    def pooled(self, values: Float[np.ndarray, " k"]) -> float:
        """The number of a set of pairs from their values."""
        return float(values.mean())

    def note(self, values: Float[np.ndarray, " n"]) -> str | None:
        """What a reader must know about these values, None where there is nothing."""
        return None


def check_smallest(pixels: Float[Tensor, "b c h w"], smallest: int) -> None:
    """Raises :class:`DataError` for sides below ``smallest`` pixels."""
    height, width = pixels.shape[-2:]
    if min(height, width) < smallest:
        raise DataError(f"a picture of {width}x{height} pixels: this metric needs {smallest} a side")
