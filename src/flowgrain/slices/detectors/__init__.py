"""Detectors: where boxes come from."""

from flowgrain.slices.detectors.base import Detection as Detection
from flowgrain.slices.detectors.base import Detector as Detector
from flowgrain.slices.detectors.base import DetectorConfig as DetectorConfig
from flowgrain.slices.detectors.base import DetectorContext as DetectorContext
from flowgrain.slices.detectors.base import View as View
