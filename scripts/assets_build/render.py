"""Rasterise the base styles into one byte array with an index, the training data of everything in the bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import packages, vocabulary
from .icon_sets import IconSet

BASE_SETS = {"noto": packages.NOTO, "twemoji": packages.TWEMOJI, "flat": packages.FLAT}
SIZE = 256
WHOLE = 128


@dataclass(frozen=True)
class BaseImages:
    """The rendered base styles: ``pixels[n, 256, 256, 3]`` with a style and a concept for each row."""

    pixels: np.ndarray
    styles: list[str]
    concepts: list[str]
    known: set[str]

    @classmethod
    def load(cls, work: Path) -> BaseImages:
        index = json.loads((work / "base" / "index.json").read_text())
        pixels = np.load(work / "base" / "pixels.npy", mmap_mode="r")
        return cls(pixels, index["styles"], index["concepts"], set(index["known"]))

    def rows(self, *, held_out: bool, known_only: bool) -> list[int]:
        """Row numbers on one side of the concept split; ``known_only`` keeps the concepts the base model is taught."""
        return [
            row
            for row, concept in enumerate(self.concepts)
            if vocabulary.is_held_out(concept) == held_out and (concept in self.known or not known_only)
        ]


def read_sets(work: Path) -> dict[str, IconSet]:
    return {style: IconSet.read(packages.unpacked(work, package)) for style, package in BASE_SETS.items()}


def base_concepts(sets: dict[str, IconSet]) -> list[str]:
    """The concepts the base model is taught (and their held-out tenth): drawn in all three styles."""
    listed = [name for category in vocabulary.BASE_CATEGORIES for name in sets["noto"].categories[category]]
    wanted = [name for name in listed if name not in vocabulary.DROPPED] + list(vocabulary.OBJECTS)
    return sorted({name for name in wanted if all(name in icons for icons in sets.values())})


def _autoencoder_names(icons: IconSet) -> list[str]:
    """Everything drawable in a set without skin-tone and hair variants (more pictures for the autoencoder)."""
    names = sorted({name for group in icons.categories.values() for name in group if name in icons})
    return [name for name in names if "skin-tone" not in name and not name.startswith(("flag-", "keycap"))]


def render(work: Path) -> None:
    """Draw every icon of the base styles at 256 px on white; a finished array is kept."""
    folder = work / "base"
    if (folder / "index.json").exists():
        print("base images are there", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    sets = read_sets(work)
    jobs = [(style, name) for style, icons in sets.items() for name in _autoencoder_names(icons)]
    pixels = np.lib.format.open_memmap(
        folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=(len(jobs), SIZE, SIZE, 3)
    )
    for row, (style, name) in enumerate(jobs):
        pixels[row] = sets[style].render(name, SIZE)
    pixels.flush()
    index = {
        "styles": [style for style, _ in jobs],
        "concepts": [name for _, name in jobs],
        "known": base_concepts(sets),
    }
    (folder / "index.json").write_text(json.dumps(index))
    print(f"rendered {len(jobs)} base images, {len(index['known'])} concepts", flush=True)


def shrink(pixels: np.ndarray, factor: int = 2) -> np.ndarray:
    """Area-average ``[n, h, w, 3]`` bytes by a whole factor."""
    n, height, width, _ = pixels.shape
    blocks = pixels.reshape(n, height // factor, factor, width // factor, factor, 3).astype(np.float32)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
