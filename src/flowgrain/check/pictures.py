"""Findings about pictures: the same one twice, on both sides of a split, enlarged or mostly cut away."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import imagehash

from flowgrain.check.findings import Finding
from flowgrain.data.dataset import Slice
from flowgrain.data.images import decode_image
from flowgrain.granularity import granularity_index

NEAR_BITS = 4
"""Perceptual hashes (pHash, 64 bits) this near are reported as the same motif."""
MAX_ENLARGEMENT = 1.5
MAX_CUT = 0.3
"""Part of a picture's area beyond which cropping to its bucket is reported."""

Progress = Callable[[int, int], None]


def whole_pictures(slices: Sequence[Slice]) -> dict[str, Slice]:
    """The coarsest slice of each source image (of each source), by its file."""
    chosen: dict[str, Slice] = {}
    for item in sorted(slices, key=lambda s: (s.granularity, s.slice_id)):
        chosen.setdefault(item.image, item)
    return {item.file.place(): item for item in chosen.values()}


def hashes(pictures: Mapping[str, Slice], on_progress: Progress) -> dict[str, int]:
    """64-bit perceptual hash of each file."""
    found = {}
    for done, (name, item) in enumerate(pictures.items(), start=1):
        found[name] = int(str(imagehash.phash(decode_image(item.file.read(), Path(name))[0])), 16)
        on_progress(done, len(pictures))
    return found


def duplicates(digests: dict[str, str]) -> Iterator[Finding]:
    """Files with the same bytes; ``digests`` by file."""
    groups = defaultdict(list)
    for name, digest in digests.items():
        groups[digest].append(name)
    for names in groups.values():
        if len(names) > 1:
            yield Finding(
                "warning", "duplicate", f"{len(names)} files hold the same picture: it counts {len(names)} times",
                tuple(sorted(names)),
            )  # fmt: skip


def leaks(train: dict[str, int], held_out: dict[str, int], digests: dict[str, str]) -> Iterator[Finding]:
    """Pictures that are on both sides of the split, identical or nearly so; hashes and digests by file."""
    by_digest = {digests[name]: name for name in train}
    for name, value in held_out.items():
        twin = by_digest.get(digests[name])
        if twin is not None:
            yield Finding(
                "problem", "leak",
                "the same picture trains and is held out: the held-out loss would flatter; remove it from one side",
                (twin, name),
            )  # fmt: skip
            continue
        near = [other for other, own in train.items() if (value ^ own).bit_count() <= NEAR_BITS]
        if near:
            yield Finding(
                "warning", "near_leak",
                f"a held-out picture looks like a training picture (perceptual hashes differ by at most {NEAR_BITS} of "
                "64 bits); if it is the same motif, keep both on one side",
                (near[0], name),
            )  # fmt: skip


def shapes(slices: Sequence[Slice]) -> Iterator[Finding]:
    """Plain pictures that are enlarged or lose much to the crop; decomposed sets have limits of their own."""
    enlarged, cut = [], []
    for item in slices:
        if item.crop is None or item.granularity != granularity_index("macro"):
            continue
        (width, height), (across, down) = item.crop.resize, item.bucket
        if width / item.native[0] > MAX_ENLARGEMENT:
            enlarged.append(f"{item.file.place()} ({item.native[0]}x{item.native[1]} to {across}x{down})")
        if 1 - across * down / (width * height) > MAX_CUT:
            cut.append(f"{item.file.place()} ({item.native[0]}x{item.native[1]} to {across}x{down})")
    if enlarged:
        yield Finding(
            "warning", "enlarged",
            f"{len(enlarged)} pictures are enlarged more than {MAX_ENLARGEMENT:g} times: they teach blur; lower "
            "data.resolution or replace them",
            tuple(sorted(set(enlarged))),
        )  # fmt: skip
    if cut:
        yield Finding(
            "warning", "cropped",
            f"{len(cut)} pictures lose more than {MAX_CUT:.0%} of their area to the crop: no bucket has their shape",
            tuple(sorted(set(cut))),
        )  # fmt: skip
