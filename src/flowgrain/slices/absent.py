"""Stand-ins for detectors and upscalers whose weights another process holds: all that a scheme asks, and no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from flowgrain.data.records import Box
from flowgrain.slices.detectors import Detection, Detector, View
from flowgrain.slices.upscalers import Upscaler

DetectorKey = tuple[str, str, int]
"""(configuration, level, max_instances)."""
UpscalerKey = tuple[str, float]
"""(configuration, lanczos_max)."""


@dataclass(frozen=True)
class KnownDetector:
    """What decides about a detector without its weights."""

    kind: str
    batch_size: int
    fingerprint: str


@dataclass(frozen=True)
class KnownUpscaler:
    """What decides about an upscaler without its weights."""

    name: str
    max_factor: float
    fingerprint: str


@dataclass(frozen=True)
class Weights:
    """The detectors and upscalers of a run that have weights."""

    detectors: Mapping[DetectorKey, KnownDetector] = field(default_factory=dict)
    upscalers: Mapping[UpscalerKey, KnownUpscaler] = field(default_factory=dict)


class AbsentDetector(Detector):
    """A detector that looks at nothing here."""

    def __init__(self, known: KnownDetector):
        self.kind, self.batch_size, self._fingerprint = known.kind, known.batch_size, known.fingerprint

    def detect(self, view: View) -> list[Detection]:
        """Raises RuntimeError: this process has no weights."""
        raise RuntimeError(f"detector '{self.kind}' has its weights in another process")

    def fingerprint(self) -> str:
        """See :class:`Detector`."""
        return self._fingerprint


class AbsentUpscaler(Upscaler):
    """An upscaler that enlarges nothing here."""

    def __init__(self, known: KnownUpscaler):
        self.name, self.max_factor, self._fingerprint = known.name, known.max_factor, known.fingerprint

    def upscale(self, image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
        """Raises RuntimeError: this process has no weights."""
        raise RuntimeError(f"upscaler '{self.name}' has its weights in another process")

    def method(self, factor: float) -> str:
        """Raises RuntimeError: what is chosen is for the process with the weights to say."""
        raise RuntimeError(f"upscaler '{self.name}' has its weights in another process")

    def fingerprint(self) -> str:
        """See :class:`Upscaler`."""
        return self._fingerprint
