"""Appendix A.3 of Semantic Granularity Alignment: which labels are partitions, and how far apart their spectra lie."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import DataError
from flowgrain.geometry.partitions import (
    Partition,
    frequency_clusters,
    frequency_quantiles,
    from_index_sets,
    from_labels,
    radial_spectrum,
    random_partition,
    separation,
    shuffled,
    spectral_centroid,
)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filtered(seed, n, slope, size=16):
    """Latents whose power falls as frequency ** -slope."""
    frequency = torch.fft.fftfreq(size).double()
    radius = (frequency[:, None].square() + frequency.square()).sqrt().clamp(min=1 / size)
    return torch.fft.ifft2(torch.fft.fft2(normal(seed, n, 3, size, size)) * radius ** (-slope / 2)).real


def planted(n=30):
    """Smooth latents, then white ones."""
    return torch.cat([filtered(0, n, 2.0), filtered(1, n, 0.0)]), from_labels([0] * n + [1] * n)


def test_what_is_not_a_partition():
    with pytest.raises(DataError, match="at least 2 groups, got 1"):
        from_labels(["macro", "macro"])
    with pytest.raises(DataError, match="group micro has no sample"):
        Partition(torch.tensor([0, 1, 1]), ("macro", "meso", "micro"))
    with pytest.raises(DataError, match=r"label 3 of sample 1 is none of the 2 groups: labels must lie in 0 \.\. 1"):
        Partition(torch.tensor([0, 3, 1]), ("a", "b"))
    with pytest.raises(DataError, match="label -1 of sample 0"):
        Partition(torch.tensor([-1, 0, 1]), ("a", "b"))
    with pytest.raises(DataError, match="sample 1 is in groups 0 and 1"):
        from_index_sets([[0, 1], [1, 2]], 3)
    with pytest.raises(DataError, match="1 of 4 samples are in no group, the first is 3"):
        from_index_sets([[0, 1], [2]], 4)
    with pytest.raises(DataError, match="index 4"):
        from_index_sets([[0, 1], [4]], 3)
    with pytest.raises(DataError, match="group group 1 has no sample"):
        from_index_sets([[0, 1], []], 2)
    with pytest.raises(DataError, match="cannot merge groups 1 and 1"):
        from_labels([0, 1, 2]).merge(1, 1)


def test_labels_of_any_kind_in_their_order():
    buckets = from_labels([(64, 64), (32, 96), (64, 64)])
    assert buckets.names == ("(32, 96)", "(64, 64)") and buckets.labels.tolist() == [1, 0, 1]
    assert from_labels(torch.tensor([7, 5, 7])).labels.tolist() == [1, 0, 1]
    assert from_labels(["b", "a"]).names == ("a", "b")
    assert from_labels([None, "a", None]).names == ("None", "a")
    assert from_labels([0, 0, 1]).shares.tolist() == [2 / 3, 1 / 3]


@given(st.integers(2, 40), st.data(), st.integers(0, 100))
def test_a_random_split_is_balanced_and_seeded(samples, data, seed):
    groups = data.draw(st.integers(2, samples))
    split = random_partition(samples, groups, seed)
    assert split.sizes.max() - split.sizes.min() <= 1
    assert torch.equal(split.labels, random_partition(samples, groups, seed).labels)
    assert torch.equal(shuffled(split, seed).sizes, split.sizes)


def test_random_splits_differ_by_seed():
    assert not torch.equal(random_partition(40, 3, 0).labels, random_partition(40, 3, 1).labels)
    partition = from_labels([0] * 20 + [1] * 20)
    assert not torch.equal(shuffled(partition, 0).labels, partition.labels)


@given(st.integers(4, 12), st.integers(4, 12), st.data())
@settings(max_examples=30)
def test_the_spectrum_keeps_all_power_but_the_means(height, width, data):
    """Parseval: sum over rings of (frequencies in ring) x (mean power) = sum of squares about the mean, by channel."""
    bands = data.draw(st.integers(1, min(height, width) // 2))
    latents = normal(0, 3, 2, height, width) + 5
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    edges = np.arange(bands + 1) / (2 * bands)
    edges[-1] = 1  # corners belong to the last ring
    count = [((radius > a + 1e-12) & (radius <= b + 1e-12)).sum() for a, b in pairwise(edges)]
    total = (radial_spectrum(latents, bands) * torch.tensor(count)).sum(dim=1)
    about_mean = latents - latents.mean(dim=(2, 3), keepdim=True)
    assert torch.allclose(total, about_mean.square().sum(dim=(2, 3)).mean(dim=1), rtol=1e-10)


@pytest.mark.parametrize("cycles", [1, 3, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_lies_in_its_ring(cycles, axis):
    """k cycles in 16 cells are the upper edge of ring k - 1 of 8."""
    wave = torch.cos(2 * math.pi * cycles * torch.arange(16).double() / 16).expand(16, 16)
    spectrum = radial_spectrum((wave.T if axis else wave)[None, None], 8)[0]
    assert spectrum.argmax() == cycles - 1
    assert spectrum[cycles - 1] > 1e20 * torch.cat([spectrum[: cycles - 1], spectrum[cycles:]]).max()


def test_white_noise_is_flat_whatever_the_shape():
    for shape in ((16, 16), (8, 24)):
        spectrum = radial_spectrum(2 * normal(0, 400, 4, *shape), 4).mean(dim=0)
        assert torch.allclose(spectrum, torch.full((4,), 4.0, dtype=torch.float64), rtol=0.05)
    assert spectral_centroid(torch.ones(2, 8)).tolist() == [0.25, 0.25]
    assert spectral_centroid(torch.zeros(1, 8)).tolist() == [0.0]
    with pytest.raises(DataError, match=r"5 frequency bands of 8 x 24 latents: give 1 \.\. 4"):
        radial_spectrum(normal(0, 1, 1, 8, 24), 5)


@given(st.integers(2, 30), st.data())
@settings(max_examples=20)
def test_quantile_groups_are_balanced_and_ordered_by_frequency(samples, data):
    groups = data.draw(st.integers(2, samples))
    spectra = normal(samples, samples, 5).exp()
    partition = frequency_quantiles(spectra, groups)
    assert partition.sizes.max() - partition.sizes.min() <= 1
    centroid = spectral_centroid(spectra)
    highest = [centroid[partition.labels == g].max() for g in range(groups)]
    lowest = [centroid[partition.labels == g].min() for g in range(groups)]
    assert all(high <= low for high, low in zip(highest, lowest[1:], strict=False))


def test_clusters_find_planted_spectra_and_are_numbered_by_frequency():
    latents, truth = planted()
    order = torch.from_numpy(np.random.default_rng(0).permutation(60))
    found = frequency_clusters(radial_spectrum(latents[order], 8), 2)
    assert torch.equal(found.labels, truth.labels[order])
    again = frequency_clusters(radial_spectrum(latents[order], 8), 2)
    assert torch.equal(found.labels, again.labels)


@given(st.integers(2, 6), st.integers(0, 50))
@settings(max_examples=20)
def test_every_cluster_has_a_member(groups, seed):
    """Also where spectra repeat, so that Lloyd's steps would leave clusters empty."""
    spectra = normal(seed, 2, 4).exp()[torch.arange(8) % 2]
    assert len(frequency_clusters(spectra, groups)) == groups


def test_separation_of_planted_and_of_random_groups():
    latents, truth = planted()
    spectra = radial_spectrum(latents, 8)
    apart = separation(spectra, truth)
    assert apart.accuracy == apart.balanced_accuracy == 1.0 and apart.between_share > 0.5
    assert apart.centroids[0] < apart.centroids[1]
    random = [separation(spectra, shuffled(truth, seed)) for seed in range(40)]
    assert np.mean([s.between_share for s in random]) == pytest.approx(apart.expected_share, rel=0.5)
    assert 0.35 < np.mean([s.balanced_accuracy for s in random]) < 0.55
    assert apart.variance_ratio > 10 * max(s.variance_ratio for s in random)
    assert apart.chance == 0.5


@given(st.integers(0, 1000), st.integers(4, 14), st.integers(2, 4))
@settings(max_examples=25)
def test_separation_by_brute_force(seed, samples, groups):
    """Leave-one-out centres made again for every sample; sums of squares over groups and bands."""
    spectra = normal(seed, samples, 4).exp()
    partition = random_partition(samples, groups, seed)
    logs = spectra.log()
    features = (logs - logs.mean(dim=0)) / logs.std(dim=0, unbiased=False)
    hits, within = [], 0.0
    for i in range(samples):
        distances = []
        for group in range(groups):
            members = [j for j in range(samples) if partition.labels[j] == group and j != i]
            distances.append((features[i] - features[members].mean(dim=0)).norm().item() if members else math.inf)
        hits.append(int(np.argmin(distances)) == partition.labels[i].item())
        own = features[partition.labels == partition.labels[i]].mean(dim=0)
        within += (features[i] - own).square().sum().item()
    measured = separation(spectra, partition)
    assert measured.accuracy == pytest.approx(np.mean(hits))
    assert measured.between_share == pytest.approx(1 - within / features.square().sum().item(), abs=1e-10)


def test_the_share_between_random_groups_has_the_mean_that_is_given():
    spectra = normal(0, 30, 6).exp()
    shares = [separation(spectra, random_partition(30, 3, seed)).between_share for seed in range(300)]
    expected = separation(spectra, random_partition(30, 3, 0)).expected_share
    assert expected == 2 / 29
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.std(shares) / math.sqrt(300))


def test_groups_of_one_and_equal_spectra_cannot_be_told_apart():
    same = separation(torch.ones(3, 4), from_labels([0, 1, 1]))
    assert same.between_share == same.variance_ratio == same.balanced_accuracy == 0
    spectra = torch.tensor([[1.0, 1.0], [8.0, 9.0], [9.0, 8.0]])
    assert separation(spectra, from_labels([0, 1, 1])).balanced_accuracy == 0.5
    assert separation(spectra[[0, 0, 1, 1]], from_labels([0, 0, 1, 1])).variance_ratio == math.inf
