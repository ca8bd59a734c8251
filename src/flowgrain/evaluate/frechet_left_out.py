"""The Frechet distance without each prompt's pictures, for all prompts at once: what its interval is made from.

Leaving out k of n rows changes the covariance by a matrix of rank k. Let U diag(sqrt(l)) V^T be the singular value
decomposition of the centred rows times the references' factor, so that M = V diag(l) V^T, and H the rows of U that are
left out. From sqrt(a) = 1/(2 pi) int_0^inf s^(-1/2) log(1 + a/s) ds and the matrix determinant lemma,

    tr sqrt(M') - tr sqrt(M) = 1/(2 pi) int_0^inf s^(-1/2) [log det(H diag(s/(l+s)) H^T + N) + log(n/(n-k))] ds
    N = I - 1 1^T/n - H H^T

No term cancels, also where a left-out row lies outside the span of the others. With s = e^u the integrand is analytic
for |Im u| < pi and falls like e^(-|u|/2), so that the trapezoidal rule of step 1 errs by e^(-2 pi^2) = 3e-9 of its
size (Trefethen and Weideman 2014, Theorem 5.1). All prompts cost a few products with U, where each alone would cost a
decomposition.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from flowgrain.evaluate.gaussian import Gaussian, nuclear_norm

NEGLIGIBLE = 1e-6
"""Singular values below this share of the greatest are taken to stay as they are."""
NODES = np.arange(-40.0, 31.0)
"""log(s / greatest eigenvalue); below the first node lies e^(-20) of the integral."""
WEIGHTS = np.append(np.ones(len(NODES) - 1), 1 / (1 - np.exp(-0.5)))
"""Of the trapezoidal rule; beyond the last node the integrand is a geometric series, which its weight sums."""
BLOCK_ROWS = 4096
BLOCK_NUMBERS = 20_000_000


def distances_left_out(
    x: Float[np.ndarray, "n d"], fitted: Gaussian, references: Gaussian, clusters: Sequence[Int[np.ndarray, " _"]]
) -> tuple[float, Float[np.ndarray, " g"]]:
    """The distance of the rows ``x``, whose Gaussian is ``fitted``, and the distance without each cluster's rows.

    NaN where fewer than two rows are left.
    """
    n = len(x)
    overlap = fitted.factor @ references.factor.T
    singular, directions = _decomposed(overlap)
    whole = nuclear_norm(overlap)
    to_u = references.factor.T @ directions / (singular * np.sqrt(n - 1))
    shift = fitted.mean - references.mean
    left_out = np.full(len(clusters), np.nan)
    for numbers in _blocks([len(rows) for rows in clusters]):
        k = len(clusters[numbers[0]])
        if n - k < 2:
            continue
        # products of two matrices, not of stacks of matrices of one row: those go through memory once for each row
        flat = x[np.concatenate([clusters[number] for number in numbers])] - fitted.mean
        rows = flat.reshape(len(numbers), k, -1)
        moved = rows.sum(axis=1) / (n - k)
        if k > len(singular) / 4:
            nuclear = _nuclear_directly((flat @ references.factor.T).reshape(len(numbers), k, -1), overlap, n)
        else:
            nuclear = whole + _nuclear_change((flat @ to_u).reshape(len(numbers), k, -1), singular**2, n)
        scatter = (n - 1) * fitted.variance - np.square(rows).sum(axis=(1, 2)) - (n - k) * np.square(moved).sum(axis=1)
        left_out[numbers] = (
            np.square(shift - moved).sum(axis=1)
            + scatter / (n - k - 1)
            + references.variance
            - 2 * np.sqrt((n - 1) / (n - k - 1)) * nuclear
        )
    distance = float(shift @ shift) + fitted.variance + references.variance - 2 * whole
    return max(distance, 0.0), left_out


def _decomposed(
    overlap: Float[np.ndarray, "a r"],
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "r s"]]:
    """Singular values and right singular vectors, but for negligible ones, from the smaller Gram matrix."""
    wide = overlap.shape[0] < overlap.shape[1]
    squares, vectors = np.linalg.eigh(overlap @ overlap.T if wide else overlap.T @ overlap)
    kept = squares > NEGLIGIBLE**2 * squares.max(initial=0.0)
    right = vectors[:, kept]
    if wide:
        right = overlap.T @ right / np.sqrt(squares[kept])
    return np.linalg.norm(overlap @ right, axis=0), right


def _blocks(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of clusters of one size, as many at once as memory should hold."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, size in enumerate(sizes):
        by_size[size].append(number)
    for size, numbers in by_size.items():
        step = max(1, min(BLOCK_ROWS // size, BLOCK_NUMBERS // (len(NODES) * size**2)))
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]


def _nuclear_change(
    h: Float[np.ndarray, "g k r"], eigenvalues: Float[np.ndarray, " r"], n: int
) -> Float[np.ndarray, " g"]:
    """tr sqrt(M') - tr sqrt(M) for g clusters of k rows; M' keeps the normalisation of M."""
    k = h.shape[1]
    s = eigenvalues.max() * np.exp(NODES)
    shares = s / (eigenvalues[:, None] + s)
    null = np.zeros((len(h), k, k))
    if h.shape[2] < n - 1:  # else the rows of U and 1/sqrt(n) are a whole basis, and rounding is all that would stay
        values, vectors = np.linalg.eigh(np.eye(k) - 1 / n - h @ h.transpose(0, 2, 1))
        null = (vectors * values.clip(0)[:, None]) @ vectors.transpose(0, 2, 1)
    matrices = np.empty((len(h), len(s), k, k))
    for row in range(k):
        products = (h[:, row : row + 1] * h[:, row:]).reshape(-1, h.shape[2]) @ shares
        matrices[:, :, row, row:] = products.reshape(len(h), k - row, -1).transpose(0, 2, 1)
        matrices[:, :, row:, row] = matrices[:, :, row, row:]
    determinants = np.linalg.slogdet(matrices + null[:, None]).logabsdet
    # log(n/(n-k)) is minus their limit; taken from the same H, it leaves no constant that sqrt(s) would blow up
    limit = np.linalg.slogdet(h @ h.transpose(0, 2, 1) + null).logabsdet
    return (determinants - limit[:, None]) @ (np.sqrt(s) * WEIGHTS) / (2 * np.pi)


def _nuclear_directly(
    left: Float[np.ndarray, "g k r"], overlap: Float[np.ndarray, "a r"], n: int
) -> Float[np.ndarray, " g"]:
    """tr sqrt(M') by eigenvalues, for clusters so large that this is the cheaper way."""
    whole = (n - 1) * overlap.T @ overlap
    values = []
    for rows in left:
        moved = rows.sum(axis=0) / (n - len(rows))
        rest = whole - rows.T @ rows - (n - len(rows)) * np.outer(moved, moved)
        values.append(np.sqrt(np.linalg.eigvalsh(rest / (n - 1)).clip(0)).sum())
    return np.array(values)
