"""Seconds to open a decomposed data set: the first time, when every slice file is read, and again.

Writes a data set of tiny slices (one small PNG, as many hard links of it as the file system allows per file, five
slices a root), opens it twice and opens it once more without its index, which must give the same data set.

    python benchmarks/open_dataset.py [--quick] [--slices N]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.data.file_index import SETTLED_NS
from flowgrain.data.manifest import INDEX_NAME
from flowgrain.data.records import MANIFEST_NAME, SliceRecord

LEVELS = ("macro", "meso", "meso", "micro", "micro")
LINKS = 10_000
"""Hard links to one file; ext4 allows 65,000."""


def write_dataset(folder: Path, slices: int) -> None:
    """A manifest of ``slices`` lines and their files, all of the same bytes."""
    lines = []
    original = Path()
    for number in range(slices):
        root, place = divmod(number, len(LEVELS))
        name = f"slices/{root // 1000:03}/root{root:06}.{place}.png"
        path = folder / name
        if number % LINKS == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), "teal").save(path)
            original = path
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(original, path)
        level = LEVELS[place]
        record = SliceRecord(
            slice_id=f"root{root:06}-1a2b3c4d/p0/{level}{place}", root=f"root{root:06}-1a2b3c4d/p0",
            image=f"root{root:06}.jpg", image_sha1=f"{root:040x}", level=level, granularity=level, path=name, width=64,
            height=64, box=(0, 0, 64, 64), crop=(0, 0, 64, 64), scale=1.0, action="native", reason="whole image",
            parent=None, detector="grid", score=1.0, caption=f"a picture of number {root}, {level}",
            caption_source="sidecar",
        )  # fmt: skip
        lines.append(record.model_dump_json() + "\n")
    (folder / MANIFEST_NAME).write_text("".join(lines), encoding="utf-8")


def timed(work: Callable[[], SliceDataset]) -> tuple[float, SliceDataset]:
    """Wall seconds of a call, and what it gave."""
    started = time.perf_counter()
    dataset = work()
    return time.perf_counter() - started, dataset


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 slices")
    parser.add_argument("--slices", type=int, default=100_000)
    options = parser.parse_args()
    slices = 10_000 if options.quick else options.slices
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, slices)
        time.sleep(SETTLED_NS / 1e9 + 0.1)  # files younger than that are not trusted
        config = DataConfig(path=folder)
        first, dataset = timed(lambda: open_dataset(config, 16))
        runs = [timed(lambda: open_dataset(config, 16)) for _ in range(3)]
        warm = statistics.median(seconds for seconds, _ in runs)
        started = time.perf_counter()
        columns = len(dataset.table), len(dataset.fingerprint)
        plan = time.perf_counter() - started
        index = (folder / INDEX_NAME).stat().st_size
        (folder / INDEX_NAME).unlink()
        same = all(again.slices == dataset.slices for _, again in runs)
        same = same and open_dataset(config, 16).fingerprint == dataset.fingerprint
    if not same or columns[0] != slices:
        raise SystemExit("the data set differs with and without its index")
    print(f"{'slices':32s} {slices:>10,}")
    print(f"{'first opening':32s} {first:>10.2f} s")
    print(f"{'opening again (median of 3)':32s} {warm:>10.2f} s")
    print(f"{'fingerprint and planner columns':32s} {plan:>10.2f} s")
    print(f"{'index':32s} {index / 2**20:>10.1f} MiB")
    result = {"seconds_warm": round(warm, 3), "seconds_first": round(first, 3)}
    print(json.dumps({"benchmark": "open_dataset", "slices": slices, **result}))


if __name__ == "__main__":
    main()
