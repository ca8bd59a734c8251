"""Drawn pictures as a decomposed data set."""

import hashlib

import numpy as np
from PIL import Image, ImageDraw

from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.files import atomic_write_text

SQUARE, TALL = (64, 64), (48, 64)


def draw(seed, size):
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(150, 255, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        box = [x, y, x + int(rng.integers(8, 40)), y + int(rng.integers(8, 40))]
        pen.ellipse(box, fill=tuple(rng.integers(0, 255, 3).tolist()))
    return image


def write_slices(folder, roots, sizes=(SQUARE, SQUARE, SQUARE), first=0):
    """A decomposed data set: each root has a macro, a meso and a micro slice of the given sizes."""
    lines = []
    for r in range(first, first + roots):
        for k, (level, size) in enumerate(zip(("macro", "meso", "micro"), sizes, strict=True)):
            path = folder / "slices" / f"r{r}.{level}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(10 * r + k, size).save(path)
            colour = ("red", "blue")[r % 2]
            record = SliceRecord(
                slice_id=f"r{r}/{level}0", root=f"r{r}", image=f"r{r}.png",
                image_sha1=hashlib.sha1(f"picture {r}".encode()).hexdigest(), level=level, granularity=level,
                path=f"slices/{path.name}", width=size[0], height=size[1], box=(0, 0, *size), crop=(0, 0, *size),
                scale=1.0, action="native", reason="test", parent=None if k == 0 else f"r{r}/macro0",
                detector="test", score=1.0, caption=f"{colour} drawing", caption_source="sidecar",
            )  # fmt: skip
            lines.append(record.model_dump_json())
    atomic_write_text(folder / MANIFEST_NAME, "\n".join(lines) + "\n")
    return folder
