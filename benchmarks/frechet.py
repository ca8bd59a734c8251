"""Time of a Frechet distance from two means and covariances: ours, and with scipy.linalg.sqrtm as everybody has it.

Full-rank covariances of 2048 features (--quick: 512), variances falling by 1e5. Runs are interleaved; the median of
their ratios is printed with its 95 % bootstrap interval. ``relative_difference`` is that of the two distances.
``interval_over_distance`` is the time of leaving out each of as many pictures as there are features, which an interval
is made from, over the time of one distance from pictures.

    python benchmarks/frechet.py [--quick]
"""

import argparse
import json

import numpy as np
import scipy.linalg
from interleaved import median, seconds, times

from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.frechet import FrechetDistance, frechet_distance, frechet_distance_of_moments
from flowgrain.evaluate.moments import Moments, moments_of


def features(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Rows of a Gaussian in a random basis, standard deviations falling from 1 to 0.003."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    spread = np.geomspace(1, 0.003, dimension)
    return (rng.normal(size=(rows, dimension)) * spread) @ basis + rng.normal(size=dimension) * 0.1


def by_sqrtm(x: Moments, y: Moments) -> float:
    """The distance as pytorch-fid and ADM's evaluator compute it."""
    root = scipy.linalg.sqrtm(x.covariance @ y.covariance)
    shift = x.mean - y.mean
    traces = np.trace(x.covariance) + np.trace(y.covariance) - 2 * np.trace(np.real(root))
    return float(shift @ shift + traces)


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Time of a Frechet distance: ours and scipy.linalg.sqrtm's")
    parser.add_argument("--quick", action="store_true", help="512 features, 3 pairs of runs")
    options = parser.parse_args()
    dimension, pairs = (512, 3) if options.quick else (2048, 7)
    x, y = (moments_of(features(2 * dimension, dimension, seed)) for seed in (0, 1))
    distance, expected = frechet_distance_of_moments(x, y), by_sqrtm(x, y)
    ours, theirs = times(
        lambda: frechet_distance_of_moments(x, y), lambda: by_sqrtm(x, y), pairs, warm_up=0
    )  # both were called above
    generated, references = features(dimension, dimension, 1000), features(2 * dimension, dimension, 1001)
    clusters = [np.array([row]) for row in range(dimension)]
    one = seconds(lambda: frechet_distance(generated, references))
    all_left_out = seconds(lambda: FrechetDistance().left_out(FeatureSet(generated, None, references), clusters))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    difference = abs(distance - expected) / expected
    print(f"{dimension} features, two full-rank covariances, {pairs} pairs of runs")
    for name, values in (("seconds, ours", ours), ("seconds, sqrtm", theirs), ("speedup over sqrtm", ratios)):
        middle, low, high = median(values)
        print(f"{name:20s} {middle:8.2f} [{low:.2f}, {high:.2f}]")
    print(f"{'relative difference':20s} {difference:8.1e}")
    print(f"{'interval / distance':20s} {all_left_out / one:8.2f}")
    result = {
        "speedup_over_sqrtm": round(median(ratios)[0], 2),
        "seconds": round(median(ours)[0], 3),
        "seconds_sqrtm": round(median(theirs)[0], 3),
        "relative_difference": float(f"{difference:.1e}"),
        "interval_over_distance": round(all_left_out / one, 2),
    }
    print(json.dumps({"benchmark": "frechet", "dimension": dimension, "pairs": pairs, **result}))


if __name__ == "__main__":
    main()
