"""Small operations on NumPy columns that the parts of the planner share."""

import numpy as np


def ranks(codes: np.ndarray) -> np.ndarray:
    """Codes replaced by their ranks among the distinct ones, int64, 0 to n - 1."""
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int64)


def run_starts(values: np.ndarray) -> np.ndarray:
    """Index of the first entry of each run of equal values."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1]))


def place_in_run(starts: np.ndarray, total: int) -> np.ndarray:
    """Place of each of ``total`` entries in its run, 0 first."""
    return np.arange(total) - np.repeat(starts, np.diff(np.append(starts, total)))


def distinct_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs: the first entry of each, its number of rows, and each row's pair."""
    second = ranks(second)
    width = int(second.max()) + 1
    pairs, inverse, counts = np.unique(first * width + second, return_inverse=True, return_counts=True)
    return pairs // width, counts, inverse.reshape(-1)
