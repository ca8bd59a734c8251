"""Measure reconstructions of several autoencoders on the same pictures: intervals, and paired differences.

Pairs come from an iterable and one is in memory at a time; what stays is a number a metric and, for the Frechet
distance, a feature vector. Each picture is a cluster of the bootstrap; rows with one key, such as tiles of one root,
are drawn together.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowgrain.errors import DataError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.bootstrap import Bootstrap, replicate
from flowgrain.evaluate.encoders.base import ImageEncoder, open_rgb
from flowgrain.evaluate.pairing import Label, Measured, metric_table
from flowgrain.evaluate.reconstruction.base import PairScore
from flowgrain.evaluate.reconstruction.pixel_errors import NormalisedError, Psnr
from flowgrain.evaluate.reconstruction.rfid import INTERVAL, SMALL_SAMPLE, reconstruction_frechet
from flowgrain.evaluate.reconstruction.ssim import Ssim
from flowgrain.evaluate.results import MetricTable

PIXEL_SCORES: tuple[PairScore, ...] = (Psnr(), Ssim(), NormalisedError(root=False), NormalisedError(root=True))
SUBSET = "reconstructions"


@dataclass(frozen=True)
class Pair:
    """An original and what one autoencoder made of it."""

    arm: str
    key: str
    """Name of the original; arms are compared on the same keys."""
    original: ImageLike
    reconstruction: ImageLike


@dataclass(frozen=True, eq=False)
class ArmValues:
    """Everything kept of one arm's pairs, row by row."""

    keys: tuple[str, ...]
    values: dict[str, Float[np.ndarray, " n"]]
    """Title of a score -> one value a pair; NaN where it is not defined."""
    originals: Float[np.ndarray, "n d"] | None
    reconstructions: Float[np.ndarray, "n d"] | None
    """Features, None without an encoder."""


@dataclass
class _Rows:
    keys: list[str] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    originals: list[np.ndarray] = field(default_factory=list)
    reconstructions: list[np.ndarray] = field(default_factory=list)


def measure_reconstruction(
    pairs: Iterable[Pair],
    encoder: ImageEncoder | None = None,
    scores: Sequence[PairScore] = PIXEL_SCORES,
    *,
    compare: Sequence[tuple[str, str]] = (),
    bootstrap: Bootstrap | None = None,
) -> MetricTable:
    """The scores of every arm and, with an encoder, the Frechet distance between originals and reconstructions.

    ``compare`` names pairs of arms whose differences are measured. Raises :class:`DataError` for pictures that cannot
    be read or differ in size, and for arms that do not share their pictures.
    """
    return reconstruction_table(
        score_pairs(pairs, scores, encoder), scores, encoder, compare=compare, bootstrap=bootstrap
    )


def score_pairs(
    pairs: Iterable[Pair],
    scores: Sequence[PairScore] = PIXEL_SCORES,
    encoder: ImageEncoder | None = None,
    on_pair: Callable[[Pair], None] | None = None,
) -> dict[str, ArmValues]:
    """The numbers of every pair, arm by arm; see :func:`measure_reconstruction`."""
    rows: dict[str, _Rows] = {}
    for pair, original, reconstruction, features in _opened(pairs, encoder):
        found = rows.setdefault(pair.arm, _Rows())
        if original.size != reconstruction.size:
            sizes = [f"{picture.width}x{picture.height}" for picture in (original, reconstruction)]
            raise DataError(
                f"{pair.key} of '{pair.arm}': the original has {sizes[0]} pixels, its reconstruction {sizes[1]}"
            )
        x, y = _pixels(original), _pixels(reconstruction)
        try:
            found.values.append([score(x, y).item() for score in scores])
        except DataError as error:
            raise DataError(f"{pair.key} of '{pair.arm}': {error}") from None
        found.keys.append(pair.key)
        if encoder is not None:
            found.originals.append(features)
            found.reconstructions.append(encoder([reconstruction])[0])
        if on_pair is not None:
            on_pair(pair)
    return {arm: _finished(found, scores) for arm, found in rows.items()}


def reconstruction_table(
    arms: dict[str, ArmValues],
    scores: Sequence[PairScore] = PIXEL_SCORES,
    encoder: ImageEncoder | None = None,
    *,
    compare: Sequence[tuple[str, str]] = (),
    bootstrap: Bootstrap | None = None,
) -> MetricTable:
    """Pool the values of :func:`score_pairs` with intervals; raises :class:`DataError` for fewer than 2 pictures."""
    bootstrap = bootstrap or Bootstrap()
    table = MetricTable()
    for score in scores:
        measured = [_pooled(score, arm, rows, bootstrap) for arm, rows in arms.items()]
        label = Label(score.title, SUBSET, score.higher_is_better, score.version, {"interval": "bootstrap"})
        table += metric_table(measured, label, compare, bootstrap)
    if encoder is not None:
        measured = [_frechet(arm, rows, bootstrap) for arm, rows in arms.items()]
        details = {
            "encoder version": encoder.version,
            "resize": f"{encoder.size} px, {encoder.resize}",
            "interval": INTERVAL,
        }
        label = Label(f"{encoder.family} reconstruction Frechet distance", SUBSET, False, encoder.name, details)
        table += metric_table(measured, label, compare, bootstrap)
    return table


def _opened(
    pairs: Iterable[Pair], encoder: ImageEncoder | None
) -> Iterator[tuple[Pair, Image.Image, Image.Image, np.ndarray]]:
    """Pairs with their pictures and the original's features; an original that several arms share is encoded once."""
    encoded: dict[str, np.ndarray] = {}
    for pair in pairs:
        original = open_rgb(pair.original)
        if encoder is not None and pair.key not in encoded:
            encoded[pair.key] = encoder([original])[0]
        yield pair, original, open_rgb(pair.reconstruction), encoded.get(pair.key, np.empty(0))


def _pixels(image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    """RGB in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def _finished(rows: _Rows, scores: Sequence[PairScore]) -> ArmValues:
    values = np.array(rows.values, dtype=np.float64).reshape(len(rows.keys), len(scores))
    encoded = bool(rows.originals)
    return ArmValues(
        keys=tuple(rows.keys),
        values={score.title: values[:, column] for column, score in enumerate(scores)},
        originals=np.stack(rows.originals) if encoded else None,
        reconstructions=np.stack(rows.reconstructions) if encoded else None,
    )


def _pooled(score: PairScore, arm: str, rows: ArmValues, bootstrap: Bootstrap) -> Measured:
    values = rows.values[score.title]
    defined = ~np.isnan(values)

    def statistic(drawn: np.ndarray) -> float:
        kept = drawn[defined[drawn]]
        return score.pooled(values[kept]) if len(kept) else float("nan")

    estimate = statistic(np.arange(len(values)))
    missing = int((~defined).sum())
    left_out = f"not defined on {missing} of {len(values)} pictures, which are left out" if missing else None
    notes = tuple(note for note in (left_out, score.note(values)) if note)
    return Measured(arm, estimate, replicate(statistic, rows.keys, bootstrap), _pictures(rows), notes)


def _frechet(arm: str, rows: ArmValues, bootstrap: Bootstrap) -> Measured:
    if rows.originals is None or rows.reconstructions is None:
        raise DataError(f"arm '{arm}' has no features: score its pairs with the encoder")
    estimate, replicates = reconstruction_frechet(rows.originals, rows.reconstructions, rows.keys, bootstrap)
    count = len(rows.keys)
    few = f"{count} pictures, fewer than {SMALL_SAMPLE}: a Frechet distance is biased for few pictures"
    return Measured(arm, estimate, replicates, _pictures(rows), (few,) if count < SMALL_SAMPLE else ())


def _pictures(rows: ArmValues) -> Counter[tuple[str, int | None]]:
    return Counter((key, None) for key in rows.keys)
