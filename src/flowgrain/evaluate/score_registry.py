"""From what a user writes (``aesthetic:FOLDER,FILE``) to a score of pictures."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowgrain.errors import ConfigError
from flowgrain.evaluate.base import PictureScore
from flowgrain.pretrained.precision import Precision


@dataclass(frozen=True)
class ScoreOptions:
    """Where scores run and keep their features."""

    device: str = "cpu"
    batch_size: int = 16
    dtype: Precision = "float32"
    cache: Path | None = None


@dataclass(frozen=True)
class _Kind:
    usage: str
    places: tuple[int, int]
    """Fewest and most locations after the colon, separated by commas."""
    open: Callable[[list[str], ScoreOptions], PictureScore]


def open_score(spec: str, options: ScoreOptions) -> PictureScore:
    """The score of a specification ``KIND`` or ``KIND:LOCATION,...``.

    Raises ConfigError for an unknown kind or a wrong number of locations, and what the score itself raises.
    """
    kind, separator, rest = spec.partition(":")
    if kind not in _KINDS:
        close = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f"did you mean '{_KINDS[close[0]].usage}'? " if close else ""
        raise ConfigError(f"unknown score '{spec}'; {hint}known: {score_usages()}")
    fewest, most = _KINDS[kind].places
    # a command's own commas are its own
    places = ([rest] if most == 1 else rest.split(",")) if separator else []
    if not fewest <= len(places) <= most or not all(place.strip() for place in places):
        raise ConfigError(f"score '{spec}': write it as {_KINDS[kind].usage}")
    return _KINDS[kind].open(places, options)


def score_usages() -> str:
    """How each kind of score is written, in one line."""
    return ", ".join(kind.usage for kind in _KINDS.values())


def _glcm(_places: list[str], _options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.detail.glcm import GlcmScore

    return GlcmScore()


def _glcm_entropy(_places: list[str], _options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.detail.glcm import GlcmEntropy

    return GlcmEntropy()


def _compression(_places: list[str], _options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.detail.compression import CompressionRatio

    return CompressionRatio()


def _clip_score(places: list[str], options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.scores.text_alignment import ClipScore

    return ClipScore(_clip(places[0], options))


def _aesthetic(places: list[str], options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.scores.aesthetic import AestheticScore

    return AestheticScore(_clip(places[0], options), Path(places[1]))


def _hpsv2(places: list[str], options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.scores.preference import open_hpsv2

    return open_hpsv2(
        Path(places[0]), places[1], options.device, options.batch_size, options.dtype, cache=options.cache
    )


def _pick_score(places: list[str], options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.scores.preference import open_pick_score

    processor = places[1] if len(places) > 1 else None
    return open_pick_score(
        places[0], options.device, options.batch_size, options.dtype, cache=options.cache, processor=processor
    )


def _pyiqa(places: list[str], options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.external.quality import PyIqaScore

    return PyIqaScore(places[0], options.device)


def _command(places: list[str], _options: ScoreOptions) -> PictureScore:
    from flowgrain.evaluate.external.command import CommandScore

    return CommandScore(places[0], f"command score ({places[0].split()[0]})", None)


def _clip(location: str, options: ScoreOptions):
    from flowgrain.evaluate.encoders.registry import open_encoder
    from flowgrain.evaluate.feature_cache import CachedEncoder

    encoder = open_encoder(f"clip:{location}", options.device, options.batch_size, options.dtype)
    return encoder if options.cache is None else CachedEncoder(encoder, options.cache)


_KINDS = {
    "glcm": _Kind("glcm", (0, 0), _glcm),
    "glcm-entropy": _Kind("glcm-entropy", (0, 0), _glcm_entropy),
    "compression": _Kind("compression", (0, 0), _compression),
    "clip-score": _Kind("clip-score:CLIP", (1, 1), _clip_score),
    "aesthetic": _Kind("aesthetic:CLIP,HEAD", (2, 2), _aesthetic),
    "hpsv2": _Kind("hpsv2:CHECKPOINT,TOKENIZER", (2, 2), _hpsv2),
    "pickscore": _Kind("pickscore:MODEL[,PROCESSOR]", (1, 2), _pick_score),
    "pyiqa": _Kind("pyiqa:METRIC", (1, 1), _pyiqa),
    "command": _Kind("command:PROGRAM ARGUMENTS", (1, 1), _command),
}
