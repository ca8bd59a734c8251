"""rFID: the Frechet distance between originals and their reconstructions (only in Inception's features is it an FID).

An original and its reconstruction come and go together. So the interval leaves out pictures from both sides at once,
where that of a generator's Frechet distance holds the references fixed. Leaving out one picture at a time would cost as
many distances as there are pictures; a delete-group jackknife (Shao and Tu 1995, section 5.1) costs ``GROUPS``.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap, cluster_rows, influence_replicates
from flowgrain.evaluate.frechet import frechet_distance

GROUPS = 32
SMALL_SAMPLE = 2048
INTERVAL = f"bootstrap of the influence of pictures (jackknife of {GROUPS} groups)"


def reconstruction_frechet(
    originals: Float[np.ndarray, "n d"],
    reconstructions: Float[np.ndarray, "n d"],
    keys: Sequence[str],
    bootstrap: Bootstrap,
) -> tuple[float, Float[np.ndarray, " resamples"]]:
    """Squared Frechet distance and its replicates, for which whole pictures (rows of one key) are left out together.

    Groups depend on the keys alone: arms with the same pictures have paired replicates. Raises :class:`DataError` for
    fewer than 3 pictures.
    """
    clusters = list(cluster_rows(keys).values())
    if len(clusters) < 3:
        raise DataError(f"the Frechet distance of reconstructions needs at least 3 pictures, got {len(clusters)}")
    estimate = frechet_distance(reconstructions, originals)
    groups = [np.concatenate(clusters[start::GROUPS]) for start in range(min(GROUPS, len(clusters)))]
    kept = (np.setdiff1d(np.arange(len(keys)), group) for group in groups)
    left_out = np.array([frechet_distance(reconstructions[rows], originals[rows]) for rows in kept])
    return estimate, influence_replicates(estimate, left_out, bootstrap)
