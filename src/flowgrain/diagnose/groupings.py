"""The partitions of a run's training slices that are compared (Semantic Granularity Alignment, Appendix A.3).

Semantic levels, bands of spatial frequency, buckets, caption words, and a random split as the control. A slice and its
mirror image are in one group. Groups meet only where latents have one shape: buckets never do.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.data.dataset import SliceDataset
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.latents import LatentSpace
from flowgrain.errors import DataError
from flowgrain.geometry.partitions import Partition, frequency_quantiles, from_labels, radial_spectrum, shuffled
from flowgrain.granularity import GRANULARITIES

LEVEL, CONTROL = "level", "random"
"""Names of the first partition, and before the name of what a control belongs to."""
_MOST_BANDS = 8
"""Rings of a spectrum."""
_CHUNK = 256
_TOPIC_SHARE = (0.05, 0.6)
"""Share of the slices that a caption word must have to make a group."""
_STOP_WORDS = frozenset(
    "the and with from for that this its his her their into onto over under near one two other are has have was were "
    "photo picture image style view part".split()
)


@dataclass(frozen=True, eq=False)
class Grouping:
    """A named partition of the slices."""

    name: str
    title: str
    partition: Partition
    """Labels by slice of the data set."""
    meets: bool = True
    """Whether its groups have latents of one shape, so that their fields can meet."""

    def local(self, space: LatentSpace) -> tuple[Partition, list[int]] | None:
        """(partition of a space's latents, its groups' places among all groups); None where fewer than 2 are there."""
        labels = self.partition.labels[torch.tensor(space.index)]
        present = torch.unique(labels).tolist()
        if len(present) < 2:
            return None
        place = torch.full((len(self.partition),), -1, dtype=torch.long)
        place[present] = torch.arange(len(present))
        return Partition(place[labels], tuple(self.partition.names[group] for group in present)), present


@dataclass(frozen=True, eq=False)
class Groupings:
    """The partitions that this data set has, and why it lacks the others."""

    found: tuple[Grouping, ...]
    controls: dict[str, Grouping]
    """For each partition that meets, by its name: random groups of the same sizes."""
    absent: dict[str, str]
    """Title: reason."""
    spectra: Float[Tensor, "n bands"] | None
    """Radial power spectra of the slices' latents; None where latents are too small for one."""


def make_groupings(dataset: SliceDataset, spaces: Sequence[LatentSpace], config: DiagnoseConfig) -> Groupings:
    """All partitions of a data set that have at least two groups."""
    found: list[Grouping] = []
    absent: dict[str, str] = {}
    present = sorted({item.granularity for item in dataset.slices})
    if len(present) > 1:
        labels = torch.tensor([present.index(item.granularity) for item in dataset.slices])
        levels = Partition(labels, tuple(GRANULARITIES[index] for index in present))
        found.append(Grouping(LEVEL, "semantic levels", levels))
    else:
        absent["semantic levels"] = f"all slices are {GRANULARITIES[present[0]]}"
    spectra = slice_spectra(len(dataset), spaces)
    if spectra is not None and config.bands <= len(dataset):
        bands = frequency_quantiles(spectra, config.bands)
        found.append(Grouping("frequency", "bands of spatial frequency", bands))
    else:
        absent["bands of spatial frequency"] = "latents of one cell, or fewer slices than bands"
    topics = caption_topics([item.caption for item in dataset.slices], config.topics)
    if topics is not None:
        found.append(Grouping("topic", "caption words", topics))
    else:
        absent["caption words"] = "no word is in 5 to 60 % of the captions"
    if len(spaces) > 1:
        sizes = [f"{item.bucket[0]}x{item.bucket[1]}" for item in dataset.slices]
        found.append(Grouping("bucket", "buckets", from_labels(sizes), meets=False))
    else:
        absent["buckets"] = "all slices have one size"
    controls = {grouping.name: _control(grouping, config.seed) for grouping in found if grouping.meets}
    return Groupings(tuple(found), controls, absent, spectra)


def _control(grouping: Grouping, seed: int) -> Grouping:
    """Groups of the same sizes and names with random members."""
    partition = Partition(shuffled(grouping.partition, seed).labels, grouping.partition.names)
    return Grouping(f"{CONTROL} {grouping.name}", f"random groups as large as {grouping.title}", partition)


def slice_spectra(slices: int, spaces: Sequence[LatentSpace]) -> Float[Tensor, "n bands"] | None:
    """Radial power spectra by slice, of the pictures as they are: a mirror image would be a second vote.

    None where a latent is under 2 cells wide.
    """
    bands = min(_MOST_BANDS, *(min(space.shape[-2:]) // 2 for space in spaces))
    if bands < 1:
        return None
    spectra = torch.zeros(slices, bands, dtype=torch.float64)
    for space in spaces:
        for start in range(0, len(space), _CHUNK):
            stop = min(start + _CHUNK, len(space))
            kept = [row for row in range(start, stop) if not space.mirrored[row]]
            rows = torch.tensor(kept, dtype=torch.long)
            power = radial_spectrum(space.latents.read(start, stop)[rows - start], bands)
            spectra[torch.tensor([space.index[row] for row in kept], dtype=torch.long)] = power
    return spectra


def caption_topics(captions: Sequence[str], most: int) -> Partition | None:
    """Up to ``most`` groups by a word of the caption and one of all other captions; None where no word splits them.

    The word that most captions have comes first, then the one that most of the others have, and so on: a simple rule,
    which sees words and no meaning.
    """
    words = [frozenset(re.findall(r"[^\W\d_]{3,}", caption.lower())) - _STOP_WORDS for caption in captions]
    least, limit = (share * len(captions) for share in _TOPIC_SHARE)
    everywhere = Counter(word for own in words for word in own)
    usable = {word for word, count in everywhere.items() if count <= limit}
    labels: list[str | None] = [None] * len(captions)
    names: list[str] = []
    while len(names) < most:
        counts = Counter(
            word for own, label in zip(words, labels, strict=True) if label is None for word in own & usable
        )
        if not counts:
            break
        word, count = min(counts.items(), key=lambda entry: (-entry[1], entry[0]))
        if count < max(least, 1):
            break
        names.append(word)
        labels = [word if label is None and word in own else label for own, label in zip(words, labels, strict=True)]
    if any(label is None for label in labels):
        names.append("other")
    if len(names) < 2:
        return None
    place = {name: index for index, name in enumerate(names)}
    return Partition(torch.tensor([place[label or "other"] for label in labels]), tuple(names))


def check_spaces(spaces: Sequence[LatentSpace]) -> None:
    """Raise DataError where there is too little data for a field: fewer than 2 latents."""
    if sum(map(len, spaces)) < 2:
        raise DataError("a single training slice: a field of a data set needs at least 2")
