"""Agreement of the orders that several raters gave of the same variants: Kendall's W, tau-b, Spearman's correlation."""

import numpy as np
from jaxtyping import Float


def kendalls_w(ranks: Float[np.ndarray, "m k"]) -> float:
    """Kendall's coefficient of concordance of m raters' ranks of k variants, corrected for ties; NaN if all are tied.

    Kendall 1948, "Rank Correlation Methods", chapter 6: 12 S / (m^2 (k^3 - k) - m sum T), T = t^3 - t over tiers.
    1 if all agree; 1 / m on average if nobody does.
    """
    m, k = ranks.shape
    sums = ranks.sum(axis=0)
    tiers = (ranks[:, :, None] == ranks[:, None, :]).sum(axis=2)  # each member of a tier of t counts t^2 - 1
    whole = m**2 * (k**3 - k) - m * float((tiers**2 - 1).sum())
    return float(12 * ((sums - sums.mean()) ** 2).sum() / whole) if whole > 0 else np.nan


def mean_kendall_tau(ranks: Float[np.ndarray, "m k"]) -> float:
    """Mean of Kendall's tau-b over the pairs of rows; pairs with a row of ties only are left out, NaN if none is left.

    Kendall 1945, "The treatment of ties in ranking problems", Biometrika 33:239.
    """
    first, second = np.triu_indices(ranks.shape[1], 1)
    return _mean_cosine(np.sign(ranks[:, first] - ranks[:, second]))


def mean_spearman(ranks: Float[np.ndarray, "m k"]) -> float:
    """Mean of Spearman's rank correlation over the pairs of rows, left out as in :func:`mean_kendall_tau`.

    Without ties it is (m W - 1) / (m - 1) with Kendall's W.
    """
    return _mean_cosine(ranks - ranks.mean(axis=1, keepdims=True))


def _mean_cosine(rows: Float[np.ndarray, "m d"]) -> float:
    lengths = np.linalg.norm(rows, axis=1)
    unit = rows[lengths > 0] / lengths[lengths > 0, None]
    count = len(unit)
    if count < 2:
        return np.nan
    cosine = ((unit.sum(axis=0) ** 2).sum() - count) / (count * (count - 1))
    return float(np.clip(cosine, -1.0, 1.0))
