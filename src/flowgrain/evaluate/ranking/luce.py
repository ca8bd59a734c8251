"""Strengths under Luce's choice axiom: from a set of variants, one is chosen in proportion to its strength.

Bradley and Terry (1952) have sets of two; Plackett (1975) and Luce (1959) make a ranking a row of choices, each from
what is left. Both are fitted by one iteration (Hunter 2004, "MM algorithms for generalized Bradley-Terry models",
Annals of Statistics 32:384): with w_i times chosen and c_S choices from set S,

    s_i  <-  w_i / sum over S holding i of  c_S / (sum of s over S),

which raises the likelihood every time. Where answers are nearly unanimous it crawls (more than 20,000 rounds for 5,000
equal rankings), so what has not settled after some rounds is finished by Newton's method on the log strengths, in which
the log likelihood is concave; steps are halved until they raise it.
"""

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError

_ROUNDS = 100
_NEWTON_STEPS = 200
_SMALL_STEP = 1e-6  # Newton's method converges quadratically: about the square of it is left
_WIDEST = 300.0  # span of log strengths, beyond which their squares leave the range of float64
_TOO_WIDE = (
    f"strengths spread over more than e^{_WIDEST:g}: some variants beat others and are never, or all but never, beaten "
    "by them; use a larger prior"
)


def fit_strengths(
    chosen: Float[np.ndarray, "b k"],
    choices: Float[np.ndarray, "b s"],
    members: Float[np.ndarray, "s k"],
    start: Float[np.ndarray, " k"] | None = None,
    tolerance: float = 1e-9,
) -> Float[np.ndarray, "b k"]:
    """Log strengths with mean zero, for b data sets at once; ``start`` is a guess of them.

    ``chosen`` counts how often each variant was chosen, ``choices`` how often from each set, ``members`` is 1 where a
    set holds a variant. Every variant must have been chosen, and the choices must connect all of them both ways, which
    a prior sees to. Raises DataError where strengths spread too far.
    """
    log_strengths = np.zeros_like(chosen) if start is None else np.tile(start, (len(chosen), 1))
    active = np.arange(len(chosen))
    for _ in range(_ROUNDS):
        strengths = np.exp(log_strengths[active])
        updated = np.log(chosen[active] / ((choices[active] / (strengths @ members.T)) @ members))
        updated -= updated.mean(axis=1, keepdims=True)
        moved = np.abs(updated - log_strengths[active]).max(axis=1)
        log_strengths[active] = updated
        active = active[moved > tolerance]
        if not len(active):
            return log_strengths
    log_strengths[active] = _newton(chosen[active], choices[active], members, log_strengths[active])
    return log_strengths


def _newton(
    chosen: Float[np.ndarray, "b k"],
    choices: Float[np.ndarray, "b s"],
    members: Float[np.ndarray, "s k"],
    start: Float[np.ndarray, "b k"],
) -> Float[np.ndarray, "b k"]:
    k = chosen.shape[1]
    together = (members[:, :, None] * members[:, None, :]).reshape(len(members), k * k)
    found = start.copy()
    active = np.arange(len(chosen))
    for _ in range(_NEWTON_STEPS):
        wins, counts, here = chosen[active], choices[active], found[active]
        strengths = np.exp(here - here.max(axis=1, keepdims=True))
        sums = strengths @ members.T
        expected = strengths * ((counts / sums) @ members)
        curvature = -((counts / sums**2) @ together).reshape(-1, k, k) * strengths[:, :, None] * strengths[:, None, :]
        curvature[:, range(k), range(k)] = 0
        curvature[:, range(k), range(k)] = -curvature.sum(axis=2)  # rows sum to zero; so nothing small cancels
        # the likelihood does not depend on the mean of the log strengths: fix it
        curvature += np.abs(curvature).max(axis=(1, 2), keepdims=True) / k
        step = np.linalg.solve(curvature, (wins - expected)[:, :, None])[:, :, 0]
        step -= step.mean(axis=1, keepdims=True)
        found[active] = here + _halved(step, here, wins, counts, members)
        if np.ptp(found[active], axis=1).max() > _WIDEST:
            raise DataError(_TOO_WIDE)
        active = active[np.abs(step).max(axis=1) > _SMALL_STEP]
        if not len(active):
            return found
    raise DataError(_TOO_WIDE)


def _halved(
    step: Float[np.ndarray, "b k"],
    here: Float[np.ndarray, "b k"],
    chosen: Float[np.ndarray, "b k"],
    choices: Float[np.ndarray, "b s"],
    members: Float[np.ndarray, "s k"],
) -> Float[np.ndarray, "b k"]:
    """The step, halved in each row until it does not lower the likelihood."""

    def likelihood(log_strengths: Float[np.ndarray, "b k"]) -> Float[np.ndarray, " b"]:
        return (chosen * log_strengths).sum(axis=1) - (choices * np.log(np.exp(log_strengths) @ members.T)).sum(axis=1)

    before = likelihood(here)
    slack = 1e-12 * np.abs(before)  # what rounding alone may lower it by
    for _ in range(30):
        lowered = likelihood(here + step) < before - slack
        if not lowered.any():
            break
        step = np.where(lowered[:, None], step / 2, step)
    return step
