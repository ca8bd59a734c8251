"""What is kept of the query points of a diagnosis: matrices of groups, no latents."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowgrain.geometry.group_fields import NearestEstimate

EMPTY, OWN = "empty", "own"
CAPTIONS = (EMPTY, OWN)
"""With which caption the model is asked."""
PERFECT = "perfect fit"
"""The state of a model that is equal to the marginal field: its cross terms are those of no error at all."""
State = tuple[str, str]
"""(name of a point, caption)"""


@dataclass(eq=False)
class Records:
    """All query points for one partition, in the order of the batches."""

    alpha: list[Float[Tensor, "m g"]] = field(default_factory=list)
    present: list[Bool[Tensor, "m g"]] = field(default_factory=list)
    """Whether the point's space has latents of the group."""
    effective: list[Float[Tensor, " m"]] = field(default_factory=list)
    spread: list[Float[Tensor, " m"]] = field(default_factory=list)
    """sum alpha |u_t^xi - u_t|^2 a latent element."""
    t: list[Float[Tensor, " m"]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    """Source picture of each point: the cluster of a bootstrap."""
    omega: dict[State, list[Float[Tensor, "m g g"]]] = field(default_factory=dict)
    error: dict[State, list[Float[Tensor, " m"]]] = field(default_factory=dict)
    """|v - u_t|^2 a latent element, from the marginal field itself."""


class Concentration:
    """What the nearest latents of each group leave out, by noise level."""

    def __init__(self, nearest: int):
        self.nearest = nearest
        self._neglected: dict[float, list[float]] = defaultdict(list)
        self._error: dict[float, list[float]] = defaultdict(list)

    def add(self, found: NearestEstimate, t: Float[Tensor, " m"]) -> None:
        """Count a batch in: neglected weight and the bound on the field's error, both weighted by alpha."""
        estimate = found.estimate
        alpha = estimate.alpha
        norm = torch.einsum("mg,mgd->md", alpha, estimate.fields).norm(dim=1)
        neglected = (alpha * found.neglected).sum(dim=1)
        error = (alpha * found.field_error).sum(dim=1) / norm.clamp(min=1e-300)
        for level, share, bound in zip(t.tolist(), neglected.tolist(), error.tolist(), strict=True):
            self._neglected[level].append(share)
            self._error[level].append(bound)

    def rows(self) -> list[dict[str, float]]:
        """By noise level, lowest first: means over its points."""
        return [
            {"t": t, "neglected": _mean(self._neglected[t]), "field_error_bound": _mean(self._error[t])}
            for t in sorted(self._neglected)
        ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
