"""A configuration with what it names built: the detectors of each level, the upscaler, the sizes and thresholds.

Most images of a data set share one scheme; an image with settings of its own has another, in which the detectors
that did not change are the same objects.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowgrain.data.buckets import Bucket, best_aspect_match
from flowgrain.data.records import Box
from flowgrain.slices.absent import (
    AbsentDetector,
    AbsentUpscaler,
    DetectorKey,
    KnownDetector,
    KnownUpscaler,
    UpscalerKey,
    Weights,
)
from flowgrain.slices.config import DecomposeConfig, LevelConfig, overridden
from flowgrain.slices.detectors import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.vlm import VlmDetector, VlmDetectorConfig
from flowgrain.slices.framing import Decision, Limits, decide
from flowgrain.slices.hierarchy import Selection
from flowgrain.slices.upscalers import Upscaler, UpscalerConfig, UpscalerContext
from flowgrain.vlm.asker import AskingForecast


@dataclass(frozen=True)
class Level:
    """One level as the pipeline uses it."""

    name: str
    config: LevelConfig
    sizes: tuple[Bucket, ...]
    detectors: tuple[Detector, ...]

    @property
    def selection(self) -> Selection:
        """What the level takes of its detectors' boxes."""
        config = self.config
        return Selection(config.min_score, config.max_instances, config.expand, config.square)

    @property
    def limits(self) -> Limits:
        """How far a box may be from its bucket's size."""
        return Limits(self.config.max_upscale, self.config.max_downscale, self.config.min_side)


@dataclass(frozen=True)
class Scheme:
    """What decides the slices of an image, besides the image and the files beside it."""

    config: DecomposeConfig
    levels: tuple[Level, ...]
    upscaler: Upscaler
    digest: str
    """Hash of the configuration and of the weights of its models."""

    @property
    def pre_split(self) -> bool:
        """Whether the coarsest level's boxes are the roots."""
        return self.config.mode == "pre_split"

    @property
    def batch_size(self) -> int:
        """Images that are best looked at together."""
        return max((detector.batch_size for level in self.levels for detector in level.detectors), default=1)

    @property
    def enlargement(self) -> tuple[float, str]:
        """The greatest factor that the upscaler gives, and what sets it: its code among the rejects."""
        greatest = self.upscaler.max_factor
        return greatest, "lanczos_max" if greatest <= self.config.lanczos_max else "upscaler_max"

    def decision(self, level: int, box: Box) -> tuple[Bucket, Decision]:
        """The bucket of a box of a level, and what becomes of it there."""
        own = self.levels[level]
        target = best_aspect_match(box[2] - box[0], box[3] - box[1], own.sizes)
        return target, decide(box, target, own.limits, *self.enlargement)

    def threshold(self, coarse: int, fine: int) -> float:
        """IoU above which a box of level ``fine`` suppresses one of level ``coarse``."""
        return self.config.threshold(self.levels[coarse].name, self.levels[fine].name)


class Unasked(Detector):
    """Stands in for a detector that asks a model where nothing may be asked: counts the questions, finds nothing."""

    def __init__(self, config: VlmDetectorConfig):
        self.kind = config.kind
        self._config = config
        self._sizes: list[tuple[int, int]] = []

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`."""
        x0, y0, x1, y1 = view.region
        self._sizes.append((int(x1 - x0), int(y1 - y0)))
        return []

    def forecast(self) -> AskingForecast:
        """What the questions would take."""
        return self._config.forecast(self._sizes)


class Schemes:
    """Builds schemes, each once, and the detectors that they share, each once."""

    def __init__(
        self, config: DecomposeConfig, context: DetectorContext, asks: bool = True, elsewhere: Weights | None = None
    ):
        """``asks`` False: detectors that ask others find nothing, and what they would ask is counted.

        Of what ``elsewhere`` knows no weights are loaded here.
        """
        self._context = context
        self._asks = asks
        self._elsewhere = elsewhere or Weights()
        self._upscalers: dict[UpscalerKey, Upscaler] = {}
        self._detectors: dict[DetectorKey, Detector] = {}
        self._schemes: dict[str, Scheme] = {}
        self._lock = threading.Lock()
        self._config = config
        self.base = self._scheme(config)

    def of(self, override: Mapping[str, Any] | None) -> Scheme:
        """The scheme of an image with these settings of its own (None: without).

        Raises :class:`flowgrain.errors.ConfigError` for settings that are wrong.
        """
        return self.base if not override else self._scheme(overridden(self._config, override))

    def _scheme(self, config: DecomposeConfig) -> Scheme:
        key = config.digest()
        with self._lock:
            if key not in self._schemes:
                self._schemes[key] = self._build(config)
            return self._schemes[key]

    def _build(self, config: DecomposeConfig) -> Scheme:
        levels = tuple(
            Level(name, level, config.sizes(name), tuple(self._detector(d, name, level) for d in level.detectors))
            for name, level in config.levels.items()
        )
        upscaler = self._upscaler(config.upscaler, config.lanczos_max)
        prints = [detector.fingerprint() for level in levels for detector in level.detectors]
        digest = hashlib.sha1(repr((config.digest(), prints, upscaler.fingerprint())).encode()).hexdigest()
        return Scheme(config, levels, upscaler, digest)

    def _upscaler(self, config: UpscalerConfig, lanczos_max: float) -> Upscaler:
        key = (config.model_dump_json(), lanczos_max)
        if key not in self._upscalers:
            known = self._elsewhere.upscalers.get(key)
            context = UpscalerContext(lanczos_max, self._context.device, self._context.threads)
            self._upscalers[key] = config.build(context) if known is None else AbsentUpscaler(known)
        return self._upscalers[key]

    def weights(self) -> Weights:
        """What there is with weights so far."""
        detectors = ((key, d, d.fingerprint()) for key, d in self._detectors.items() if not isinstance(d, VlmDetector))
        upscalers = ((key, upscaler, upscaler.fingerprint()) for key, upscaler in self._upscalers.items())
        return Weights(
            {key: KnownDetector(d.kind, d.batch_size, digest) for key, d, digest in detectors if digest},
            {key: KnownUpscaler(u.name, u.max_factor, digest) for key, u, digest in upscalers if digest},
        )

    def asking(self) -> list[tuple[str, VlmDetector]]:
        """(level, detector) of every detector that asks a model."""
        built = ((level, detector) for (_, level, _), detector in self._detectors.items())
        return [(level, detector) for level, detector in built if isinstance(detector, VlmDetector)]

    def unasked_forecasts(self) -> list[AskingForecast]:
        """What the questions of each detector that was not to ask would take."""
        silent = (detector for detector in self._detectors.values() if isinstance(detector, Unasked))
        return [detector.forecast() for detector in silent]

    def _detector(self, config: DetectorConfig, name: str, level: LevelConfig) -> Detector:
        key = (config.model_dump_json(), name, level.max_instances)
        if key not in self._detectors:
            context = replace(self._context, level=name, max_instances=level.max_instances)
            if isinstance(config, VlmDetectorConfig) and not self._asks:
                self._detectors[key] = Unasked(config)
            elif key in self._elsewhere.detectors:
                self._detectors[key] = AbsentDetector(self._elsewhere.detectors[key])
            else:
                self._detectors[key] = config.build(context)
        return self._detectors[key]
