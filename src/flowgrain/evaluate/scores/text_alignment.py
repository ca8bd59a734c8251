"""CLIPScore: how well a picture agrees with its prompt (Hessel et al. 2021, arXiv 2104.08718).

100 times the cosine of picture and prompt in CLIP's joint space, as torchmetrics defines it; the paper's own factor is
2.5. The cosine itself is CLIP-T (``scores.similarity``), the same number in a table of features.
"""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError, ModelError
from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.cosine import paired_cosine
from flowgrain.evaluate.encoders.base import ImageEncoder

_log = logging.getLogger(__name__)


class ClipScore(PictureScore):
    """100 times the cosine of each picture and its prompt; the mean of a set is cut off at 0, as in torchmetrics.

    Prompts longer than the encoder's context are cut off, with a line in the log.
    """

    higher_is_better = True

    def __init__(self, encoder: ImageEncoder):
        self.encoder = encoder
        self.title = f"{encoder.family}Score"
        self.version = encoder.name

    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`. Values may be negative: their mean is what is cut off."""
        return 100 * text_image_cosine(self.encoder, pictures, prompts, self.title)

    def pooled(self, values: Float[np.ndarray, " k"]) -> float:
        """See :meth:`PictureScore.pooled`."""
        return max(float(values.mean()), 0.0)


def text_image_cosine(
    encoder: ImageEncoder, pictures: Sequence[ImageLike], prompts: Sequence[str], title: str
) -> Float[np.ndarray, " n"]:
    """Cosine of each picture and its prompt, float64. ``title`` is what errors speak of.

    Raises :class:`ModelError` for an encoder without a text side, :class:`DataError` for unequal numbers.
    """
    if len(pictures) != len(prompts):
        raise DataError(f"{title}: {len(pictures)} pictures but {len(prompts)} prompts")
    text = encoder.text(prompts)
    if text is None:
        raise ModelError(f"{title} needs an encoder of pictures and text, {encoder.name} has no text side; use CLIP")
    if text.truncated:
        cut = {prompts[row] for row in text.truncated}
        _log.warning("%s: %d prompts are longer than the text encoder's context and were cut off", title, len(cut))
    return paired_cosine(encoder(pictures), text.features)
