"""The seam of alignment terms.

A term sees one micro-batch and gives one value a sample; the loop applies slice weights, so micro-batches stay
exact. A term of weight 0 is not built at all.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from flowgrain.families.base import Prediction
from flowgrain.flow.paths import PathSample


@dataclass(frozen=True)
class StepContext:
    """What a term may look at."""

    x0: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    t: Float[Tensor, " b"]
    granularity: Int[Tensor, " b"]
    sample: PathSample
    output: Prediction


class Term(ABC):
    """One lambda_k * term_k of the objective."""

    name: str
    weight: float
    taps: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, context: StepContext) -> Float[Tensor, " b"]:
        """The term's value for each sample, before its weight."""

    def head(self) -> nn.Module | None:
        """Trainable head, dropped at inference and saved for resume."""
        return None
