"""What is minimised: modules, parameters and a loss for each sample of a micro-batch.

    loss_i = omega(t_i, xi_i) * | f_theta(x_t, t_i, c_i) - u_t |^2 + sum_k lambda_k * term_k

Slice weights w_i are applied by the loop, so that micro-batches stay exact.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

from jaxtyping import Float, Int
from torch import Tensor, nn

from flowgrain.adapters.base import Adapter
from flowgrain.align.base import StepContext, Term
from flowgrain.families.base import ConditionInputs, Family
from flowgrain.flow.paths import Path, grouped_mse
from flowgrain.flow.time_laws import TimeLaw
from flowgrain.flow.weightings import Weighting


@dataclass(frozen=True)
class Batch:
    """One micro-batch: slices of one shape with everything random about them already drawn."""

    x0: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    u: Float[Tensor, " b"]
    granularity: Int[Tensor, " b"]
    tokens: Int[Tensor, " b"]
    inputs: ConditionInputs
    weight: Float[Tensor, " b"]
    names: list[str] = field(default_factory=list)
    cell_weight: Float[Tensor, "b 1 h w"] | None = None
    """Weight of each latent cell in the loss (masks); None = 1 everywhere."""


@dataclass(frozen=True)
class SampleLosses:
    """Losses of a micro-batch, one value a sample."""

    total: Float[Tensor, " b"]
    """What is differentiated."""
    parts: dict[str, Tensor]
    """``flow`` (unweighted squared error) and each term, detached."""
    t: Float[Tensor, " b"]


class Objective(ABC):
    """A trainable objective; fine-tuning is one, an autoencoder stage or a schedule probe are others."""

    @abstractmethod
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trainable parameters in a stable order."""

    @abstractmethod
    def per_sample(self, batch: Batch) -> SampleLosses:
        """Losses of one micro-batch, with gradient."""


@dataclass(eq=False)
class FineTuning(Objective):
    """Fine-tune an adapter of a backbone by flow matching or diffusion.

    ``time_law`` and ``weighting`` may be replaced between updates, by measured modulation; nothing else changes.
    """

    family: Family
    adapter: Adapter
    path: Path
    time_law: TimeLaw
    weighting: Weighting
    terms: tuple[Term, ...] = ()

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The adapter's parameters, then those of the terms' heads."""
        named = list(self.adapter.parameters())
        for term in self.terms:
            head = term.head()
            if head is not None:
                named += [(f"{term.name}.{name}", parameter) for name, parameter in head.named_parameters()]
        return named

    def per_sample(self, batch: Batch) -> SampleLosses:
        """See :meth:`Objective.per_sample`; where text encoders train the batch must carry captions."""
        t = self.time_law.quantile(batch.u.cpu(), batch.granularity.cpu(), batch.tokens.cpu()).to(batch.x0.device)
        sample = self.path(batch.x0, batch.noise, t)
        conditioning = self.family.condition(self._inputs(batch))
        taps = tuple(dict.fromkeys(tap for term in self.terms for tap in term.taps))
        output = self.family.predict(sample.x_t, sample.times, conditioning, taps)
        flow = grouped_mse(output.prediction, sample, batch.cell_weight)
        total = self.weighting(t, batch.granularity) * flow
        parts = {"flow": flow.detach()}
        context = StepContext(batch.x0, batch.noise, t, batch.granularity, sample, output)
        for term in self.terms:
            value = term(context)
            parts[term.name] = value.detach()
            total = total + term.weight * value
        return SampleLosses(total, parts, t.detach())

    def _inputs(self, batch: Batch) -> ConditionInputs:
        if not self.adapter.trains_text:
            return batch.inputs
        if batch.inputs.captions is None:
            raise ValueError("text encoders train: a batch must carry captions, embeddings would leave them untouched")
        return replace(batch.inputs, grad=True)
