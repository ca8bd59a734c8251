"""Partitions of a data set into groups (Semantic Granularity Alignment, Appendix A.3), and how far apart they lie.

Eq. 14 and all that follows from it hold for any partition of {1, .., N} into groups that are not empty. The paper names
five: semantic levels, frequency bands of the latents, resolution or aspect-ratio buckets, caption topics, a random
split. Its remark that semantic levels have "well-separated frequency spectra" is an empirical claim; :func:`separation`
measures it. Groups that were made from the spectra are apart by construction, so for these the measure proves nothing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowgrain.errors import DataError
from flowgrain.rng import numpy_generator

_SMALLEST_POWER = 1e-12
"""Floor of a power before its logarithm, relative to the largest: a constant latent has no spectrum."""


@dataclass(frozen=True, eq=False)
class Partition:
    """The index sets I_xi as a label for each sample: disjoint and covering by construction, each not empty.

    Raises :class:`DataError` for fewer than two groups, a label outside 0 .. G - 1, or a group without a sample.
    """

    labels: Int[Tensor, " n"]
    names: tuple[str, ...]

    def __post_init__(self):
        size = len(self.names)
        if size < 2:
            raise DataError(f"a partition needs at least 2 groups, got {size}: {', '.join(self.names) or 'none'}")
        wrong = ((self.labels < 0) | (self.labels >= size)).nonzero().flatten().tolist()
        if wrong:
            raise DataError(
                f"label {int(self.labels[wrong[0]])} of sample {wrong[0]} is none of the {size} groups: "
                f"labels must lie in 0 .. {size - 1}"
            )
        empty = [name for name, count in zip(self.names, self.sizes.tolist(), strict=True) if count == 0]
        if empty:
            raise DataError(f"group {', '.join(empty)} has no sample: leave empty groups out of the partition")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> Int[Tensor, " g"]:
        """n_xi, the number of samples of each group."""
        return torch.bincount(self.labels, minlength=len(self.names))

    @property
    def shares(self) -> Float[Tensor, " g"]:
        """n_xi / N, the limit of alpha at pure noise."""
        return self.sizes.double() / len(self.labels)

    def check_length(self, samples: int) -> None:
        """Raise :class:`DataError` unless there is a label for each of ``samples``."""
        if len(self.labels) != samples:
            raise DataError(f"the partition labels {len(self.labels)} samples, the data has {samples}: label each once")

    def merge(self, first: int, second: int) -> "Partition":
        """The partition in which two different groups are one, in the place of the first."""
        if first == second or not {first, second} <= set(range(len(self))):
            raise DataError(f"cannot merge groups {first} and {second} of {len(self)}: give two different ones")
        kept = [group for group in range(len(self)) if group != second]
        place = torch.tensor([kept.index(first if group == second else group) for group in range(len(self))])
        names = [self.names[group] for group in kept]
        names[kept.index(first)] = f"{self.names[first]}+{self.names[second]}"
        return Partition(place.to(self.labels.device)[self.labels], tuple(names))


def from_labels(labels: Sequence[Hashable] | Int[Tensor, " n"]) -> Partition:
    """Groups of equal labels (semantic levels, buckets such as (h, w), caption topics), in the order of the labels.

    Labels that do not compare are ordered by their text. Raises :class:`DataError` for fewer than two groups.
    """
    keys: list[Hashable] = list(labels.tolist() if isinstance(labels, Tensor) else labels)
    distinct = set(keys)
    try:
        ordered = sorted(distinct)  # pyright: ignore[reportArgumentType]
    except TypeError:
        ordered = sorted(distinct, key=str)
    place = {key: index for index, key in enumerate(ordered)}
    return Partition(torch.tensor([place[key] for key in keys], dtype=torch.long), tuple(str(key) for key in ordered))


def from_index_sets(sets: Sequence[Sequence[int]], samples: int) -> Partition:
    """The partition with the given index sets I_xi of 0 .. ``samples`` - 1.

    Raises :class:`DataError` where the sets are not a partition: an index twice, missing, or out of range.
    """
    labels = torch.full((samples,), -1, dtype=torch.long)
    for group, members in enumerate(sets):
        for index in members:
            if not 0 <= index < samples:
                raise DataError(f"group {group} has index {index}: there are samples 0 .. {samples - 1}")
            if labels[index] >= 0:
                raise DataError(
                    f"sample {index} is in groups {int(labels[index])} and {group}: groups must be disjoint"
                )
            labels[index] = group
    missing = (labels < 0).nonzero().flatten().tolist()
    if missing:
        raise DataError(f"{len(missing)} of {samples} samples are in no group, the first is {missing[0]}")
    return Partition(labels, tuple(f"group {group}" for group in range(len(sets))))


def random_partition(samples: int, groups: int, seed: int) -> Partition:
    """A random split into groups whose sizes differ by at most one."""
    if not 2 <= groups <= samples:
        raise DataError(f"a random split of {samples} samples into {groups} groups: give 2 .. {samples} groups")
    labels = numpy_generator(seed, "random partition").permutation(np.arange(samples) % groups)
    return Partition(torch.from_numpy(labels), tuple(f"random {group}" for group in range(groups)))


def shuffled(partition: Partition, seed: int) -> Partition:
    """The same group sizes with random members: the control that a meaningful partition is compared with."""
    order = numpy_generator(seed, "shuffled partition").permutation(len(partition.labels))
    return Partition(partition.labels[torch.from_numpy(order)], tuple(f"random {name}" for name in partition.names))


def radial_spectrum(latents: Float[Tensor, "n c h w"], bands: int) -> Float[Tensor, "n bands"]:
    """Power of each latent's spatial frequencies, averaged over channels and rings of equal width; float64.

    Band b (from 0) holds the radii b / (2 B) < r <= (b + 1) / (2 B) in cycles a cell, up to the Nyquist frequency 1/2;
    corners beyond it count to the last band and the mean (r = 0) to none. The transform is orthonormal, so that white
    noise has a flat spectrum equal to its variance. Frequencies are relative to the cell: spectra of latents of
    different shapes can be compared. Raises :class:`DataError` where a ring holds no frequency, for over
    min(h, w) / 2 bands.
    """
    height, width = latents.shape[-2:]
    if not 1 <= bands <= min(height, width) // 2:
        raise DataError(f"{bands} frequency bands of {height} x {width} latents: give 1 .. {min(height, width) // 2}")
    index = _ring(height, width, bands).to(latents.device)
    power = torch.fft.fft2(latents.double(), norm="ortho").abs().square().mean(dim=1).flatten(1)
    inside = index >= 0
    count = torch.bincount(index[inside], minlength=bands).double()
    total = torch.zeros(len(latents), bands, dtype=torch.float64, device=latents.device)
    return total.index_add_(1, index[inside], power[:, inside]) / count


def _ring(height: int, width: int, bands: int) -> Int[Tensor, " hw"]:
    """Band of each frequency in the order of fft2, -1 for the mean."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.fftfreq(width, dtype=torch.float64)[None, :]
    radius = (rows.square() + columns.square()).sqrt().flatten()
    # ring edges are frequencies of the grid: a rounding error must not move them to the next ring
    return ((radius * 2 * bands - 1e-9).ceil().long() - 1).clamp(max=bands - 1)


def spectral_centroid(spectra: Float[Tensor, "n bands"]) -> Float[Tensor, " n"]:
    """Mean frequency under the radial spectrum, in cycles a cell; 1/4 for white noise."""
    bands = spectra.shape[1]
    middles = (torch.arange(bands, dtype=torch.float64, device=spectra.device) + 0.5) / (2 * bands)
    power = spectra.double()
    total = power.sum(dim=1)
    # a latent without any variation has no frequency content: lowest
    return torch.where(total > 0, power @ middles / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def frequency_quantiles(spectra: Float[Tensor, "n bands"], groups: int) -> Partition:
    """Groups of equal size (to one) by rank of the spectral centroid, lowest frequencies first; ties by index."""
    samples = len(spectra)
    if not 2 <= groups <= samples:
        raise DataError(f"{samples} samples in {groups} frequency bands: give 2 .. {samples} bands")
    order = torch.argsort(spectral_centroid(spectra), stable=True)
    labels = torch.empty_like(order)
    labels[order] = torch.arange(samples, device=order.device) * groups // samples
    return Partition(labels, tuple(f"band {group}" for group in range(groups)))


def frequency_clusters(spectra: Float[Tensor, "n bands"], groups: int, iterations: int = 100) -> Partition:
    """k-means (Lloyd) on standardised log spectra, numbered from low to high frequency; deterministic.

    Starts from :func:`frequency_quantiles`. A cluster that loses all its members takes the sample farthest from its own
    centre, so that every group stays a group.
    """
    features = _features(spectra)
    labels = frequency_quantiles(spectra, groups).labels
    for _ in range(iterations):
        centres = _centres(features, labels, groups)
        squared = torch.cdist(features, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = squared.argmin(dim=1)
        for group in range(groups):
            if not (nearest == group).any():
                own = squared.gather(1, nearest[:, None]).flatten()
                alone = torch.bincount(nearest, minlength=groups)[nearest] == 1
                nearest[own.masked_fill(alone, -1.0).argmax()] = group
        if torch.equal(nearest, labels):
            break
        labels = nearest
    centroid = spectral_centroid(spectra)
    means = torch.stack([centroid[labels == group].mean() for group in range(groups)])
    place = torch.argsort(torch.argsort(means, stable=True), stable=True)
    return Partition(place[labels], tuple(f"band {group}" for group in range(groups)))


@dataclass(frozen=True)
class SpectralSeparation:
    """How far apart the spectra of a partition's groups lie."""

    between_share: float
    """Variance between the groups' mean log spectra as a share of the total, summed over bands, in [0, 1].

    A random partition has (G - 1) / (N - 1) on average, not 0: compare with :attr:`expected_share`.
    """
    expected_share: float
    """(G - 1) / (N - 1), the mean of ``between_share`` over random labels."""
    variance_ratio: float
    """F: variance between per degree of freedom over variance within; about 1 for random labels, inf where
    nothing varies within the groups."""
    accuracy: float
    """Share of samples whose nearest group centre, made without the sample itself, is their own group's."""
    balanced_accuracy: float
    """Mean over groups of that share within the group."""
    chance: float
    """1 / G: what guessing gives in ``balanced_accuracy``. Random labels lie a little below it, since leaving a sample
    out pushes its own group's centre away."""
    centroids: tuple[float, ...]
    """Mean spectral centroid of each group, in cycles a cell."""


def separation(spectra: Float[Tensor, "n bands"], partition: Partition) -> SpectralSeparation:
    """Measure the "well-separated frequency spectra" of Appendix A.3 on log radial spectra, each band standardised.

    A group of one sample has no centre without it, so that its sample counts as wrong, as does one at equal distances.
    """
    partition.check_length(len(spectra))
    features, labels, groups = _features(spectra), partition.labels, len(partition)
    samples, sizes = len(features), partition.sizes.double()
    centres = _centres(features, labels, groups)
    total = (features - features.mean(dim=0)).square().sum().item()
    within = (features - centres[labels]).square().sum().item()
    between = max(total - within, 0.0)
    freedom = samples - groups
    scaled = within / freedom if freedom else 0.0
    hits = _told_apart(features, labels, centres, sizes)
    centroid = spectral_centroid(spectra)
    by_group = [hits[labels == group].double().mean().item() for group in range(groups)]
    return SpectralSeparation(
        between_share=between / total if total > 0 else 0.0,
        expected_share=(groups - 1) / (samples - 1),
        variance_ratio=(between / (groups - 1)) / scaled if scaled > 0 else (float("inf") if between > 0 else 0.0),
        accuracy=hits.double().mean().item(),
        balanced_accuracy=sum(by_group) / groups,
        chance=1 / groups,
        centroids=tuple(centroid[labels == group].mean().item() for group in range(groups)),
    )


def _features(spectra: Float[Tensor, "n bands"]) -> Float[Tensor, "n bands"]:
    """Log spectra with mean 0 and variance 1 in each band; a band that is the same everywhere is 0."""
    power = spectra.double()
    logs = power.clamp(min=_SMALLEST_POWER * power.max().clamp(min=torch.finfo(torch.float64).tiny)).log()
    centred = logs - logs.mean(dim=0)
    deviation = centred.square().mean(dim=0).sqrt()
    return torch.where(deviation > 1e-12, centred / deviation.clamp(min=1e-300), 0.0)


def _centres(
    features: Float[Tensor, "n bands"], labels: Int[Tensor, " n"], groups: int
) -> Float[Tensor, "groups bands"]:
    total = torch.zeros(groups, features.shape[1], dtype=features.dtype, device=features.device)
    sizes = torch.bincount(labels, minlength=groups).to(features.dtype)
    return total.index_add_(0, labels, features) / sizes[:, None]


def _told_apart(
    features: Float[Tensor, "n bands"],
    labels: Int[Tensor, " n"],
    centres: Float[Tensor, "g bands"],
    sizes: Float[Tensor, " g"],
) -> Bool[Tensor, " n"]:
    """Whether the own centre is the nearest, each sample left out of its own: its distance grows by n / (n - 1)."""
    distance = torch.cdist(features, centres, compute_mode="donot_use_mm_for_euclid_dist")
    rows = torch.arange(len(labels), device=labels.device)
    size = sizes[labels]
    own = distance[rows, labels] * size / (size - 1).clamp(min=1)
    distance[rows, labels] = torch.inf
    return (size > 1) & (own < distance.amin(dim=1))
