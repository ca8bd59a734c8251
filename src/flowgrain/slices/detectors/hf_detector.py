"""The detector over a network of transformers: regions in batches, and a reader that knows what its outputs mean.

Pictures are never padded to one another: only those of equal size share a batch, so what is found in one does not
depend on its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.slices.detectors.base import Detection, Detector, View
from flowgrain.slices.detectors.hf_models import HfNetwork, Outputs
from flowgrain.slices.detectors.nms import suppress

MAX_ASPECT = 32
"""Regions longer than so many times their width have no boxes: scaled into a network they are thinner than a patch."""


@dataclass(frozen=True)
class Found:
    """Boxes (x0, y0, x1, y1) in pixels of a region, with their scores and labels."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: list[str]


class Reader(ABC):
    """What a network is asked besides pictures, and what its answers mean."""

    @abstractmethod
    def text(self, count: int) -> dict[str, Tensor]:
        """The network's text inputs for a batch of ``count`` pictures; none for a network that reads no text."""

    @abstractmethod
    def found(self, outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Found]:
        """Boxes above the thresholds, in pixels of regions of these (height, width), with their labels."""


class HfDetector(Detector):
    """Boxes, scores and labels are those of the reader; of two boxes of one label that overlap the better stays."""

    def __init__(self, kind: str, network: HfNetwork, reader: Reader, batch_size: int, iou: float):
        self.kind = kind
        self.batch_size = batch_size
        self._network = network
        self._reader = reader
        self._iou = iou

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; best box first."""
        return self.detect_all([view])[0]

    def detect_all(self, views: Sequence[View]) -> list[list[Detection]]:
        """See :class:`Detector`; pictures that come out of the preparation with equal sizes share batches."""
        prepared = {number: self._network.prepare(view) for number, view in enumerate(views) if _is_wide_enough(view)}
        detections: list[list[Detection]] = [[] for _ in views]
        for numbers in _batches(prepared, self.batch_size):
            inputs = {name: torch.stack([prepared[n][name] for n in numbers]) for name in prepared[numbers[0]]}
            outputs = self._network.run({**inputs, **self._reader.text(len(numbers))})
            results = self._reader.found(outputs, [_size(views[n]) for n in numbers])
            for number, found in zip(numbers, results, strict=True):
                detections[number] = _settled(found, views[number], self._iou)
        return detections

    def fingerprint(self) -> str:
        """SHA-256 of the model's files."""
        return self._network.digest()


def _batches(prepared: dict[int, dict[str, Tensor]], batch_size: int) -> Iterator[list[int]]:
    """Numbers of views whose inputs have equal shapes, at most ``batch_size`` at a time."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, inputs in prepared.items():
        alike.setdefault(tuple(tuple(tensor.shape) for tensor in inputs.values()), []).append(number)
    for numbers in alike.values():
        for start in range(0, len(numbers), batch_size):
            yield numbers[start : start + batch_size]


def _settled(found: Found, view: View, iou: float) -> list[Detection]:
    boxes, scores = found.boxes.double().numpy(), found.scores.double().numpy()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(found.labels))}
    classes = np.array([numbers[label] for label in found.labels], dtype=np.int64)
    x, y = view.region[:2]
    return [
        Detection(
            (float(boxes[i, 0]) + x, float(boxes[i, 1]) + y, float(boxes[i, 2]) + x, float(boxes[i, 3]) + y),
            found.labels[i],
            min(float(scores[i]), 1.0),
        )
        for i in suppress(boxes, scores, classes, iou)
    ]


def _size(view: View) -> tuple[int, int]:
    x0, y0, x1, y1 = view.region
    return round(y1 - y0), round(x1 - x0)


def _is_wide_enough(view: View) -> bool:
    height, width = _size(view)
    return max(height, width) <= MAX_ASPECT * min(height, width)
