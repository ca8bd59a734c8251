"""Weights of the levels' losses from how their gradients meet.

With g_a the gradient of level a's part of the loss and G_ab = <g_a, g_b> (the effective interaction of Semantic
Granularity Alignment, Eqs. 43-45), a small step of plain gradient descent on sum_b w_b L_b lowers L_a by (G w)_a times
the rate. Divided by what level a would gain from its own gradient alone,

    p_a(w) = (G w)_a / G_aa = w_a + sum over b != a of  w_b G_ab / G_aa

is level a's *relative progress*: w_a where the levels are orthogonal, whatever their norms, more where the others help
and less where they hinder. Weights that maximise the smallest p_a raise the level that loses most. The rule is ours;
the paper has no such step. Max-min over tasks is the idea of Desideri 2012 (MGDA) and Liu et al. 2021 (CAGrad, arXiv
2110.14048), which choose an update direction; here the direction stays a sum of the levels' gradients, with bounded
weights.
"""

import numpy as np
from jaxtyping import Float
from scipy.linalg import null_space
from scipy.optimize import linprog, nnls

_SLACK = 1e-9
"""How much of the best smallest progress may be given up, for the second step to have room for rounding."""


def relative_progress(gram: Float[np.ndarray, "g g"], weights: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
    """p_a(w) = (G w)_a / G_aa. Raises ValueError unless every G_aa is positive."""
    square = gram.diagonal()
    if not (np.isfinite(gram).all() and (square > 0).all()):
        raise ValueError("relative progress needs finite inner products and positive squared norms")
    return gram @ weights / square


def balanced_weights(gram: Float[np.ndarray, "g g"], low: float, high: float) -> Float[np.ndarray, " g"]:
    """The weights of mean 1 in [low, high] with the largest smallest relative progress, nearest to 1.

    Progress above 1 counts as 1: a level that the others help needs nothing, so that only a level that loses changes
    the weights. Of all best weights those with the least |w - 1|, which makes them unique and independent of the order
    of the levels; 1 for all where no level loses. Raises ValueError unless low <= 1 <= high and all G_aa > 0.
    """
    if not low <= 1 <= high:
        raise ValueError(f"bounds {low:g} and {high:g}: must enclose 1")
    ones = np.ones(len(gram))
    if (relative_progress(gram, ones) >= 1).all():
        return ones
    rows = gram / gram.diagonal()[:, None]
    reached = _best_smallest(rows, low, high) - _SLACK
    eye = np.eye(len(gram))
    sides = np.concatenate([rows, eye, -eye])
    least = np.concatenate([reached - rows @ ones, (low - 1) * ones, (1 - high) * ones])
    basis = null_space(ones[None])  # steps that keep the mean
    return np.clip(ones + basis @ _least_distance(sides @ basis, least), low, high)


def _best_smallest(rows: Float[np.ndarray, "g g"], low: float, high: float) -> float:
    """max over w of min(1, min_a (rows w)_a), a linear program in (w, s)."""
    count = len(rows)
    found = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.column_stack([-rows, np.ones(count)]),
        b_ub=np.zeros(count),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[count],
        bounds=[*[(low, high)] * count, (None, 1.0)],
    )
    return float(found.x[-1])


def _least_distance(sides: Float[np.ndarray, "m n"], least: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """The shortest x with sides x >= least (Lawson and Hanson 1974, chapter 23: problem LDP through NNLS)."""
    target = np.append(np.zeros(sides.shape[1]), 1.0)
    stacked = np.vstack([sides.T, least])
    residual = stacked @ nnls(stacked, target)[0] - target
    return -residual[:-1] / residual[-1]
