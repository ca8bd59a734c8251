"""What is minimised: modules, parameters and a loss for each sample of a micro-batch.

    loss_i = omega(t_i, xi_i) * | f_theta(x_t, t_i, c_i) - u_t |^2 + sum_k lambda_k * term_k

The squared error may be replaced by the wavelet loss. Slice weights w_i are applied by the loop, so that micro-batches
stay exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from flowgrain.adapters.base import Adapter
from flowgrain.align.base import StepContext, Term
from flowgrain.align.wavelet import WaveletLoss
from flowgrain.families.base import ConditionInputs, Family
from flowgrain.flow.paths import Path, PathSample, grouped_mse
from flowgrain.flow.time_laws import TimeLaw
from flowgrain.flow.weightings import Weighting

HEADS = "align."
"""In front of the names of the parameters of terms' heads."""

FLOW, WAVELET = "flow", "wavelet"
"""Names of losses that a term cannot have."""

Value = TypeVar("Value")


def without_heads(named: Mapping[str, Value]) -> dict[str, Value]:
    """What belongs to the adapter of values by parameter name."""
    return {name: value for name, value in named.items() if not name.startswith(HEADS)}


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
    features: dict[str, Tensor] = field(default_factory=dict)
    """Tokens (b, n, c) of the terms' reference encoders, see :class:`flowgrain.align.base.StepContext`."""
    token_masks: dict[str, Tensor] = field(default_factory=dict)
    """Which of these tokens count (b, n); none where no slice has a mask."""
    watch: Float[Tensor, " b"] | None = None
    """A number in (0, 1) a slice, from its identity, on the CPU: of which slices terms measure more for the log."""


@dataclass(frozen=True)
class SampleLosses:
    """Losses of a micro-batch, one value a sample."""

    total: Float[Tensor, " b"]
    """What is differentiated."""
    parts: dict[str, Tensor]
    """``flow`` (unweighted squared error), ``wavelet`` where that is minimised, and each term, detached."""
    t: Float[Tensor, " b"]
    watched: dict[str, Tensor] = field(default_factory=dict)
    """What the log shows beside the loss, detached; NaN where a sample has none."""


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
    wavelet: WaveletLoss | None = None
    """What is minimised in place of the squared error."""

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The adapter's parameters, then those of the terms' heads, as ``align.TERM.NAME``."""
        named = list(self.adapter.parameters())
        for term in self.terms:
            head = term.head()
            if head is not None:
                named += [(f"{HEADS}{term.name}.{name}", parameter) for name, parameter in head.named_parameters()]
        return named

    def per_sample(self, batch: Batch) -> SampleLosses:
        """See :meth:`Objective.per_sample`; where text encoders train the batch must carry captions."""
        t = self.time_law.quantile(batch.u.cpu(), batch.granularity.cpu(), batch.tokens.cpu()).to(batch.x0.device)
        sample = self.path(batch.x0, batch.noise, t)
        conditioning = self.family.condition(self._inputs(batch))
        taps = tuple(dict.fromkeys(tap for term in self.terms for tap in term.taps))
        output = self.family.predict(sample.x_t, sample.times, conditioning, taps)
        minimised, parts = self._error(output.prediction, sample, t, batch.cell_weight)
        total = self.weighting(t, batch.granularity) * minimised
        watched = {name: value for name, value in parts.items() if name != FLOW}
        context = StepContext(
            batch.x0, batch.noise, t, batch.granularity, sample, output, batch.features, batch.token_masks, batch.watch
        )
        for term in self.terms:
            found = term.evaluate(context)
            parts[term.name] = found.value.detach()
            watched |= found.watched
            total = total + term.weight * found.value
        return SampleLosses(total, parts, t.detach(), watched)

    def _error(
        self, prediction: Tensor, sample: PathSample, t: Tensor, cell_weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised of the prediction's error, and its parts for the log."""
        if self.wavelet is None:
            flow = grouped_mse(prediction, sample, cell_weight)
            return flow, {FLOW: flow.detach()}
        value = self.wavelet(prediction, sample, t, cell_weight)
        return value, {FLOW: grouped_mse(prediction.detach(), sample, cell_weight), WAVELET: value.detach()}

    def _inputs(self, batch: Batch) -> ConditionInputs:
        if not self.adapter.trains_text:
            return batch.inputs
        if batch.inputs.captions is None:
            raise ValueError("text encoders train: a batch must carry captions, embeddings would leave them untouched")
        return replace(batch.inputs, grad=True)
