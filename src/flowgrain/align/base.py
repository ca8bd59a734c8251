"""The seam of alignment terms.

A term sees one micro-batch and gives one value a sample; the loop applies slice weights, so micro-batches stay
exact. A term of weight 0 is not built at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Tokens (b, n, c) of reference encoders by :func:`flowgrain.align.terms.base.feature_key`."""
    token_masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Which of these tokens count (b, n), by the same keys; none where no slice has a mask."""
    watch: Float[Tensor, " b"] | None = None
    """A number in (0, 1) a slice, from its identity: a term measures more of the slices below its share."""


@dataclass(frozen=True)
class TermValue:
    """What a term comes to."""

    value: Float[Tensor, " b"]
    """Before the term's weight, with gradient."""
    watched: dict[str, Tensor]
    """What the log shows, one value a sample, without gradient; NaN where a sample has none."""


class Term(ABC):
    """One lambda_k * term_k of the objective."""

    name: str
    weight: float
    taps: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, context: StepContext) -> Float[Tensor, " b"]:
        """The term's value for each sample, before its weight."""

    def evaluate(self, context: StepContext) -> TermValue:
        """The value and what of it is logged: itself, by the term's name, unless a term has more to show."""
        value = self(context)
        return TermValue(value, {self.name: value.detach()})

    def head(self) -> nn.Module | None:
        """Trainable head, dropped at inference and saved for resume."""
        return None
