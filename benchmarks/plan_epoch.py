"""Time, memory and fill of planning an epoch, for both packings.

A million slices of 435,000 roots at three levels in kohya's 41 shapes for 1024 px, with the aspects of a photo
collection at the macro level and of detected boxes below it. Every plan is made in a process of its own, whose
greatest resident size counts in full, interpreter and libraries included. Packings alternate; the median is printed
with its 95 % bootstrap interval. The table is ready before the clock starts: reading a manifest is not counted.

    python benchmarks/plan_epoch.py [--quick]
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
from interleaved import median

from flowgrain.data.buckets import bucket_list
from flowgrain.data.tuples import SliceTable, TupleConfig, plan_epoch, plan_hash

PHOTO_ASPECTS = {3 / 2: 0.26, 2 / 3: 0.14, 4 / 3: 0.14, 3 / 4: 0.11, 16 / 9: 0.09, 9 / 16: 0.08, 1.0: 0.07, 5 / 4: 0.05}
"""Shares of the common aspects; the rest is log-normal with deviation 0.5."""
LEVEL_SHARES = (1.0, 0.8, 0.5)
"""Probability that a root has a macro, meso and micro slice."""
BOX_ASPECTS = ((-0.1, 0.35), (0.0, 0.15))
"""Mean and deviation of log(width / height) of meso and micro boxes."""
MICRO_BATCHES = (4, 8)


@dataclass(frozen=True)
class Measurement:
    """One plan."""

    seconds: float
    hash_seconds: float
    gigabytes: float
    """Greatest resident size of the process."""
    updates: int
    fills: tuple[float, ...]
    """By :data:`MICRO_BATCHES`."""


def collection(slices: int, seed: int = 0) -> SliceTable:
    """About ``slices`` slices with realistic shapes."""
    rng = np.random.default_rng(seed)
    roots = round(slices / sum(LEVEL_SHARES))
    shares = np.array(list(PHOTO_ASPECTS.values()))
    pick = rng.choice(len(shares) + 1, roots, p=np.append(shares, 1 - shares.sum()))
    aspects = [np.append(np.log(list(PHOTO_ASPECTS)), 0.0)[pick] + rng.normal(0, 0.5, roots) * (pick == len(shares))]
    aspects += [rng.normal(mean, deviation, roots) for mean, deviation in BOX_ASPECTS]
    present = rng.random((roots, len(LEVEL_SHARES))) < LEVEL_SHARES
    root, level = np.nonzero(present)
    return SliceTable(root, level.astype(np.int8), level, _nearest_bucket(np.stack(aspects, axis=1)[present]))


def _nearest_bucket(log_aspect: np.ndarray) -> np.ndarray:
    """Index of the shape whose log aspect is nearest."""
    shapes = np.array(sorted(np.log(width / height) for width, height in bucket_list(1024, 64, 256, 2048)))
    return np.searchsorted((shapes[1:] + shapes[:-1]) / 2, log_aspect)


def measure(slices: int, packing: str, epoch: int) -> Measurement:
    """Plan once, in this process."""
    table = collection(slices)
    config = TupleConfig.model_validate({"batch_size": 8, "packing": packing})
    started = time.perf_counter()
    updates = plan_epoch(table, config, 0, epoch)
    planned = time.perf_counter()
    plan_hash(updates)
    hashed = time.perf_counter()
    # kilobytes, but bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    scale = 1e6 / len(table)
    # micro-batches of 8 cut in two where they are larger than 4: what planning with micro_batch 4 gives
    sizes = np.array([len(batch.slices) for update in updates for batch in update.micro_batches])
    fills = tuple(float(sizes.sum() / (micro * (-(-sizes // micro)).sum())) for micro in MICRO_BATCHES)
    return Measurement((planned - started) * scale, (hashed - planned) * scale, peak / 2**30, len(updates), fills)


def measure_alone(slices: int, packing: str, epoch: int) -> Measurement:
    """Plan once, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (slices, packing, epoch))


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Time, memory and fill of planning an epoch")
    parser.add_argument("--quick", action="store_true", help="200,000 slices, 2 plans each")
    options = parser.parse_args()
    slices, plans = (200_000, 2) if options.quick else (1_000_000, 7)
    measured: dict[str, list[Measurement]] = {"random": [], "fill": []}
    for epoch in range(plans):
        for packing, runs in measured.items():
            runs.append(measure_alone(slices, packing, epoch))
    print(f"{slices} slices, 8 roots an update, {plans} plans each; seconds per million slices")
    print(f"{'packing':8s} {'seconds':>24s} {'hash':>6s} {'peak GB':>8s} {'updates':>8s}  fill at micro-batch 4, 8")
    result: dict[str, float] = {}
    for packing, runs in measured.items():
        middle, low, high = median([run.seconds for run in runs])
        hashing, peak = median([run.hash_seconds for run in runs])[0], max(run.gigabytes for run in runs)
        fills = np.mean([run.fills for run in runs], axis=0)
        print(
            f"{packing:8s} {middle:8.2f} [{low:5.2f}, {high:5.2f}] {hashing:6.2f} {peak:8.2f} {runs[0].updates:8d}  "
            + ", ".join(f"{value:.3f}" for value in fills)
        )
        suffix = "" if packing == "random" else "_fill"
        result |= {f"seconds_per_million{suffix}": round(middle, 2), f"peak_gb{suffix}": round(peak, 2)}
        result |= {f"fill_{packing}_{m}": round(float(v), 3) for m, v in zip(MICRO_BATCHES, fills, strict=True)}
    print(json.dumps({"benchmark": "plan_epoch", "slices": slices, **result}))


if __name__ == "__main__":
    main()
