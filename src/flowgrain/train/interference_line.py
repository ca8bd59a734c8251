"""From inner products of partial gradients to a line of the log, and back from lines to what geometry pools.

The gradient of an update is a sum over (level, half), the halves being disjoint sets of the update's roots. The inner
products of these parts, 2g x 2g numbers, hold everything that a line says: whole levels are sums of two parts, unbiased
estimates are products of parts of different halves (:func:`flowgrain.geometry.gradients.cross_gram`), and the spread
between halves is the noise (:mod:`flowgrain.geometry.noise_scale`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowgrain.geometry.gradients import InteractionLog, Interactions
from flowgrain.geometry.noise_scale import UpdateNorms
from flowgrain.granularity import GRANULARITIES

Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class PartProducts:
    """Inner products of the gradients of all (level, half) of one update, in float64; h counts the two halves."""

    levels: tuple[str, ...]
    gram: Float[np.ndarray, "g h g h"]
    """<g_ah, g_bk>; zero for a part without slices, NaN where a gradient is not finite."""
    weight: Float[np.ndarray, "g h"]
    """Sum of the slices' weights w_i in each part."""
    level_units: Int[np.ndarray, "g h"]
    """Roots (or slices, where they are drawn alone) with a slice in each part."""
    units: tuple[int, int]
    """Roots (or slices) in each half."""

    def whole(self) -> Interactions:
        """The levels' gradients as this update has them."""
        return Interactions(self.levels, self.gram.sum(axis=(1, 3)))

    def unbiased(self) -> Interactions:
        """Estimates of the expected gradients' products, from halves that share no root.

        Each part is scaled to its level's whole weight. NaN where no two parts of different halves exist.
        """
        share = self.weight / self.weight.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = self.gram / (share[:, :, None, None] * share)  # 0 / 0 = NaN: a part that is not there
        crossed = np.stack([scaled[:, 0, :, 1], scaled[:, 1, :, 0]])
        known = ~np.isnan(crossed)
        count = known.sum(axis=0)
        gram = np.where(known, crossed, 0.0).sum(axis=0) / np.maximum(count, 1)
        return Interactions(self.levels, np.where(count > 0, gram, np.nan))

    def noise(self) -> dict[str, UpdateNorms | None]:
        """Norms of half and whole gradients, of each level and of the ``update``; None where a half is empty.

        The units of a half count by its share of the weight, so that the mean over units is the update's gradient.
        """
        found = {
            level: _norms(self.gram[i, :, i, :], self.weight[i], int(self.level_units[i].sum()))
            for i, level in enumerate(self.levels)
        }
        return found | {"update": _norms(self.gram.sum(axis=(0, 2)), self.weight.sum(axis=0), sum(self.units))}


def _norms(gram: Float[np.ndarray, "h h"], weight: Float[np.ndarray, " h"], units: int) -> UpdateNorms | None:
    if not (weight > 0).all():
        return None
    share = weight / weight.sum()
    part_square = units * float((gram.diagonal() / share).sum())
    return UpdateNorms(parts=2, units=units, part_square=part_square, total_square=float(gram.sum()))


def interaction_values(products: PartProducts) -> Line:
    """What a line says of the levels' gradients; NaN where something cannot be told."""
    whole, unbiased = products.whole(), products.unbiased()
    products_by_pair = by_pair(whole.levels, whole.gram)
    return {
        "levels": list(products.levels),
        "units_by_half": list(products.units),
        "units_by_level": by_level(products.levels, products.level_units.sum(axis=1)),
        "norm_by_level": by_level(whole.levels, whole.norms),
        "gram": whole.gram.tolist(),
        "gram_unbiased": unbiased.gram.tolist(),
        "cosine": by_pair(whole.levels, whole.cosines),
        "conflict": {pair: value < 0 if math.isfinite(value) else None for pair, value in products_by_pair.items()},
        "conflict_rate": whole.conflict_rate if np.isfinite(whole.gram).all() else math.nan,
        "magnitude_similarity": by_pair(whole.levels, whole.magnitude_similarity),
        "cross_share": whole.cross_share,
        "resultant": whole.resultant,
        "noise": {name: _noise_values(norms) for name, norms in products.noise().items() if norms is not None},
    }


def _noise_values(norms: UpdateNorms) -> Line:
    square, trace = norms.moments()
    return {
        "units": norms.units,
        "parts": norms.parts,
        "part_square": norms.part_square,
        "total_square": norms.total_square,
        "gradient_square": square,
        "trace": trace,
    }


def by_level(levels: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """One value a level."""
    return dict(zip(levels, values.tolist(), strict=True))


def by_pair(levels: Sequence[str], matrix: np.ndarray) -> dict[str, float]:
    """The values above the diagonal by ``a-b``."""
    places = combinations(range(len(levels)), 2)
    return {f"{levels[i]}-{levels[j]}": float(matrix[i, j]) for i, j in places}


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def interaction_log(lines: Sequence[Mapping[str, Any]], *, unbiased: bool) -> InteractionLog:
    """The Gram matrices of the ``interference`` lines of a run's log; other lines are passed over.

    ``unbiased`` takes those of independent halves, whose pooled norms, products and cosines are consistent; without it
    the gradients are those that the updates had.
    """
    key = "gram_unbiased" if unbiased else "gram"
    found = [line for line in lines if line["kind"] == "interference"]
    present = {level for line in found for level in line["levels"]}
    log = InteractionLog([level for level in GRANULARITIES if level in present])
    for line in found:
        log.add(Interactions(tuple(line["levels"]), np.array(line[key], dtype=np.float64)))
    return log


def update_norms_of(line: Mapping[str, Any], name: str = "update") -> UpdateNorms | None:
    """What :class:`flowgrain.geometry.noise_scale.NoiseScaleLog` takes of a line, for a level or the whole update.

    None where the update had too few roots, or a gradient was not finite.
    """
    values = line["noise"].get(name)
    if values is None or values["total_square"] is None or values["part_square"] is None:
        return None
    return UpdateNorms(values["parts"], values["units"], values["part_square"], values["total_square"])
