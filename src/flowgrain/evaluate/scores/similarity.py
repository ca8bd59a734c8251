"""CLIP-I, DINO-I and CLIP-T (Ruiz et al. 2023, arXiv 2208.12242, section 4.2).

The three of Table 1 of Semantic Granularity Alignment. CLIP-I and DINO-I are the mean cosine over all pairs of a
generated and a reference picture: domain fidelity. CLIP-T is the mean cosine of each picture and its prompt. All lie in
[-1, 1]. Copies of the references raise the first two.
"""

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet, Metric, Statistic
from flowgrain.evaluate.cosine import ImageCosine, paired_cosine


class ImageSimilarity(Metric):
    """CLIP-I or DINO-I, by the encoder: the mean cosine of each picture to all references."""

    title = "image similarity"
    higher_is_better = True
    needs_own_reference = False
    small_sample = None
    small_sample_note = ""

    def name(self, family: str) -> str:
        """See :meth:`Metric.name`. DINO-I is defined on the first DINO; on its successors the name tells which."""
        return f"DINO-I ({family})" if family in ("DINOv2", "DINOv3") else f"{family}-I"

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`."""
        return ImageCosine(against="mean").statistic(features)


class TextSimilarity(Metric):
    """CLIP-T: the mean cosine of each picture and its prompt."""

    title = "text similarity"
    higher_is_better = True
    needs_own_reference = False
    needs_text = True
    small_sample = None
    small_sample_note = ""

    def name(self, family: str) -> str:
        """See :meth:`Metric.name`."""
        return f"{family}-T"

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`. Raises :class:`DataError` where the encoder has no text side."""
        if features.text is None:
            raise DataError("CLIP-T needs an encoder of pictures and text, such as CLIP; this one has no text side")
        values = paired_cosine(features.generated, features.text)
        return lambda rows: float(values[rows].mean())
