"""Memory of filling and reading a cache of many large posteriors on disk.

Synthetic entries of the size of a 4096 px picture's posterior of an f16 autoencoder (16 x 256 x 256, mean and
log-variance in float32, 8 MiB) in both mirror states are encoded, stored and read in random order. ``growth_mib`` is
what the process's peak grows by; ``stored_mib`` what lies on disk.

    python benchmarks/streamed_cache.py [--quick]
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import torch

from flowgrain.data.cache import ignore_progress
from flowgrain.data.shards import ShardStore, Tensors

MIB = 2**20


def entry(item: int) -> Tensors:
    """A posterior that is told by its first value."""
    mean = torch.full((1, 16, 256, 256), float(item))
    return {"mean": mean, "logvar": -mean}


def peak_mib() -> float:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(description="Memory of a cache of large entries.")
    parser.add_argument("--quick", action="store_true", help="0.5 GiB instead of 4 GiB")
    pictures = 32 if parser.parse_args().quick else 256
    with tempfile.TemporaryDirectory() as name:
        entry(0)
        before = peak_mib()
        store = ShardStore(Path(name), "posterior", "model")
        keys = [(item, store.key(str(item))) for item in range(2 * pictures)]
        started = time.perf_counter()
        store.complete(keys, entry, lambda _: 1, ignore_progress)
        filled, after_fill = time.perf_counter() - started, peak_mib()
        opened = ShardStore(Path(name), "posterior", "model")
        order = keys * 2
        random.Random(0).shuffle(order)
        started = time.perf_counter()
        for item, key in order:
            if float(opened.read(key, dict)["mean"][0, 0, -1, -1]) != item:
                raise RuntimeError(f"entry {item} is another one")
        read = time.perf_counter() - started
        stored = sum(path.stat().st_size for path in Path(name).iterdir()) / MIB
    print(
        json.dumps({
            "benchmark": "streamed_cache", "entries": len(keys), "stored_mib": round(stored),
            "growth_mib": {"fill": round(after_fill - before), "fill_and_read": round(peak_mib() - before)},
            "ms_an_entry": {"fill": round(1000 * filled / len(keys), 1), "read": round(1000 * read / len(order), 1)},
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
