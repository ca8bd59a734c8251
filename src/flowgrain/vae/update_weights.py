"""Adaptive weights of a whole update, whatever its micro-batches and processes.

A gradient is linear in the samples, its norm is not: the gradients at the last layers are summed over all micro-batches
(and processes) first, and the weights follow from the sums. The native loss of terms on latents contains the
adversarial term times its weight, which is known last; its gradient at the encoder's last layer is kept apart.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowgrain.vae.adaptive_weight import AdaptiveWeight, layer_gradient, scaled_norm, weight_from_norms
from flowgrain.vae.config import VaeLossConfig
from flowgrain.vae.losses import LossTerm, LossTerms, StageBatch, numerator_shares


class UpdateWeights:
    """Sums of last-layer gradients over the micro-batches of one update."""

    def __init__(self, config: VaeLossConfig):
        self._config = config
        self._sums: dict[tuple[str, str], Tensor] = {}
        """(term, part) -> sum: of the term itself (``own``), of its measure, of a weighed term in the measure."""
        self._adaptive: dict[str, AdaptiveWeight] = {}
        self._joined: dict[str, float] = {}
        """Terms of L_VAE that have an adaptive weight themselves, with their lambda."""

    @staticmethod
    def needed(config: VaeLossConfig) -> bool:
        """Whether any term of positive weight is weighed by gradients."""
        terms = (config.adversarial, config.gram, config.moments)
        return any(term.weight and term.adaptive is not None for term in terms)

    def add(self, found: LossTerms, batch: StageBatch) -> None:
        """Count in the terms of one micro-batch, whose graph stays."""
        for term in found.terms:
            if term.adaptive is None or term.layer is None:
                continue
            self._adaptive[term.name] = term.adaptive
            self._count((term.name, "own"), [(term, 1.0)], term.layer, batch)
            if term.adaptive.numerator != "native":
                shares = numerator_shares(term.adaptive.numerator, self._config)
                wanted = [(each, shares[each.name]) for each in found.terms if each.name in shares]
                self._count((term.name, "measure"), wanted, term.layer, batch)
                continue
            before = [each for each in found.terms if each.native and each.name != term.name]
            if term.native:
                before = before[: [each.name for each in found.terms].index(term.name)]
            plain = [(each, each.weight) for each in before if each.adaptive is None]
            self._count((term.name, "measure"), plain, term.layer, batch)
            for each in (each for each in before if each.adaptive is not None):
                self._joined[each.name] = each.weight
                self._count((term.name, each.name), [(each, 1.0)], term.layer, batch)

    def weights(self, total: float, combined: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """w by term. ``total`` is the sum of all slice weights, ``combined`` sums a tensor over processes."""
        sums = {key: combined(value) / total for key, value in self._sums.items()}
        found: dict[str, Tensor] = {}
        for name, adaptive in self._adaptive.items():  # in the order of the terms: what joins a measure comes before
            measure = sums[name, "measure"]
            for joined, weight in self._joined.items():
                if (name, joined) in sums:
                    measure = measure + weight * found[joined].to(measure.device) * sums[name, joined]
            found[name] = weight_from_norms(scaled_norm(measure), scaled_norm(sums[name, "own"]), adaptive)
        return found

    def _count(
        self, key: tuple[str, str], shares: list[tuple[LossTerm, float]], layer: nn.Parameter, batch: StageBatch
    ) -> None:
        value = torch.zeros((), device=layer.device)
        for term, share in shares:
            value = value + share * (batch.weight.to(term.value) * term.value).sum()
        gradient = layer_gradient(value, layer)
        self._sums[key] = self._sums[key] + gradient if key in self._sums else gradient
