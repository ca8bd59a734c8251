"""Detectors: where boxes come from."""

from pathlib import Path

from flowgrain.slices.detectors.base import Detection as Detection
from flowgrain.slices.detectors.base import Detector as Detector
from flowgrain.slices.detectors.base import View as View
from flowgrain.slices.detectors.boxes import BoxesConfig, build_boxes
from flowgrain.slices.detectors.grid import GridConfig, GridDetector
from flowgrain.slices.detectors.saliency import SaliencyConfig, SaliencyDetector


def build_detector(
    config: BoxesConfig | SaliencyConfig | GridConfig, source: Path, level: str, max_instances: int
) -> Detector:
    """The detector of a level. Raises :class:`flowgrain.errors.DataError` where its own files are unusable."""
    match config:
        case BoxesConfig():
            return build_boxes(config, source, level)
        case SaliencyConfig():
            return SaliencyDetector(config, max_instances)
        case GridConfig():
            return GridDetector(config)
