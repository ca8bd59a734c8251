"""Roots with the tree of their slices: what became of an image."""

from collections.abc import Sequence

from flowgrain.data.records import SliceRecord
from flowgrain.report.page import Block, Details, Section, Tree, TreeNode, Trees
from flowgrain.report.slices_tiles import Tiles, plain
from flowgrain.report.wording import counted
from flowgrain.slices.advising import Advice
from flowgrain.slices.finding import WHOLE_IMAGE
from flowgrain.slices.statistics import RootView, Statistics

MOST_WARNED = 12
_MOST_SLICES = 10
"""Slices shown of a root; the rest are counted."""


def roots_section(statistics: Statistics, advice: Sequence[Advice], tiles: Tiles) -> Section:
    """A spread of roots, then those that warnings name."""
    spread = sorted(statistics.shown, key=lambda view: view.root)
    known = {view.root for view in spread}
    named: dict[str, RootView] = {}
    for example in (example for each in advice for example in each.examples):
        if example.view.root not in known and example.view.slices and len(named) < MOST_WARNED:
            named.setdefault(example.view.root, example.view)
    blocks: list[Block] = [
        Trees(
            "A spread of roots.",
            "Each box is one root: its coarsest slice, below it what lies in that, and so on. A slice carries the "
            "outlines of those below it. The lines say what found it with which score, the part of the source and how "
            "it was brought to its size, and the caption it is trained with.",
            tuple(_tree(view, tiles) for view in spread),
        )
    ]
    if named:
        trees = tuple(_tree(view, tiles) for view in named.values())
        shown = Trees(
            "Roots that warnings name.", "The examples of the warnings above with all of their slices.", trees
        )
        blocks.append(Details(f"{counted(len(trees), 'root')} that warnings name", (shown,)))
    return Section(
        "roots",
        "From images to slices",
        f"{counted(len(spread), 'root')} of {statistics.roots}, drawn by a hash of their names from the whole set.",
        tuple(blocks),
    )


def _tree(view: RootView, tiles: Tiles) -> Tree:
    records = view.slices[:_MOST_SLICES]
    ids = {record.slice_id for record in records}
    children: dict[str | None, list[SliceRecord]] = {}
    for record in records:
        children.setdefault(record.parent if record.parent in ids else None, []).append(record)

    def node(record: SliceRecord) -> TreeNode:
        finer = children.get(record.slice_id, [])
        return TreeNode(
            record.slice_id.rpartition("/")[2],
            record.granularity,
            tiles.outlined(record, finer),
            _lines(record),
            plain(record.caption) or "(no caption)",
            tuple(node(each) for each in finer),
        )

    region = view.root.rpartition("/")[2]
    is_region = region[:1] == "p" and region[1:].isdigit() and not view.image.startswith(view.root)
    title = f"{view.image} {region}" if is_region else view.image
    return Tree(plain(title), _note(view), tuple(node(record) for record in children.get(None, [])))


def _lines(record: SliceRecord) -> tuple[str, ...]:
    """What found it, and how it was cut."""
    width, height = record.box[2] - record.box[0], record.box[3] - record.box[1]
    found = "whole image"
    if record.detector != WHOLE_IMAGE:
        found = plain(f"{record.detector} “{record.label}” {record.score:.2f}" if record.label else record.detector, 60)
    how = {"native": "cropped at native scale", "downscale": "shrunk", "upscale": "enlarged"}.get(
        record.action, record.action
    )
    if record.action == "upscale" and record.upscaler:
        how += f" by {plain(record.upscaler, 40)}"
    factor = "" if record.action == "native" else f" ×{record.scale:.2f}"
    return found, f"{width:g}×{height:g} → {record.width}×{record.height},", f"{how}{factor}"


def _note(view: RootView) -> str:
    parts = []
    if len(view.slices) > _MOST_SLICES:
        parts.append(f"{len(view.slices) - _MOST_SLICES} more slices are not shown.")
    if view.rejects:
        counts: dict[str, int] = {}
        for reject in view.rejects:
            key = f"{reject.level} {reject.code}"
            counts[key] = counts.get(key, 0) + 1
        parts.append("Refused: " + ", ".join(f"{key} {count}" for key, count in list(counts.items())[:6]) + ".")
    return plain(" ".join(parts))
