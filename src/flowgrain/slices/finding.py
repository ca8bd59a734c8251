"""Where the boxes of images are (Algorithm 1, stages 1 and 2): the roots of each image and what its levels show.

Several images are looked at together where detectors gain from it. What comes out holds no pixels and no detector,
so that it can travel between processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from flowgrain.data.collections import Item
from flowgrain.data.records import Box
from flowgrain.errors import DataError
from flowgrain.slices.chunks import batched
from flowgrain.slices.detectors import Detection, Detector, View
from flowgrain.slices.hierarchy import Candidate, Rejected, choose, drop_near_region, suppress
from flowgrain.slices.scheme import Scheme

WHOLE_IMAGE = "whole_image"
"""Stands in the place of a detector's kind for the image itself."""


@dataclass(frozen=True)
class Region:
    """A root: the image itself or one box of the coarsest level, with its surviving boxes from coarse to fine."""

    candidates: tuple[Candidate, ...]
    refused: tuple[Rejected, ...]

    @property
    def candidate(self) -> Candidate:
        """The region's own box."""
        return self.candidates[0]


@dataclass(frozen=True)
class Found:
    """The regions of an image, and the boxes of the coarsest level that are none. ``fault``: why nothing was found."""

    regions: tuple[Region, ...] = ()
    refused: tuple[Rejected, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class _Question:
    """What one level's detectors are asked about one region of one image."""

    picture: int
    scheme: Scheme
    level: int
    view: View


@dataclass
class _Answer:
    found: list[Candidate]
    refused: list[Rejected]
    fault: str = ""


def find(images: Sequence[Image.Image], items: Sequence[Item], schemes: Sequence[Scheme]) -> list[Found]:
    """The boxes of each upright RGB image under its scheme.

    An image whose own box file is malformed has a ``fault`` and no regions.
    """
    faults: dict[int, str] = {}
    wholes: list[Box] = [(0.0, 0.0, float(image.width), float(image.height)) for image in images]
    views = [View(image, box, item) for image, box, item in zip(images, wholes, items, strict=True)]
    splitting = [_Question(i, scheme, 0, views[i]) for i, scheme in enumerate(schemes) if scheme.pre_split]
    answers = dict(zip((q.picture for q in splitting), _ask(splitting, faults), strict=True))
    regions = [_regions(schemes[i], wholes[i], answers.get(i)) for i in range(len(images))]
    deeper: list[tuple[_Question, int]] = []
    for i, scheme in enumerate(schemes):
        for number, candidate in enumerate(regions[i][0]):
            view = View(images[i], candidate.box, items[i])
            deeper += [(_Question(i, scheme, level, view), number) for level in range(1, len(scheme.levels))]
    boxes: dict[tuple[int, int], list[_Answer]] = {}
    asked = [question for question, _ in deeper]
    for (question, number), answer in zip(deeper, _ask(asked, faults), strict=True):
        boxes.setdefault((question.picture, number), []).append(answer)
    return [
        Found(fault=faults[i])
        if i in faults
        else Found(
            tuple(_settle(schemes[i], root, boxes.get((i, n), [])) for n, root in enumerate(regions[i][0])),
            tuple(regions[i][1]),
        )
        for i in range(len(images))
    ]


def _regions(scheme: Scheme, whole: Box, answer: _Answer | None) -> tuple[list[Candidate], list[Rejected]]:
    """Stage 1: the roots of an image, in reading order of their top left corners' x, then y."""
    itself = Candidate(0, whole, Detection(whole, "image", 1.0, detector=WHOLE_IMAGE))
    if answer is None:
        return [itself], []
    if not answer.found and scheme.config.no_region == WHOLE_IMAGE:
        return [itself], answer.refused
    return sorted(answer.found, key=lambda candidate: candidate.box), answer.refused


def _settle(scheme: Scheme, root: Candidate, answers: Sequence[_Answer]) -> Region:
    """Stage 2: which boxes of a region survive, coarse to fine."""
    candidates = [root, *(candidate for answer in answers for candidate in answer.found)]
    refused = [item for answer in answers for item in answer.refused]
    if scheme.config.dedupe_against_macro == "finer":
        candidates, near = drop_near_region(candidates, root.box, scheme.config.iou_threshold)
        refused += near
    candidates, repeated = suppress(candidates, scheme.threshold, scheme.config.suppress_coarsest)
    return Region(tuple(candidates), (*refused, *repeated))


def _ask(questions: Sequence[_Question], faults: dict[int, str]) -> list[_Answer]:
    """The boxes of each question: of a level's detectors the first that finds something usable counts."""
    answers = [_Answer([], []) for _ in questions]
    waiting = list(range(len(questions)))
    step = 0
    while waiting:
        by_detector: dict[int, tuple[Detector, list[int]]] = {}
        for index in waiting:
            detector = questions[index].scheme.levels[questions[index].level].detectors[step]
            by_detector.setdefault(id(detector), (detector, []))[1].append(index)
        for detector, members in by_detector.values():
            for batch in batched(members, detector.batch_size):
                for index, detections in zip(batch, _detect(detector, questions, batch, faults), strict=True):
                    _take(questions[index], answers[index], detections, last=step + 1 == _chances(questions[index]))
        step += 1
        waiting = [i for i in waiting if not answers[i].found and step < _chances(questions[i])]
    return answers


def _chances(question: _Question) -> int:
    return len(question.scheme.levels[question.level].detectors)


def _take(question: _Question, answer: _Answer, detections: Sequence[Detection], last: bool) -> None:
    """Add what a detector found; boxes that would all be discarded for their size leave the next detector a chance."""
    level = question.scheme.levels[question.level]
    found, refused = choose(detections, question.view.region, question.level, level.selection)
    answer.refused += refused
    faults = [question.scheme.decision(candidate.level, candidate.box)[1] for candidate in found]
    if last or any(fault.action != "discard" for fault in faults):
        answer.found += found
        return
    answer.refused += [
        Rejected(candidate.level, candidate.box, candidate.detection, fault.code, fault.reason)
        for candidate, fault in zip(found, faults, strict=True)
    ]


def _detect(
    detector: Detector, questions: Sequence[_Question], batch: Sequence[int], faults: dict[int, str]
) -> list[list[Detection]]:
    """Settled detections of a batch; where that fails over one image's own files, of each by itself."""
    try:
        results = detector.detect_all([questions[index].view for index in batch])
    except DataError as error:
        if len(batch) > 1:
            return [_detect(detector, questions, [index], faults)[0] for index in batch]
        faults.setdefault(questions[batch[0]].picture, str(error))
        return [[]]
    return [[detection.settled(detector.kind) for detection in found] for found in results]
