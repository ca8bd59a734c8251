"""Appendix A of Spatial Gram Alignment, and the sharper bound: statements checked on random and extremal features."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.align import structure
from flowgrain.align.gram import GramTarget, gram_loss, unit_rows
from flowgrain.align.patches import cosine_alignment

TINY = 1e-12
SHAPES = st.tuples(st.integers(2, 10), st.integers(1, 7), st.integers(0, 10_000))
KINDS = ("independent", "near", "opposite", "rank one")


def rows_of(n, c, seed, kind="independent"):
    """A pair of matrices of unit rows."""
    generator = torch.Generator().manual_seed(seed)
    z, f = (torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    if kind == "near":
        f = z + 0.1 * f
    elif kind == "opposite":
        f = -z + 0.1 * f
    elif kind == "rank one":
        signs = torch.randint(0, 2, (n, 1), generator=generator).double() * 2 - 1
        z, f = signs @ z[:1], z[:1].expand(n, c)
    return unit_rows(z[None])[0], unit_rows(f[None])[0]


def loss(z, f):
    return gram_loss(z[None], GramTarget.of(f[None], z.shape[1], form="direct"))[0]


def orthogonal(rows, columns, seed):
    """Q with Q Q' = I, ``rows`` <= ``columns``."""
    drawn = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.mT


@given(SHAPES, st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_gauge_invariance_also_into_a_wider_space(shape, wider):
    n, c, seed = shape
    z, f = rows_of(n, c, seed)
    turned = z @ orthogonal(c, c + wider, seed + 1)
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(n, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(turned, f), loss(z, f), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_spectral_bound(kind, shape):
    z, f = rows_of(*shape, kind=kind)
    eigenvalues = torch.linalg.eigvalsh(z @ z.mT).flip(0).clamp(min=0)
    singular = torch.linalg.svdvals(z).square()
    count = min(len(eigenvalues), len(singular))
    torch.testing.assert_close(eigenvalues[:count], singular[:count], rtol=1e-9, atol=1e-9)
    assert singular.sum().item() == pytest.approx(len(z))
    assert structure.spectral_distance(z, f) <= len(z) ** 2 * loss(z, f) + TINY


@given(SHAPES, st.data())
@settings(max_examples=60, deadline=None)
def test_subspace_bound(shape, data):
    z, f = rows_of(*shape, kind="near")
    k = data.draw(st.integers(1, len(z) - 1))
    found = structure.subspace_angle(z, f, k)
    if found.gap > 1e-6:
        assert found.sine <= found.bound + 1e-7
        torch.testing.assert_close(found.bound, 2 * len(z) * loss(z, f).sqrt() / found.gap, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(SHAPES)
@settings(max_examples=80, deadline=None)
def test_containment_with_the_papers_constant_and_the_sharper_one(kind, shape):
    z, f = rows_of(*shape, kind=kind)
    patch = structure.patch_distance(z, f)
    cosine = -cosine_alignment(z[None], f[None])[0]
    torch.testing.assert_close(patch, 2 - 2 * cosine, rtol=1e-10, atol=1e-14)
    value, bound = loss(z, f), structure.containment_bound(patch)
    torch.testing.assert_close(bound, 2 * (1 - cosine.square()), rtol=1e-10, atol=1e-14)
    assert value <= bound + TINY and bound <= 2 * patch + TINY and value <= 4 * patch + TINY
    assert value <= structure.gauge_bound(z, f) + 1e-10
    assert -TINY <= value <= 2 + TINY and patch <= 4 + TINY


def test_the_sharper_bound_is_attained_by_sign_flips_of_rank_one():
    for n, flipped in ((6, 1), (6, 3), (9, 4)):
        f = unit_rows(torch.randn(1, 1, 4, dtype=torch.float64))[0].expand(n, 4)
        z = torch.cat([-f[:flipped], f[flipped:]])
        expected = 8 * flipped * (n - flipped) / n**2
        assert loss(z, f).item() == pytest.approx(expected)
        assert structure.containment_bound(structure.patch_distance(z, f)).item() == pytest.approx(expected)


def test_twice_the_patch_loss_is_approached_by_two_tilted_clusters():
    half, eps = 10, 0.01
    first, second = torch.eye(2, dtype=torch.float64)
    f = torch.cat([first.expand(half, 2), second.expand(half, 2)])
    tilted = [torch.tensor([math.cos(eps), math.sin(eps)]), torch.tensor([math.sin(eps), math.cos(eps)])]
    z = torch.cat([one.double().expand(half, 2) for one in tilted])
    ratio = (loss(z, f) / structure.patch_distance(z, f)).item()
    assert ratio == pytest.approx(1.99975, abs=1e-4)


def test_ranges_are_attained():
    f = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    z = f * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    assert loss(z, f).item() == pytest.approx(2)
    assert structure.patch_distance(-f, f).item() == 4 and loss(-f, f).item() == 0


def test_the_orbit_has_zero_loss_and_the_patch_loss_does_not():
    z, f = rows_of(7, 4, 3)
    turned = f @ orthogonal(4, 4, 5)
    assert loss(turned, f) < 1e-28 and structure.patch_distance(turned, f) > 0.1
    assert structure.procrustes_distance(turned, f) < 1e-12
    assert structure.patch_distance(f, f) == 0 and loss(f, f) < 1e-30
    left, _, right = torch.linalg.svd(f.mT @ z)
    best = left @ right
    torch.testing.assert_close(
        (z - f @ best).square().sum(), structure.procrustes_distance(z, f), rtol=1e-10, atol=1e-12
    )
    assert structure.procrustes_distance(z, f) <= (z - f).square().sum()


@pytest.mark.parametrize(("channels", "rank"), [(2, 1), (3, 3), (4, 2), (5, 4), (5, 1), (6, 0)])
def test_orbit_dimension_is_the_rank_of_its_tangent_space(channels, rank):
    """The orbit F exp(S) has tangents F S, S skew-symmetric."""
    f = torch.randn(8, rank, dtype=torch.float64) @ torch.randn(rank, channels, dtype=torch.float64)
    tangents = []
    for i in range(channels):
        for j in range(i):
            skew = torch.zeros(channels, channels, dtype=torch.float64)
            skew[i, j], skew[j, i] = 1, -1
            tangents.append((f @ skew).flatten())
    found = int(torch.linalg.matrix_rank(torch.stack(tangents), tol=1e-9)) if tangents else 0
    assert structure.orbit_dimension(channels, rank) == found


@pytest.mark.parametrize("kind", KINDS)
@given(SHAPES)
@settings(max_examples=40, deadline=None)
def test_gradient_in_unit_rows_and_its_bound(kind, shape):
    z, f = rows_of(*shape, kind=kind)
    own = z.clone().requires_grad_()
    error = own @ own.mT - f @ f.mT
    (found,) = torch.autograd.grad(error.square().mean(), own)
    torch.testing.assert_close(found, 4 / len(z) ** 2 * error.detach() @ z, rtol=1e-9, atol=1e-13)
    assert found.norm() <= 4 * (loss(z, f) / len(z)).sqrt() + 1e-9


@given(SHAPES)
@settings(max_examples=40, deadline=None)
def test_mean_absolute_difference_brackets_the_loss(shape):
    z, f = rows_of(*shape)
    mean = (z @ z.mT - f @ f.mT).abs().mean()
    assert mean.square() <= loss(z, f) + TINY and loss(z, f) <= 2 * mean + TINY


def test_random_features_start_near_zero():
    """Fact 11: 2 (1 - 1/N) / C, which says that the loss alone is a poor gauge; the correlation is near 0."""
    n, c = 60, 48
    drawn = torch.randn(2, 80, n, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, f = unit_rows(drawn[0]), unit_rows(drawn[1])
    values = gram_loss(z, GramTarget.of(f, c))
    expected = 2 / c * (1 - 1 / n)
    assert values.mean().item() == pytest.approx(expected, abs=4 * float(values.std()) / 80**0.5)
    assert structure.similarity_correlation(z, f).mean().abs() < 0.02
    assert structure.similarity_correlation(z, z @ orthogonal(c, c, 1)).min() > 1 - 1e-9
