"""Loss weights omega(t, granularity)."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Weighting(ABC):
    """A non-negative weight of a sample's squared error."""

    @abstractmethod
    def __call__(self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """omega, float32."""


class Uniform(Weighting):
    """omega = 1: the weighting of flow-matching models, whose granularity acts through the time law."""

    def __call__(self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Ones."""
        return torch.ones_like(t, dtype=torch.float32)
