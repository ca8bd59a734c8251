"""One optimizer step: the micro-batches of one update, then clip and step once."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flowgrain.errors import NonFiniteError
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.objective import Batch, Objective, SampleLosses
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.watched import WatchedMeans


@dataclass
class LevelMeans:
    """Means by granularity over the slices of an update."""

    loss: dict[str, float] = field(default_factory=dict)
    t: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    watched: WatchedMeans = field(default_factory=WatchedMeans)

    def add(self, batch: Batch, losses: SampleLosses) -> None:
        """Count in one micro-batch; slices of weight 0 are padding and do not count."""
        rows = zip(
            batch.granularity.tolist(),
            losses.parts["flow"].tolist(),
            losses.t.tolist(),
            batch.weight.tolist(),
            strict=True,
        )
        for index, loss, t, weight in rows:
            if weight == 0:
                continue
            name = GRANULARITIES[index]
            n = self.count.get(name, 0)
            self.loss[name] = (self.loss.get(name, 0.0) * n + loss) / (n + 1)
            self.t[name] = (self.t.get(name, 0.0) * n + t) / (n + 1)
            self.count[name] = n + 1
        self.watched.add(batch, losses)

    @staticmethod
    def merged(parts: "list[LevelMeans]") -> "LevelMeans":
        """Means over the slices of several parts of an update."""
        whole = LevelMeans()
        for name in (level for level in GRANULARITIES if any(level in part.count for part in parts)):
            counts = [part.count.get(name, 0) for part in parts]
            n = whole.count[name] = sum(counts)
            for mine, theirs in ((whole.loss, [p.loss for p in parts]), (whole.t, [p.t for p in parts])):
                mine[name] = (
                    sum(count * values.get(name, 0.0) for count, values in zip(counts, theirs, strict=True)) / n
                )
        whole.watched = WatchedMeans.merged([part.watched for part in parts])
        return whole


@dataclass(frozen=True)
class UpdateResult:
    """What one update reports."""

    loss: float
    """The weighted objective, sum_i w_i loss_i."""
    grad_norm: float
    """Gradient norm before clipping."""
    levels: LevelMeans
    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys of the update's line in the log."""


def accumulate(
    objective: Objective, batches: Iterable[Batch], autocast: Callable[[], torch.autocast], runtime: Runtime = ALONE
) -> tuple[float, LevelMeans]:
    """Add the gradient of sum_i w_i loss_i over all micro-batches to the parameters' ``.grad``.

    There is no division by the number of micro-batches: the weights already sum to 1 over the update (Semantic
    Granularity Alignment, Eq. 6 with the window of spec c.2), so any partition gives the same gradient.
    Raises :class:`NonFiniteError` before anything is stepped, in all processes where one of them meets such a loss.
    """
    total, levels, problem = 0.0, LevelMeans(), ""
    for batch in batches:
        with autocast():
            losses = objective.per_sample(batch)
        weighted = (batch.weight.to(losses.total.dtype) * losses.total).sum()
        if not problem and not torch.isfinite(weighted):
            problem = _describe_non_finite(batch, losses)
            if runtime.world == 1:
                break
        weighted.backward()  # of a bad batch as well where others wait: models in shards meet in the backward pass
        total += weighted.item()
        levels.add(batch, losses)
    problems = [report for report in runtime.gather(problem) if report]
    if problems:
        raise NonFiniteError(" | ".join(problems))
    return total, levels


def checked_norm(parameters: list[tuple[str, nn.Parameter]]) -> float:
    """Norm of the gradient; raises :class:`NonFiniteError` where it is not finite."""
    gradients = [(name, parameter.grad) for name, parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([gradient for _, gradient in gradients]).item()
    if not math.isfinite(norm):
        bad = [name for name, gradient in gradients if not torch.isfinite(gradient).all()]
        raise NonFiniteError(
            f"gradient is not finite in {len(bad)} of {len(gradients)} parameters ({', '.join(bad[:3])}); "
            "stopped before the optimizer step: lower optimizer.lr or use precision=fp32"
        )
    return norm


def clipped_step(
    parameters: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, norm: float, clip: float | None
) -> None:
    """Clip a gradient of ``norm`` to ``clip``, step once and clear the gradients."""
    if clip is not None and norm > clip:
        for _, parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(clip / (norm + 1e-6))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run_update(
    objective: Objective,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    autocast: Callable[[], torch.autocast],
    runtime: Runtime = ALONE,
) -> UpdateResult:
    """One update, start to end; on an error the gradients are cleared and the parameters are as before.

    ``batches`` are this process's share; loss and level means are those of the whole update.
    """
    try:
        loss, levels = accumulate(objective, batches, autocast, runtime)
        runtime.sum_gradients(objective.parameters())
        norm = checked_norm(objective.parameters())
        clipped_step(objective.parameters(), optimizer, norm, clip)
    except BaseException:
        optimizer.zero_grad(set_to_none=True)
        raise
    if runtime.world > 1:
        shares = runtime.gather((loss, levels))
        loss = sum(share for share, _ in shares)
        levels = LevelMeans.merged([part for _, part in shares])
    return UpdateResult(loss, norm, levels)


def _describe_non_finite(batch: Batch, losses: SampleLosses) -> str:
    rows = []
    for i, name in enumerate(batch.names):
        if not torch.isfinite(losses.total[i]):
            parts = ", ".join(f"{part} = {value[i].item():g}" for part, value in losses.parts.items())
            rows.append(f"{name} (t = {losses.t[i].item():.4f}, {parts})")
    shown = "; ".join(rows[:4]) + ("; ..." if len(rows) > 4 else "")
    return (
        f"loss is not finite for {len(rows)} of {len(batch.names)} slices: {shown}; stopped before the optimizer "
        "step: check these images, lower optimizer.lr or use precision=fp32"
    )
