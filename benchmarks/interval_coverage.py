"""How often the 95 % intervals of the distribution metrics hold what they should: the metric's expected value.

Generated features are drawn anew again and again, references are held fixed, as the intervals hold them. The mean over
all repetitions is taken for the truth, of one arm and of the difference of two arms whose prompts are the same. For
each setting it prints the share of intervals that hold the truth and their width over the ideal one (3.92 standard
deviations of the estimates over repetitions). No times are measured.

    python benchmarks/interval_coverage.py [--quick]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowgrain.evaluate.base import FeatureSet, Metric
from flowgrain.evaluate.bootstrap import Bootstrap, cluster_rows, influence_replicates
from flowgrain.evaluate.frechet import FrechetDistance
from flowgrain.evaluate.inception_score import InceptionScore
from flowgrain.evaluate.kernel_distance import KernelDistance
from flowgrain.evaluate.precision_recall import DENSITY_COVERAGE, PRECISION_RECALL

METRICS: tuple[Metric, ...] = (
    FrechetDistance(), KernelDistance(), InceptionScore(), *PRECISION_RECALL, *DENSITY_COVERAGE
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is drawn."""

    prompts: int
    pictures: int
    """Of each prompt."""
    references: int
    features: int
    shared: float
    """Share of the variance that pictures of one prompt have in common."""
    gap: float
    """Distance of the generated from the reference mean, in units of the references' total standard deviation."""


SETTINGS = (
    Setting(8, 5, 100, 60, 0.5, 0.5),
    Setting(40, 1, 200, 60, 0.0, 1.0),
    Setting(200, 1, 200, 60, 0.0, 0.0),
    Setting(50, 4, 200, 60, 0.5, 0.0),
    Setting(50, 4, 200, 60, 0.5, 1.0),
    Setting(100, 4, 300, 8, 0.3, 0.5),
    Setting(50, 3, 500, 256, 0.5, 0.3),
)


def arms(setting: Setting, repetitions: int) -> Iterator[tuple[FeatureSet, FeatureSet]]:
    """Two arms a repetition, the second with a tenth more spread; class logits are four times the features."""
    rng = np.random.default_rng(0)
    spread = 1 / np.arange(1, setting.features + 1)
    spread /= np.linalg.norm(spread)
    pool = rng.normal(size=(setting.references, setting.features)) * spread
    count = setting.prompts * setting.pictures
    for _ in range(repetitions):
        common = np.repeat(rng.normal(size=(setting.prompts, setting.features)), setting.pictures, axis=0)
        made = []
        for scale in (1.0, 1.1):
            own = rng.normal(size=(count, setting.features))
            standard = np.sqrt(setting.shared) * common + np.sqrt(1 - setting.shared) * own
            generated = scale * standard * spread
            generated[:, 0] += setting.gap
            made.append(FeatureSet(generated, None, pool, logits=4 * scale * standard))
        yield made[0], made[1]


def interval_ends(
    metric: Metric, pair: tuple[FeatureSet, FeatureSet], clusters: list[np.ndarray], bootstrap: Bootstrap
) -> dict[str, tuple[float, float, float]]:
    """(estimate, low, high) of the first arm and of the difference."""
    estimates, replicates = [], []
    for features in pair:
        found = metric.left_out(features, clusters)
        if found is None:
            raise RuntimeError(f"{metric.title} gives no values without a prompt")
        estimates.append(found[0])
        replicates.append(influence_replicates(*found, bootstrap))
    difference = estimates[1] - estimates[0]
    return {
        "value": (estimates[0], *bootstrap.interval(estimates[0], replicates[0], len(clusters))),
        "difference": (difference, *bootstrap.interval(difference, replicates[1] - replicates[0], len(clusters))),
    }


def main() -> None:
    """Simulate, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="How often the intervals of the distribution metrics hold the truth")
    parser.add_argument("--quick", action="store_true", help="one setting, 40 repetitions")
    options = parser.parse_args()
    settings, repetitions = (SETTINGS[:1], 40) if options.quick else (SETTINGS, 200)
    bootstrap = Bootstrap(resamples=400)
    held: dict[tuple[str, str], list[float]] = defaultdict(list)
    for setting in settings:
        print(setting)
        names = [f"{prompt:04d}" for prompt in range(setting.prompts) for _ in range(setting.pictures)]
        clusters = list(cluster_rows(names).values())
        ends: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
        for pair in arms(setting, repetitions):
            for metric in METRICS:
                for kind, row in interval_ends(metric, pair, clusters, bootstrap).items():
                    ends[metric.title, kind].append(row)
        for (title, kind), rows in ends.items():
            estimates, low, high = np.array(rows).T
            truth = estimates.mean()
            share = float(((low <= truth) & (truth <= high)).mean())
            width = float((high - low).mean() / (3.92 * estimates.std()))
            held[title, kind].append(share)
            print(f"  {title:20s} {kind:10s} holds {share:.3f}, width over ideal {width:.2f}")
    result = {f"{title}, {kind}": [min(shares), max(shares)] for (title, kind), shares in held.items()}
    print(json.dumps({"benchmark": "interval_coverage", "level": 0.95, "repetitions": repetitions, "held": result}))


if __name__ == "__main__":
    main()
