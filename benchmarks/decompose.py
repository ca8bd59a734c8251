"""What decompose costs: against the sum of its parts, against plain Pillow, with two workers, and in memory.

    python benchmarks/decompose.py [--quick]

* total_over_stages: a run in this process over the sum of its stages, each done alone over the same pictures
  (read and hash, decode, find boxes, decide, render, measure, encode, write, the contact sheet of 24 roots);
* over_pillow: the same run over a plain Pillow loop that is told every crop and only opens, crops, resizes and
  saves, at the same level of compression;
* workers_2_over_1: images a second of two worker processes over one (600 small photographs, some 20 chunks), start-up
  left out by going from 150 images to 600;
* memory_ratio: resident memory after the last image over that after the first 200.
"""

import argparse
import gc
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from interleaved import median, ratio, seconds
from PIL import Image

from flowgrain.clock import Clock
from flowgrain.config import load_config
from flowgrain.data.captions import caption_beside
from flowgrain.data.collections import Folder, Item
from flowgrain.data.images import decode_image, sha1_of_bytes
from flowgrain.data.records import SliceRecord
from flowgrain.files import replace_bytes, sync_files
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.contact_sheet import update_contact_sheet
from flowgrain.slices.cutting import cut, inputs_digest, render
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.detectors import DetectorContext
from flowgrain.slices.executors.local import InProcess, WorkerProcesses
from flowgrain.slices.finding import find
from flowgrain.slices.measuring import measured
from flowgrain.slices.outputs import encode
from flowgrain.slices.presets import preset_path
from flowgrain.slices.scheme import Schemes

SETTINGS = load_config(DecomposeConfig, preset_path("sd15-512"), [])[0]
SMALL = load_config(DecomposeConfig, preset_path("tiny-128"), [])[0]


def write_photos(folder: Path, count: int, size: tuple[int, int], links: int = 1) -> Path:
    """Pictures with the detail of photographs: noise at every scale. ``links`` names for each of them."""
    folder.mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        image = np.zeros((size[1], size[0], 3), np.float32)
        for power in range(2, 9):
            side = max(size[0] >> (8 - power), 2), max(size[1] >> (8 - power), 2)
            layer = Image.fromarray(rng.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))
            image += np.asarray(layer.resize(size, Image.Resampling.BICUBIC), np.float32) / 2.0**power
        path = folder / f"photo{index:05d}.jpg"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path, quality=92)
        path.with_suffix(".txt").write_text(f"photograph {index}")
        for link in range(1, links):
            os.link(path, folder / f"photo{index:05d}x{link}.jpg")
    return folder


def stages(source: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage, done alone over all pictures with nothing around it."""
    collection = Folder(source)
    scheme = Schemes(SETTINGS, DetectorContext(source, "", 1)).base
    items = [Item(collection, name) for name in collection.names()]
    clock = Clock()
    files: list[Path] = []
    records: list[SliceRecord] = []
    for item in items:
        with clock.stage("read and hash"):
            data = item.read()
            sha1 = sha1_of_bytes(data)
            inputs_digest(item, scheme)
        with clock.stage("decode"):
            image, _ = decode_image(data, Path(item.place()))
        with clock.stage("find"):
            (found,) = find([image], [item], [scheme])
        with clock.stage("decide"):
            cuts = cut(found, item, sha1, scheme, caption_beside(item))
        with clock.stage("render"):
            pictures = [render(image, record, scheme.upscaler) for record in cuts.records]
        with clock.stage("measure"):
            for picture in pictures:
                measured(picture)
        with clock.stage("encode"):
            encoded = [encode(p, record.path) for p, record in zip(pictures, cuts.records, strict=True)]
        with clock.stage("write"):
            for data, record in zip(encoded, cuts.records, strict=True):
                replace_bytes(out / record.path, data)
                files.append(out / record.path)
        records += cuts.records
    with clock.stage("write"):
        sync_files(files)
    with clock.stage("contact sheet (24 roots)"):
        update_contact_sheet(out, records)
    return clock.seconds


def pillow(source: Path, out: Path, records: dict[str, list[SliceRecord]]) -> None:
    """The same crops by a loop that anybody would write, told where each one is."""
    for name, own in records.items():
        image = Image.open(source / name).convert("RGB")
        for record in own:
            path = out / record.path
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (record.width, record.height)
            image.resize(size, Image.Resampling.LANCZOS, record.crop).save(path, compress_level=4)


def records_of(out: Path) -> dict[str, list[SliceRecord]]:
    """The slices of a data set by image."""
    found: dict[str, list[SliceRecord]] = {}
    for line in (out / "manifest.jsonl").read_text().splitlines():
        record = SliceRecord.model_validate_json(line)
        found.setdefault(record.image, []).append(record)
    return found


def workers(source: Path, scratch: Callable[[], Path], count: int) -> float:
    """Images a second of ``count`` worker processes, from what 3/4 of the images add to the rest."""
    names = sorted(path.name for path in source.glob("*.jpg"))

    def run(images: int) -> float:
        some = scratch() / "photos"
        some.mkdir(parents=True)
        for name in names[:images]:
            os.link(source / name, some / name)
        return seconds(lambda: decompose(some, scratch(), SMALL, None, RunOptions(WorkerProcesses(count))))

    few = len(names) // 4
    return (len(names) - few) / (run(len(names)) - run(few))


def memory(source: Path, out: Path) -> tuple[int, int, int]:
    """Resident bytes after 200 images, after all, and how many there were."""
    process = psutil.Process()
    seen: dict[int, int] = {}

    def note(name: str, done: int, total: int) -> None:
        if done in (200, total):
            gc.collect()
            seen[done] = process.memory_info().rss

    decompose(source, out, SMALL, note, RunOptions(InProcess()))
    return seen[200], seen[max(seen)], max(seen)


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 photographs, 400 small ones for memory, no workers")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    images, pairs, small = (16, 2, 400) if quick else (32, 5, 5000)
    with tempfile.TemporaryDirectory() as name:
        root, runs = Path(name), iter(range(10**6))

        def scratch() -> Path:
            return root / f"run{next(runs)}"

        source = write_photos(root / "photos", images, (1600, 1200))
        decompose(source, root / "first", SETTINGS)
        records = records_of(root / "first")
        slices = sum(map(len, records.values()))

        def ours() -> None:
            decompose(source, scratch(), SETTINGS, None, RunOptions(InProcess()))

        shares: list[dict[str, float]] = []
        whole = ratio(ours, lambda: shares.append(stages(source, scratch())), pairs)
        plain = ratio(ours, lambda: pillow(source, scratch(), records), pairs)
        for stage in shares[-1]:
            taken = np.median([share[stage] for share in shares])
            print(f"{stage:32s} {images / taken:>10.1f} images/s")
        print(f"{'all, as a sum':32s} {images / np.median([sum(s.values()) for s in shares]):>10.1f} images/s")
        print(f"{'total over stages':32s} {whole[0]:>10.3f} [{whole[1]:.3f}, {whole[2]:.3f}]")
        print(f"{'total over plain Pillow':32s} {plain[0]:>10.3f} [{plain[1]:.3f}, {plain[2]:.3f}]")
        result = {"total_over_stages": whole[0], "over_pillow": plain[0]}
        if not quick:
            crowd = write_photos(root / "crowd", 600, (640, 480))
            gains = [workers(crowd, scratch, 2) / workers(crowd, scratch, 1) for _ in range(3)]
            two = median(gains)
            print(f"{'two workers over one':32s} {two[0]:>10.3f} [{two[1]:.3f}, {two[2]:.3f}]")
            result["workers_2_over_1"] = two[0]
        many = write_photos(root / "many", small // 50, (256, 256), links=50)
        early, late, count = memory(many, scratch())
        print(f"{f'memory after 200, {count} images':32s} {early / 2**20:>10.1f}, {late / 2**20:.1f} MiB")
        result["memory_ratio"] = late / early
    rounded = {key: round(value, 3) for key, value in result.items()}
    print(json.dumps({"benchmark": "decompose", "images": images, "slices": slices, **rounded}))


if __name__ == "__main__":
    main()
