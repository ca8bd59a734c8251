"""Agreement less what chance would give: Krippendorff's alpha and Fleiss' kappa.

Values are numbered 0 .. v-1; a unit is what several raters gave a value to. Both statistics depend on sums over units
alone, so that bootstrap draws are sums too.
"""

import numpy as np
from jaxtyping import Float, Int


def coincidences(values: Int[np.ndarray, " m"], count: int) -> Float[np.ndarray, "v v"]:
    """Pairs of values within one unit, each pair weighing 1 / (m - 1); zero for fewer than two values.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    if len(values) < 2:
        return np.zeros((count, count))
    times = np.bincount(values, minlength=count).astype(float)
    return (np.outer(times, times) - np.diag(times)) / (len(values) - 1)


def krippendorff_alpha(coincidence: Float[np.ndarray, "b v v"], *, ordinal: bool) -> Float[np.ndarray, " b"]:
    """Alpha of b data sets from coincidences summed over units: 1 agreed, 0 by chance; NaN if only one value occurs.

    Nominal: any two values differ by 1. Ordinal: by the number of values given between them, both ends counted half.
    """
    times = coincidence.sum(axis=2)
    total = times.sum(axis=1)
    if ordinal:
        middle = np.cumsum(times, axis=1) - times / 2
        apart = (middle[:, :, None] - middle[:, None, :]) ** 2
    else:
        apart = 1.0 - np.eye(times.shape[1])
    observed = (coincidence * apart).sum(axis=(1, 2))
    expected = (times[:, :, None] * times[:, None, :] * apart).sum(axis=(1, 2))
    ratio = np.full(len(total), np.nan)
    np.divide((total - 1) * observed, expected, out=ratio, where=expected > 0)
    return 1 - ratio


def fleiss_parts(values: Int[np.ndarray, " m"], count: int) -> Float[np.ndarray, " v_and_2"]:
    """What one unit of at least two values adds: shares of each value, share of agreeing pairs, and 1 to count it."""
    times = np.bincount(values, minlength=count).astype(float)
    agreeing = (times * (times - 1)).sum() / (len(values) * (len(values) - 1))
    return np.concatenate([times / len(values), [agreeing, 1.0]])


def fleiss_kappa(sums: Float[np.ndarray, "b v_and_2"]) -> Float[np.ndarray, " b"]:
    """Kappa of b data sets from :func:`fleiss_parts` summed over units: 1 agreed, 0 by chance; NaN for one value only.

    Fleiss 1971, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76:378. Numbers of raters
    may differ between units; every unit weighs the same.
    """
    units = sums[:, -1]
    shares, agreeing = sums[:, :-2] / units[:, None], sums[:, -2] / units
    chance = (shares**2).sum(axis=1)
    kappa = np.full(len(units), np.nan)
    np.divide(agreeing - chance, 1 - chance, out=kappa, where=chance < 1 - 1e-12)
    return kappa
