"""Inception Score (Salimans et al. 2016, section 4), as ADM's evaluator computes it.

    IS = mean over chunks of exp(mean_x KL(p(y|x) || p(y))) = exp(H(p(y)) - mean_x H(p(y|x)))

p(y) is the mean of the chunk's own rows, a chunk is 5,000 consecutive pictures. Pictures that are sorted by class would
make every chunk poor in classes and the score far too low, so rows are shuffled first, by a fixed seed. The published
number takes the class logits of Inception without their bias; with any other classifier it is that classifier's score.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import JACKKNIFE, FeatureSet, Metric, Statistic, check_finite, row_blocks
from flowgrain.rng import numpy_generator

CHUNK = 5000
ROUNDING = 1e-3
"""How far the sum of a row may be from 1: float16 probabilities of a thousand classes reach this."""


def inception_score(
    probabilities: Float[np.ndarray, "n c"], *, chunk: int = CHUNK, seed: int | None = 0
) -> tuple[float, float]:
    """Mean and standard deviation over chunks; a score lies between 1 and the number of classes.

    A last, smaller chunk counts like the others, as in the evaluator. ``seed`` None keeps the order of the rows. Raises
    :class:`DataError` for rows that are no probabilities, :class:`ConfigError` for a chunk below 1.
    """
    entropies = _entropies(probabilities)
    chunks = _chunks(len(probabilities), chunk, seed)
    scores = _chunk_scores(probabilities, entropies, np.ones(len(probabilities)), chunks)
    return float(scores.mean()), float(scores.std())


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Class probabilities, computed in float64 and kept in the precision of ``logits``."""
    check_finite(logits, "class logits", at_least=1)
    probabilities = np.empty_like(logits)
    for block in row_blocks(len(logits)):
        rows = logits[block].astype(np.float64)
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        probabilities[block] = rows / rows.sum(axis=1, keepdims=True)
    return probabilities


def _entropies(probabilities: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """Entropy of each row in nats, 0 log 0 = 0."""
    check_finite(probabilities, "class probabilities", at_least=1)
    entropies = np.empty(len(probabilities))
    for block in row_blocks(len(probabilities)):
        rows = probabilities[block].astype(np.float64)
        if rows.min() < 0 or abs(rows.sum(axis=1) - 1).max() > ROUNDING:
            raise DataError(
                "class probabilities must be at least 0 and sum to 1 in each row; take the softmax of logits"
            )
        entropies[block] = _entropy(rows)
    return entropies


def _entropy(p: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    return -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(axis=-1)


def _chunks(count: int, chunk: int, seed: int | None) -> list[Int[np.ndarray, " _"]]:
    if chunk < 1:
        raise ConfigError(f"Inception Score: chunk {chunk}: must be at least 1, published scores take {CHUNK}")
    order = np.arange(count)
    if seed is not None:
        order = numpy_generator(seed, "inception score", count).permutation(count)
    return [order[start : start + chunk] for start in range(0, count, chunk)]


def _chunk_scores(
    probabilities: Float[np.ndarray, "n c"],
    entropies: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    chunks: list[Int[np.ndarray, " _"]],
) -> Float[np.ndarray, " chunks"]:
    """The score of every chunk, its rows weighted; NaN for a chunk without weight."""
    scores = np.full(len(chunks), np.nan)
    for number, rows in enumerate(chunks):
        total = weights[rows].sum()
        if total:
            marginal = weights[rows] @ probabilities[rows] / total
            scores[number] = np.exp(_entropy(marginal[None])[0] - weights[rows] @ entropies[rows] / total)
    return scores


class InceptionScore(Metric):
    """How sure the classifier is of each picture and how many classes the pictures show; it sees no reference."""

    title = "Inception Score"
    higher_is_better = True
    needs_own_reference = False
    needs_logits = True
    small_sample = CHUNK
    bounds = (1.0, float("inf"))
    interval = JACKKNIFE
    small_sample_note = "an Inception Score is too low for fewer than one chunk; read the kernel distance"

    def __init__(self, chunk: int = CHUNK, seed: int = 0):
        self._chunk = chunk
        self._seed = seed

    def reference_count(self, features: FeatureSet) -> int | None:
        """None: it has no references."""
        return None

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`. A picture stays in its chunk however often it is drawn.

        Raises :class:`DataError` where the encoder is no classifier.
        """
        probabilities = self._probabilities(features)
        entropies = _entropies(probabilities)
        chunks = _chunks(len(probabilities), self._chunk, self._seed)

        def score(rows: Int[np.ndarray, " k"]) -> float:
            weights = np.bincount(rows, minlength=len(probabilities)).astype(np.float64)
            return float(np.nanmean(_chunk_scores(probabilities, entropies, weights, chunks)))

        return score

    def left_out(
        self, features: FeatureSet, clusters: Sequence[Int[np.ndarray, " _"]]
    ) -> tuple[float, Float[np.ndarray, " g"]]:
        """See :meth:`Metric.left_out`; the other pictures stay in their chunks."""
        probabilities = self._probabilities(features)
        entropies = _entropies(probabilities)
        chunks = _chunks(len(probabilities), self._chunk, self._seed)
        scores = _chunk_scores(probabilities, entropies, np.ones(len(probabilities)), chunks)
        sums = np.stack([probabilities[rows].sum(axis=0, dtype=np.float64) for rows in chunks])
        entropy_sums = np.array([entropies[rows].sum() for rows in chunks])
        chunk_of = np.empty(len(probabilities), dtype=np.int64)
        for number, rows in enumerate(chunks):
            chunk_of[rows] = number
        left_out = np.full(len(clusters), np.nan)
        for number, rows in enumerate(clusters):
            changed = scores.copy()
            for chunk in np.unique(chunk_of[rows]):
                own = rows[chunk_of[rows] == chunk]
                rest = len(chunks[chunk]) - len(own)
                if rest:
                    marginal = (sums[chunk] - probabilities[own].sum(axis=0, dtype=np.float64)).clip(0) / rest
                    conditional = (entropy_sums[chunk] - entropies[own].sum()) / rest
                    changed[chunk] = np.exp(_entropy(marginal[None])[0] - conditional)
                else:
                    changed[chunk] = np.nan
            if not np.isnan(changed).all():
                left_out[number] = np.nanmean(changed)
        return float(scores.mean()), left_out

    def _probabilities(self, features: FeatureSet) -> Float[np.ndarray, "n c"]:
        if features.logits is None:
            raise DataError(f"{self.title} needs class logits, and this encoder is no classifier")
        return softmax(features.logits)
