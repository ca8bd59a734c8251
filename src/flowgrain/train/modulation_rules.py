"""The rules of ``modulation: measured`` as functions of numbers: ours, and heuristics (``docs/modulation.md``).

Arrays by granularity have its index, macro first; NaN stands for a granularity that was not measured.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from flowgrain.geometry.level_weights import balanced_weights, relative_progress
from flowgrain.granularity import GRANULARITIES

ERRORS = 2.0
"""Standard errors within which a measured difference counts as noise."""

FEWEST_ROOTS = 4
"""Held-out roots that a granularity needs: with fewer its standard error means nothing."""

GAMMA_PER_SHIFT = math.log(7 / 4)
"""c of Gamma = Gamma_0 exp(-c Delta): the least-squares fit, in log Gamma, of the paper's 4, 5, 7 at +.5, 0, -.5."""


def kept_part(square: float, error_square: float) -> float:
    """max(0, 1 - ERRORS^2 error^2 / value^2): 0 for what may be noise, near 1 for what is far above it.

    The positive-part James-Stein factor with a threshold of ERRORS standard errors.
    """
    return max(0.0, 1 - ERRORS**2 * error_square / square) if square > 0 and math.isfinite(error_square) else 0.0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What the rows (slices) and columns (noise levels) of a table of held-out losses are."""

    granularity: Int[np.ndarray, " n"]
    root: Int[np.ndarray, " n"]
    """Code of each slice's root, from 0."""
    position: Float[np.ndarray, " t"]
    """-log(SNR) / 2 of each noise level: logit t on a rectified flow."""
    density: Float[np.ndarray, " t"]
    """How much each noise level counts in the objective without modulation."""

    @property
    def measurable(self) -> list[int]:
        """Granularities with enough roots."""
        roots = [len(np.unique(self.root[self.granularity == index])) for index in range(len(GRANULARITIES))]
        return [index for index, count in enumerate(roots) if count >= FEWEST_ROOTS]


@dataclass(frozen=True, eq=False)
class Centres:
    """At which noise levels each granularity's held-out loss fell."""

    offset: Float[np.ndarray, " g"]
    """Of each centre from the mean of all, in units of ``HeldOut.position``."""
    error: Float[np.ndarray, " g"]
    """Its standard error."""


def centres(gain: Float[np.ndarray, "n t"], held_out: HeldOut) -> Centres:
    """Weighted mean position of each granularity's mean gain, negative gains as none, with a jackknife over roots.

    ``gain`` is the loss that each slice has lost at each noise level. All NaN where fewer than two granularities can be
    measured, or the loss of one of them has not fallen on the whole by more than ERRORS standard errors: clipped noise
    has a centre too, and a jackknife does not know that it means nothing.
    """
    count = len(GRANULARITIES)
    offset, error = np.full(count, np.nan), np.full(count, np.nan)
    levels = held_out.measurable
    if len(levels) < 2:
        return Centres(offset, error)
    roots = int(held_out.root.max()) + 1
    sums, slices = np.zeros((roots, count, gain.shape[1])), np.zeros((roots, count))
    np.add.at(sums, (held_out.root, held_out.granularity), gain)
    np.add.at(slices, (held_out.root, held_out.granularity), 1.0)
    sums, slices = sums[:, levels], slices[:, levels]
    whole = sums.sum(axis=0) / slices.sum(axis=0)[:, None]
    without = (sums.sum(axis=0) - sums) / (slices.sum(axis=0) - slices)[..., None]
    if (whole @ held_out.density > ERRORS * _jackknife(without @ held_out.density)).all():
        offset[levels], error[levels] = _offsets(whole, held_out), _jackknife(_offsets(without, held_out))
    return Centres(offset, error)


def _jackknife(left_out: Float[np.ndarray, "n g"]) -> Float[np.ndarray, " g"]:
    """The standard error of an estimate, from its values without one root each."""
    count = len(left_out)
    return np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(axis=0)).sum(axis=0))


def _offsets(gain: Float[np.ndarray, "... g t"], held_out: HeldOut) -> Float[np.ndarray, "... g"]:
    """Centres of gains by granularity and noise level, their mean taken off; NaN where one gained nowhere."""
    mass = gain.clip(min=0) * held_out.density
    with np.errstate(invalid="ignore"):
        centre = (mass * held_out.position).sum(axis=-1) / mass.sum(axis=-1)
    return centre - centre.mean(axis=-1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Target:
    """Where a measurement says that the shifts should be."""

    shift: Float[np.ndarray, " g"]
    kept: float
    """Part of the way from the table to the measurement that noise leaves."""


def target_shift(found: Centres, table: Float[np.ndarray, " g"], bound: float) -> Target:
    """The table, moved towards the measured offsets as far as the difference is told from noise.

    The mean of the measured granularities stays the table's, and none is farther than ``bound`` from it: where one
    would be, all differences shrink alike.
    """
    known = np.isfinite(found.offset)
    if known.sum() < 2:
        return Target(table, 0.0)
    centre = table[known].mean()
    difference = centre + found.offset[known] - table[known]
    kept = kept_part(float(np.square(difference).sum()), float(np.square(found.error[known]).sum()))
    if kept == 0:
        return Target(table, 0.0)
    offset = table[known] - centre + kept * difference
    largest = np.abs(offset).max()
    shift = table.copy()
    shift[known] = centre + offset * (min(1.0, bound / largest) if largest > 0 else 1.0)
    return Target(shift, kept)


def gammas_at(
    table: Float[np.ndarray, " g"], moved: Float[np.ndarray, " g"], bounds: tuple[float, float]
) -> Float[np.ndarray, " g"]:
    """Gamma of the table where ``moved`` (shift minus the table's) is 0, times exp(-c moved), in bounds."""
    return np.where(moved == 0, table, np.clip(table * np.exp(-GAMMA_PER_SHIFT * moved), *bounds))


def shifts_of(gammas: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
    """The shifts that gammas stand for: Gamma = Gamma_0 exp(-c shift), Gamma_0 their geometric mean."""
    logs = np.log(gammas)
    return (logs.mean() - logs) / GAMMA_PER_SHIFT


@dataclass(frozen=True, eq=False)
class Factors:
    """What measured gradients say of the levels' weights."""

    weights: Float[np.ndarray, " g"]
    """1 for all where nothing can be told."""
    progress: Float[np.ndarray, " g"]
    """Relative progress at weight 1; NaN where it cannot be told."""
    reason: str
    """Why the weights are 1 without looking at conflicts; empty where they were looked at."""


def level_factors(grams: Float[np.ndarray, "n g g"], fewest: int, bounds: tuple[float, float]) -> Factors:
    """Weights from unbiased Gram matrices of several measurements, NaN where one lacks a pair.

    A product of two levels counts as far as its mean is told from noise, measurements taken as independent; a level
    whose own square is not told from 0 leaves all at 1.
    """
    count = np.isfinite(grams).sum(axis=0)
    weights, progress = np.ones(grams.shape[1]), np.full(grams.shape[1], np.nan)
    present = np.flatnonzero(count.diagonal() > 0)
    names = [GRANULARITIES[index] for index in present]
    if len(present) < 2:
        return Factors(weights, progress, "fewer than two granularities have a gradient")
    count = count[np.ix_(present, present)]
    if count.min() < fewest:
        return Factors(weights, progress, f"{count.min()} of {fewest} measurements")
    measured = grams[:, present][:, :, present]
    mean = np.nanmean(measured, axis=0)
    error = np.nanstd(measured, axis=0, ddof=1) / np.sqrt(count)
    lost = [name for name, square, wide in zip(names, mean.diagonal(), error.diagonal(), strict=True)
            if square <= ERRORS * wide]  # fmt: skip
    if lost:
        return Factors(weights, progress, f"the gradient of {', '.join(lost)} is not told from noise")
    kept = np.vectorize(kept_part, otypes=[float])(np.square(mean), np.square(error))
    gram = mean * np.where(np.eye(len(present), dtype=bool), 1.0, kept)
    weights[present] = balanced_weights(gram, *bounds)
    progress[present] = relative_progress(gram, np.ones(len(present)))
    return Factors(weights, progress, "")
