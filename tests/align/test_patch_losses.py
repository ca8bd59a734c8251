"""Patch-wise and margin losses against their definitions written with loops."""

import pytest
import torch
import torch.nn.functional as F

from flowgrain.align.patches import cosine_alignment, cosine_margin, spatial_z_score
from flowgrain.align.relations import gram_anchor, gram_margin


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS, FEATURES = random(2, 6, 4), random(2, 6, 4, seed=1)
MASK = torch.tensor([[True] * 6, [True, False, True, True, False, False]])


def cosine(a, b):
    return float(F.cosine_similarity(a, b, dim=0))


def places(sample):
    return [i for i in range(6) if MASK[sample, i]]


@pytest.mark.parametrize("masked", [False, True])
def test_cosines_token_by_token(masked):
    mask = MASK if masked else None
    aligned, margin = cosine_alignment(TOKENS, FEATURES, mask), cosine_margin(TOKENS, FEATURES, 0.5, mask)
    for sample in range(2):
        used = places(sample) if masked else range(6)
        values = [cosine(TOKENS[sample, i], FEATURES[sample, i]) for i in used]
        assert aligned[sample].item() == pytest.approx(-sum(values) / len(values))
        assert margin[sample].item() == pytest.approx(sum(max(0.0, 0.5 - v) for v in values) / len(values))


@pytest.mark.parametrize("masked", [False, True])
def test_pairs_of_tokens(masked):
    mask = MASK if masked else None
    margin, anchor = gram_margin(TOKENS, FEATURES, 0.1, mask), gram_anchor(TOKENS, FEATURES, mask)
    for sample in range(2):
        used = places(sample) if masked else range(6)
        pairs = [
            (cosine(TOKENS[sample, i], TOKENS[sample, j]), cosine(FEATURES[sample, i], FEATURES[sample, j]))
            for i in used
            for j in used
        ]
        assert margin[sample].item() == pytest.approx(sum(max(0.0, abs(a - b) - 0.1) for a, b in pairs) / len(pairs))
        assert anchor[sample].item() == pytest.approx(sum((max(a, 0) - max(b, 0)) ** 2 for a, b in pairs) / len(pairs))


def test_z_score_has_mean_zero_and_unbiased_deviation_one():
    """Fact 19."""
    found = spatial_z_score(5 + 3 * FEATURES)
    assert found.mean(dim=1).abs().max() < 1e-12
    torch.testing.assert_close(found.std(dim=1), torch.ones(2, 4, dtype=torch.float64), rtol=1e-5, atol=0)


def test_z_score_keeps_part_of_the_mean_for_smaller_gamma():
    whole, part = spatial_z_score(FEATURES), spatial_z_score(FEATURES, gamma=0.6)
    mean, std = FEATURES.mean(dim=1, keepdim=True), FEATURES.std(dim=1, keepdim=True)
    torch.testing.assert_close(part - whole, (0.4 * mean / (std + 1e-6)).expand_as(part), rtol=1e-9, atol=1e-12)


def test_z_score_of_a_padded_sample_is_that_without_padding():
    found = spatial_z_score(FEATURES, 0.8, MASK)
    for sample in range(2):
        torch.testing.assert_close(
            found[sample, MASK[sample]],
            spatial_z_score(FEATURES[sample, MASK[sample]][None], 0.8)[0],
            rtol=1e-10,
            atol=0,
        )
    assert found[~MASK].abs().max() == 0
