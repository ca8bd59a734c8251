"""Which boxes of the levels survive, and which contains which (Algorithm 1, stage 2).

Levels are numbered coarse to fine; level 0 is the region itself. Inside a level: best score first, near-duplicates
out, at most ``max_instances``. Between levels: a coarser box that a finer one nearly repeats is suppressed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowgrain.data.records import Box
from flowgrain.slices.detectors.base import Detection
from flowgrain.slices.framing import area, clip_box, expand_box, iou, share_inside, snap_box

SAME_LEVEL_IOU = 0.7
"""Two boxes of one level that overlap more than this show the same thing; the better one stays."""
INSIDE = 0.5
"""Least share of a finer box that must lie in a region or slice to belong to it."""


@dataclass(frozen=True)
class Selection:
    """What a level takes of its detector's boxes."""

    min_score: float
    max_instances: int
    expand: float
    square: bool


@dataclass(frozen=True)
class Candidate:
    """A box of a level on whole pixels, inside its region."""

    level: int
    box: Box
    detection: Detection


@dataclass(frozen=True)
class Rejected:
    """A box that is not used: a code for counting and a sentence for reading."""

    level: int
    box: Box
    detection: Detection
    code: str
    reason: str


def choose(
    detections: Sequence[Detection], region: Box, level: int, selection: Selection
) -> tuple[list[Candidate], list[Rejected]]:
    """The level's boxes in a region, best score first (ties: by position), and the ones that were left out.

    Enlarges by ``expand``, clips to the region, puts on whole pixels. ``region`` lies on whole pixels.
    """
    kept: list[Candidate] = []
    rejected: list[Rejected] = []
    for detection in sorted(detections, key=lambda found: (-found.score, found.box, found.label)):
        fault = _fault(detection, region, selection)
        if fault is not None:
            rejected.append(Rejected(level, detection.box, detection, *fault))
            continue
        wanted = clip_box(expand_box(detection.box, selection.expand, selection.square), region)
        box = snap_box(wanted, region)
        double = next((other for other in kept if iou(other.box, box) > SAME_LEVEL_IOU), None)
        if double is not None:
            reason = f"IoU {iou(double.box, box):.3f} with a better box of the same level, limit {SAME_LEVEL_IOU}"
            rejected.append(Rejected(level, box, detection, "duplicate", reason))
        elif len(kept) >= selection.max_instances:
            reason = f"beyond max_instances {selection.max_instances} (score {detection.score:.3f})"
            rejected.append(Rejected(level, box, detection, "max_instances", reason))
        else:
            kept.append(Candidate(level, box, detection))
    return kept, rejected


def suppress(
    candidates: Sequence[Candidate], threshold: Callable[[int, int], float], suppress_coarsest: bool = False
) -> tuple[list[Candidate], list[Rejected]]:
    """Drop a coarser box where a *surviving* finer one has IoU above ``threshold(coarse, fine)``, strictly.

    Goes from the finest level to the coarsest, so a box that was itself suppressed suppresses nothing. Level 0 takes
    part only if ``suppress_coarsest``. The order of the survivors is that of the input.
    """
    surviving: list[Candidate] = []
    rejected: list[Rejected] = []
    for candidate in sorted(candidates, key=lambda item: -item.level):
        finer = [other for other in surviving if other.level > candidate.level]
        repeated = next(
            (other for other in finer if iou(other.box, candidate.box) > threshold(candidate.level, other.level)), None
        )
        if repeated is None or (candidate.level == 0 and not suppress_coarsest):
            surviving.append(candidate)
        else:
            overlap, limit = iou(repeated.box, candidate.box), threshold(candidate.level, repeated.level)
            reason = f"IoU {overlap:.3f} with a finer box '{repeated.detection.label}', limit {limit:g}"
            rejected.append(Rejected(candidate.level, candidate.box, candidate.detection, "suppressed", reason))
    return [candidate for candidate in candidates if candidate in surviving], rejected


def drop_near_region(
    candidates: Sequence[Candidate], region: Box, limit: float
) -> tuple[list[Candidate], list[Rejected]]:
    """Drop *finer* boxes whose IoU with their region is above ``limit``: they would repeat the coarsest slice."""
    kept: list[Candidate] = []
    rejected: list[Rejected] = []
    for candidate in candidates:
        overlap = iou(candidate.box, region)
        if candidate.level > 0 and overlap > limit:
            reason = f"IoU {overlap:.3f} with its region, limit {limit:g} (dedupe_against_macro)"
            rejected.append(Rejected(candidate.level, candidate.box, candidate.detection, "near_macro", reason))
        else:
            kept.append(candidate)
    return kept, rejected


def parent_of(candidate: Candidate, kept: Sequence[Candidate]) -> Candidate | None:
    """The box of the nearest coarser level that holds at least half of this one; the greatest share, then the smallest.

    None where no coarser box does.
    """
    holders = [
        other for other in kept if other.level < candidate.level and share_inside(candidate.box, other.box) >= INSIDE
    ]
    return max(
        holders,
        key=lambda other: (other.level, share_inside(candidate.box, other.box), -area(other.box), other.box),
        default=None,
    )


def _fault(detection: Detection, region: Box, selection: Selection) -> tuple[str, str] | None:
    if detection.score < selection.min_score:
        return "min_score", f"score {detection.score:.3f} below min_score {selection.min_score:g}"
    share = share_inside(detection.box, region)
    if share < INSIDE:
        return "outside", f"only {share:.0%} of the box lies in its region, at least {INSIDE:.0%} is needed"
    return None
