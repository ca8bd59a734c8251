"""What a batch of slices is worth by how it is put together: drawn alone, as tuples, or large and mixed.

The gradients of single slices of some roots, each slice with its own noise and time, tell all three kinds of batches
apart at one number of slices:

* *alone*: slices drawn independently of all training slices. The noise scale counts slices.
* *tuples*: whole roots. Slices of a root share a picture, which correlates their gradients, and a root holds one slice
  or more of each level, which balances what differs among levels; the design effect (variance against as many slices
  drawn alone) is the sum of both. Two controls take them apart: *content*, the design effect with each level's mean
  gradient taken out, and *balanced*, levels in equal number but from different roots.
* *mixed*: one large batch drawn alone as implicit tuples (Semantic Granularity Alignment, G.2 and E.6.2). Its variance
  is that of *alone*; what a larger batch changes is how often all levels are in it (:func:`flowgrain.geometry.
  noise_scale.level_cooccurrence`) and how often two levels of one picture meet, which happens by chance and is rare
  unless the batch is a good part of the data.

Gradients are of one slice's loss at weight 1, in the run's time law and loss weighting; they enter through their inner
products alone, so that everything here is exact algebra on an n x n matrix. Intervals leave out one root at a time.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from flowgrain import rng
from flowgrain.data.records import MicroBatch, Slice
from flowgrain.diagnose.opened import OpenedRun
from flowgrain.geometry.noise_scale import level_cooccurrence, relative_progress, root_correlation
from flowgrain.granularity import GRANULARITIES

ROOTS = 16
PER_ROOT = 6
"""At most so many slices of a root, each level in turn."""
MIXED = (8, 16, 32, 64, 128, 256)
"""Slices of the batches whose levels are counted."""
_CONFIDENCE = 0.95
_BUCKETS = 1 << 18


@dataclass(frozen=True)
class Interval:
    """An estimate with the jackknife's interval; None ends are not known, an infinite one is."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mixture:
    """A batch of ``slices`` drawn alone from the whole data."""

    slices: int
    all_levels: float
    """Probability that every level of the data is in it."""
    with_company: float
    """Share of its slices that meet a slice of another level of their own root."""


@dataclass(frozen=True)
class BatchKinds:
    """What kinds of batches are worth, at one checkpoint."""

    slices: int
    roots: int
    sketched: bool
    """Whether inner products are those of count sketches: unbiased, off by about |a| |b| / 512."""
    gradient_square: float
    """|G|^2 of the mean over slices, unbiased; may be negative."""
    trace: float
    """tr Sigma of one slice."""
    noise_scale_slices: Interval
    """B_simple of slices drawn alone, in slices."""
    noise_scale_roots: Interval
    """B_simple of tuples, in roots."""
    slices_per_root: float
    rho: float
    """Intraclass correlation of the slices of a root."""
    tuples: Interval
    """Design effect of tuples: variance against as many slices drawn alone."""
    content: Interval
    """The same with the levels' mean gradients taken out: shared content alone."""
    balanced: Interval
    """Variance of batches with the levels in fixed shares but no common roots, against slices drawn alone."""
    mixtures: tuple[Mixture, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, with the progress that a step at ``mixtures``' sizes makes against a noiseless one."""
        alone, roots = self.noise_scale_slices.value, self.noise_scale_roots.value
        rows = []
        for mixture in self.mixtures:
            count = mixture.slices
            rows.append(
                {
                    **asdict(mixture),
                    "progress_alone": relative_progress(count, alone),
                    "progress_tuples": relative_progress(count / self.slices_per_root, roots),
                }
            )
        return {**asdict(self), "mixtures": rows}


def measure_batches(opened: OpenedRun, epoch: int) -> BatchKinds | None:
    """Of some roots of the run at the adapter's present weights; None where no kinds can be told apart.

    That is where fewer than 3 roots have two slices. Memory: the gradients, or sketches of them beyond
    ``config.memory_mib``.
    """
    slices = opened.train.dataset.slices
    chosen = choose_slices(slices, opened.seed)
    if len(chosen) < 3:
        return None
    rows = [index for members in chosen.values() for index in members]
    gram, sketched = slice_gram(opened, rows, epoch)
    roots = np.array([place for place, members in enumerate(chosen.values()) for _ in members])
    levels = np.array([slices[index].granularity for index in rows])
    return batch_kinds(gram, roots, levels, mixtures(slices), sketched)


def choose_slices(slices: Sequence[Slice], seed: int) -> dict[str, list[int]]:
    """Slices of up to ``ROOTS`` roots with two slices or more, ``PER_ROOT`` each, levels in turn; drawn by identity."""
    by_root: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(slices):
        by_root[item.root].append(index)
    several = [root for root, members in by_root.items() if len(members) > 1]
    several.sort(key=lambda root: (rng.stable_seed(seed, root, "batch kinds"), root))
    return {root: _in_turn(by_root[root], slices, seed)[:PER_ROOT] for root in several[:ROOTS]}


def _in_turn(members: Sequence[int], slices: Sequence[Slice], seed: int) -> list[int]:
    """Slices of a root, one of each level after another."""
    place: dict[int, tuple[int, int]] = {}
    for level in range(len(GRANULARITIES)):
        own = [index for index in members if slices[index].granularity == level]
        own.sort(key=lambda index: rng.stable_seed(seed, slices[index].slice_id, "batch kinds"))
        place |= {index: (turn, level) for turn, index in enumerate(own)}
    return sorted(members, key=lambda index: place[index])


def slice_gram(opened: OpenedRun, rows: Sequence[int], epoch: int) -> tuple[Float[np.ndarray, "n n"], bool]:
    """Inner products of the slices' gradients in float64, and whether they are sketched."""
    parameters = opened.objective.parameters()
    size = sum(parameter.numel() for _, parameter in parameters)
    sketched = 4 * size * len(rows) > opened.config.memory_mib * 2**20
    held: list[Tensor] = []
    try:
        for index in rows:
            batch = opened.train.builder.build(MicroBatch(np.array([index]), np.ones(1)), epoch)
            with opened.autocast():
                loss = opened.objective.per_sample(batch).total.sum()
            loss.backward()
            held.append(_sketch(parameters) if sketched else _flat(parameters))
            for _, parameter in parameters:
                parameter.grad = None
    finally:
        for _, parameter in parameters:
            parameter.grad = None
    gram = np.array([[torch.dot(a.double(), b.double()).item() if i >= j else 0.0 for j, b in enumerate(held)]
                     for i, a in enumerate(held)])  # fmt: skip
    return gram + np.tril(gram, -1).T, sketched


def _flat(parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> Float[Tensor, " p"]:
    return torch.cat([(p.new_zeros(p.shape) if p.grad is None else p.grad).float().reshape(-1) for _, p in parameters])


def _sketch(parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> Float[Tensor, " k"]:
    """A count sketch (Charikar et al. 2002); buckets and signs are drawn anew from the parameters' names."""
    sums = torch.zeros(2 * _BUCKETS, device=parameters[0][1].device)
    for name, parameter in parameters:
        if parameter.grad is not None:
            draw = rng.generator("batch kinds sketch", name)
            target = torch.randint(0, 2 * _BUCKETS, (parameter.numel(),), generator=draw, dtype=torch.int32)
            sums.index_add_(0, target.to(sums.device), parameter.grad.float().reshape(-1))
    return sums[:_BUCKETS] - sums[_BUCKETS:]


def batch_kinds(
    gram: Float[np.ndarray, "n n"],
    roots: np.ndarray,
    levels: np.ndarray,
    drawn: tuple[Mixture, ...],
    sketched: bool = False,
) -> BatchKinds:
    """From inner products of slice gradients, the root (code) and the level (index) of each slice; 3 roots at least."""

    def jackknifed(statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> tuple[float, float]:
        left = [roots != root for root in np.unique(roots)]
        values = np.array([statistic(gram[np.ix_(kept, kept)], roots[kept], levels[kept]) for kept in left])
        whole, n = statistic(gram, roots, levels), len(values)
        return whole, math.sqrt((n - 1) / n * np.square(values - values.mean()).sum())

    reach = float(stdtrit(len(np.unique(roots)) - 1, (1 + _CONFIDENCE) / 2))

    def ends(statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Interval:
        value, error = jackknifed(statistic)
        return Interval(value, value - reach * error, value + reach * error)

    def turned(statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Interval:
        # of the signal-to-noise ratio, which stays finite and near normal where the signal is small
        ratio = ends(statistic)
        value, low, high = (1 / x if x > 0 else math.inf for x in (ratio.value, ratio.high, ratio.low))
        return Interval(value, low, high)

    signal, trace = slice_moments(gram, roots)
    correlation = root_correlation(_by_root(_factor(gram), roots))
    return BatchKinds(
        slices=len(gram),
        roots=len(np.unique(roots)),
        sketched=sketched,
        gradient_square=signal,
        trace=trace,
        noise_scale_slices=turned(lambda g, r, _: float(np.divide(*slice_moments(g, r)))),
        noise_scale_roots=turned(lambda g, r, _: float(np.divide(*slice_moments(*_root_means(g, r))))),
        slices_per_root=correlation.slices_per_root,
        rho=correlation.rho,
        tuples=ends(lambda g, r, _: _design_effect(g, r)),
        content=ends(lambda g, r, level: _design_effect(_without_levels(g, level), r)),
        balanced=ends(_balanced),
        mixtures=drawn,
    )


def slice_moments(gram: Float[np.ndarray, "n n"], roots: np.ndarray) -> tuple[float, float]:
    """(|G|^2, tr Sigma) of one slice drawn alone, unbiased: only pairs of different roots tell the square."""
    apart = roots[:, None] != roots[None, :]
    signal = float(gram[apart].mean())
    return signal, float(gram.diagonal().mean()) - signal


def _root_means(gram: Float[np.ndarray, "n n"], roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of the roots' mean gradients."""
    names, places = np.unique(roots, return_inverse=True)
    average = np.zeros((len(names), len(roots)))
    average[places, np.arange(len(roots))] = 1
    average /= average.sum(axis=1, keepdims=True)
    return average @ gram @ average.T, np.arange(len(names))


def _design_effect(gram: Float[np.ndarray, "n n"], roots: np.ndarray) -> float:
    return root_correlation(_by_root(_factor(gram), roots)).design_effect


def _without_levels(gram: Float[np.ndarray, "n n"], levels: np.ndarray) -> np.ndarray:
    """Inner products of the gradients with their level's mean taken out."""
    same = (levels[:, None] == levels[None, :]).astype(np.float64)
    centring = np.eye(len(levels)) - same / same.sum(axis=1, keepdims=True)
    return centring @ gram @ centring.T


def _balanced(gram: Float[np.ndarray, "n n"], roots: np.ndarray, levels: np.ndarray) -> float:
    """Mean over slices of the variance within their level, over the variance of a slice drawn alone."""
    within = 0.0
    for level in np.unique(levels):
        own = levels == level
        if len(np.unique(roots[own])) < 2:
            return math.nan
        within += own.mean() * slice_moments(gram[np.ix_(own, own)], roots[own])[1]
    return within / slice_moments(gram, roots)[1]


def _factor(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n k"]:
    """Rows with the inner products of ``gram``: n numbers stand for a gradient of any length."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))


def _by_root(rows: Float[np.ndarray, "n k"], roots: np.ndarray) -> Mapping[str, list[Tensor]]:
    return {str(root): list(torch.from_numpy(rows[roots == root])) for root in np.unique(roots)}


def mixtures(slices: Sequence[Slice], sizes: Sequence[int] = MIXED) -> tuple[Mixture, ...]:
    """Batches of up to as many slices as there are, drawn alone: how often levels meet in them."""
    levels = np.array([item.granularity for item in slices])
    names, counts = np.unique(levels, return_counts=True)
    shares = {GRANULARITIES[name]: count / len(slices) for name, count in zip(names, counts, strict=True)}
    of_root: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(GRANULARITIES), dtype=np.int64))
    for item in slices:
        of_root[item.root][item.granularity] += 1
    company = np.array([of_root[item.root].sum() - of_root[item.root][item.granularity] for item in slices])
    return tuple(
        Mixture(size, level_cooccurrence(shares, size), _company(company, len(slices), size))
        for size in sizes
        if size <= len(slices)
    )


def _company(company: np.ndarray, total: int, size: int) -> float:
    """Mean chance that one of a slice's ``company`` is among the other ``size`` - 1 of ``total`` - 1."""
    none = np.ones(len(company))
    for step in range(size - 1):
        none *= np.clip((total - 1 - company - step) / (total - 1 - step), 0, 1)
    return float(1 - none.mean())
