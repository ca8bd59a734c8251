"""One update of an autoencoder and its discriminator: the same for any micro-batches and processes.

Gradients of all micro-batches are summed before anything steps: the discriminator learns from the outputs that the
autoencoder was judged by, and both step at the end. Adaptive weights are those of the whole update. Where one
micro-batch of one process is the update, they are measured on the way; otherwise in a first pass over all of it.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowgrain.errors import NonFiniteError
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.runtime import Runtime
from flowgrain.train.step import LevelMeans, UpdateResult, checked_norm, clipped_step
from flowgrain.train.vae_batches import GramTerm, VaeBatch, on_device
from flowgrain.train.watched import WatchedMeans
from flowgrain.vae.collapse import CollapseWatch, variation_ratio
from flowgrain.vae.config import VaeLossConfig
from flowgrain.vae.discriminator import advance_spectral_norms
from flowgrain.vae.losses import (
    Roles,
    StageBatch,
    StageModels,
    discriminator_losses,
    generator_losses,
    loss_terms,
    reconstruct,
    roles,
)
from flowgrain.vae.update_weights import UpdateWeights


@dataclass(frozen=True)
class Learner:
    """Parameters that step together."""

    parameters: list[tuple[str, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    clip: float | None


@dataclass(frozen=True)
class Players:
    """All that takes part in an update."""

    models: StageModels
    gram: GramTerm | None
    autoencoder: Learner
    """The halves that train, and the Gram head."""
    discriminator: Learner | None

    def learners(self, who: Roles) -> list[Learner]:
        """Those that step in an update."""
        found = [self.autoencoder] if who.generator else []
        return [*found, self.discriminator] if who.discriminator and self.discriminator is not None else found

    def forget_gradients(self) -> None:
        """Clear all gradients."""
        for learner in (self.autoencoder, self.discriminator):
            if learner is not None:
                learner.optimizer.zero_grad(set_to_none=True)


@dataclass
class _Sums:
    """What an update came to in this process."""

    loss: float
    watched: WatchedMeans
    ratios: list[float]
    weights: dict[str, float]


@dataclass(frozen=True)
class _Passed:
    """What one micro-batch came to."""

    totals: list[Tensor]
    """By sample, before slice weights: of the autoencoder, of the discriminator, of those that learn."""
    parts: dict[str, Tensor]
    weights: dict[str, float]
    output: Tensor


class VaeUpdate:
    """Computes updates: :meth:`gradients`, then :meth:`step`."""

    def __init__(
        self,
        players: Players,
        config: VaeLossConfig,
        watch: CollapseWatch,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
        runtime: Runtime,
    ):
        self._players = players
        self._config = config
        self._watch = watch
        self._device = device
        self._autocast = autocast
        self._runtime = runtime

    def gradients(self, batches: Sequence[VaeBatch], total: float, number: int) -> UpdateResult:
        """Leave the gradients of update ``number`` (from 0) in the parameters; nothing steps.

        ``batches`` are this process's share, ``total`` is the sum of the whole update's slice weights. The gradient
        norm of the result is that of the autoencoder, of the discriminator where it learns alone. Raises
        :class:`NonFiniteError` in all processes where one meets such a loss, :class:`CollapseError`, and clears the
        gradients then.
        """
        who = roles(self._config.adversarial, number)
        try:
            sums = self._accumulate(batches, total, number, who)
            learners = self._players.learners(who)
            for learner in learners:
                self._runtime.sum_gradients(learner.parameters)
            norms = [checked_norm(learner.parameters) for learner in learners]
            ratios = [ratio for part in self._runtime.gather(sums.ratios) for ratio in part]
            self._watch.observe(statistics.median(ratios) if ratios else None, number + 1)
        except BaseException:
            self._players.forget_gradients()
            raise
        levels = self._levels(sums.watched)
        loss = sum(self._runtime.gather(sums.loss))
        numbers = {f"weight of {name}": value for name, value in sums.weights.items()}
        if who.generator and who.discriminator:
            numbers["discriminator_grad_norm"] = norms[1]
        if ratios:
            numbers["variation"] = statistics.median(ratios)
        return UpdateResult(loss, norms[0], levels, {"numbers": numbers})

    def step(self, result: UpdateResult, number: int) -> Roles:
        """Clip and step with the gradients of ``result``; who learned."""
        who = roles(self._config.adversarial, number)
        norms = [result.grad_norm, result.extra["numbers"].get("discriminator_grad_norm", 0.0)]
        for learner, norm in zip(self._players.learners(who), norms, strict=False):
            clipped_step(learner.parameters, learner.optimizer, norm, learner.clip)
        if who.discriminator and self._players.models.discriminator is not None:
            advance_spectral_norms(self._players.models.discriminator)
        self._players.forget_gradients()
        return who

    def _accumulate(self, batches: Sequence[VaeBatch], total: float, number: int, who: Roles) -> _Sums:
        given = self._measured(batches, total, number) if who.generator else {}
        sums, problem = _Sums(0.0, WatchedMeans(), [], {}), ""
        for batch in batches:
            stage = self._on_device(batch)
            passed = self._backward(stage, number, who, given)
            if not problem and not all(torch.isfinite(total[batch.weight > 0]).all() for total in passed.totals):
                problem = _describe_non_finite(batch, passed.parts)
                if self._runtime.world == 1:
                    break
            first = passed.totals[0].detach()
            sums.loss += (stage.weight.to(first.dtype) * first).sum().item()
            sums.weights.update(passed.weights)
            _watch(sums.watched, batch, passed.parts)
            ratio = variation_ratio(passed.output, stage.images) if batch.weight.any() else None
            sums.ratios += [] if ratio is None else [ratio]
        problems = [report for report in self._runtime.gather(problem) if report]
        if problems:
            raise NonFiniteError(" | ".join(problems))
        return sums

    def _backward(self, stage: StageBatch, number: int, who: Roles, given: dict[str, Tensor]) -> _Passed:
        """Add the gradients of one micro-batch."""
        models, config, totals, parts, weights = self._players.models, self._config, [], {}, {}
        if who.generator:
            with self._autocast():
                losses = generator_losses(models, stage, config, number, given=given)
            totals, parts, output = [losses.total], dict(losses.parts), losses.output
            weights = {name: weight.item() for name, weight in losses.weights.items()}
            (stage.weight.to(losses.total.dtype) * losses.total).sum().backward()
        else:
            with self._autocast():
                output = reconstruct(models.vae, stage)
        if who.discriminator and models.discriminator is not None:
            with self._autocast():
                critic = discriminator_losses(
                    models.discriminator, stage.images, output, config.adversarial.discriminator
                )
            totals.append(critic.total)
            parts |= {f"discriminator {name}": value for name, value in critic.parts.items()}
            (stage.weight.to(critic.total.dtype) * critic.total).sum().backward()
        return _Passed(totals, parts, weights, output)

    def _measured(self, batches: Sequence[VaeBatch], total: float, number: int) -> dict[str, Tensor]:
        """Adaptive weights of the whole update, none where its one micro-batch measures them itself."""
        if not UpdateWeights.needed(self._config) or (self._runtime.world == 1 and len(batches) == 1):
            return {}
        measuring = UpdateWeights(self._config)
        for batch in batches:
            stage = self._on_device(batch)
            with self._autocast():
                found = loss_terms(self._players.models, stage, self._config, number)
            measuring.add(found, stage)
        return measuring.weights(total, self._summed)

    def _on_device(self, batch: VaeBatch) -> StageBatch:
        return on_device(batch, self._device, self._players.gram)

    def _summed(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in the same order in each."""
        first, *others = self._runtime.gather(tensor.cpu())
        return sum(others, first).to(tensor.device)

    def _levels(self, watched: WatchedMeans) -> LevelMeans:
        """Means over the whole update; the loss by level is the reconstruction's."""
        whole = WatchedMeans.merged(self._runtime.gather(watched))
        counts = whole.counts.get("reconstruction", {})
        means = {level: whole.sums["reconstruction"][level] / n for level, n in counts.items()}
        return LevelMeans(loss=means, count=counts, watched=whole)


def _watch(watched: WatchedMeans, batch: VaeBatch, parts: dict[str, Tensor]) -> None:
    """Count in the parts of one micro-batch; slices of weight 0 are padding and do not count."""
    for name, values in parts.items():
        sums, counts = watched.sums.setdefault(name, {}), watched.counts.setdefault(name, {})
        for index, value, weight in zip(
            batch.granularity.tolist(), values.tolist(), batch.weight.tolist(), strict=True
        ):
            if weight:
                level = GRANULARITIES[index]
                sums[level], counts[level] = sums.get(level, 0.0) + value, counts.get(level, 0) + 1


def _describe_non_finite(batch: VaeBatch, parts: dict[str, Tensor]) -> str:
    rows = []
    for i, name in enumerate(batch.names):
        bad = [f"{part} = {values[i].item():g}" for part, values in parts.items() if not torch.isfinite(values[i])]
        if bad:
            rows.append(f"{name} ({', '.join(bad)})")
    shown = "; ".join(rows[:4]) + ("; ..." if len(rows) > 4 else "")
    return (
        f"loss is not finite for {len(rows)} of {len(batch.names)} slices: {shown}; stopped before the optimizer "
        "step: check these images, lower optimizer.lr or use precision=fp32"
    )
