"""The streaming estimator is the exact decomposition; its top-k bound holds; where alpha concentrates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import DataError
from flowgrain.flow.paths import Path, RectifiedFlow
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.geometry import interference
from flowgrain.geometry.group_fields import estimate_group_fields, estimate_nearest, level_profiles
from flowgrain.geometry.mixture import AffinePath, EmpiricalLaw, group_fields, log_conditional, marginal_field
from flowgrain.geometry.partitions import from_labels, random_partition
from flowgrain.geometry.queries import ArrayLatents, LatentSource, draw_queries

PATHS: dict[str, Path] = {"flow": RectifiedFlow(), "vp": VariancePreserving(NoiseSchedule())}


def close(a, b, relative=1e-10):
    assert a.shape == b.shape
    scale = max(a.abs().max().item(), b.abs().max().item())
    assert (a - b).abs().max().item() <= relative * scale


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(t, count):
    return torch.full((count,), t, dtype=torch.float64)


@st.composite
def cases(draw):
    n, d = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    size = draw(st.integers(2, n))
    rest = draw(st.lists(st.integers(0, size - 1), min_size=n - size, max_size=n - size))
    labels = draw(st.permutations([*range(size), *rest]))
    t, chunk = draw(st.floats(0.03, 1)), draw(st.integers(1, 13))
    return draw(st.sampled_from(list(PATHS))), draw(st.integers(0, 10**6)), d, labels, t, chunk


def build(case):
    """Latents, partition, path, queries, level, chunk size and the exact terms."""
    kind, seed, d, labels, t, chunk = case
    samples, x = normal(seed, len(labels), d) + 2, normal(seed + 1, 5, d)
    terms = EmpiricalLaw(samples, AffinePath(PATHS[kind])).terms(x, t)
    return ArrayLatents(samples), from_labels(labels), PATHS[kind], x, t, chunk, terms


def field_scale(estimate):
    """Size of what a field is the sum of: alpha' and sigma' parts cancel, and are rounded first."""
    mean = estimate.posterior_mean.abs().max().item()
    return (estimate.field_gain * (mean + estimate.x.abs().max().item())).max().item()


@given(cases())
@settings(max_examples=60)
def test_streaming_is_exact_for_any_chunk_size(case):
    """log Z_xi, alpha, u^xi (Eqs. 13, 14, 19), entropy and variance against mixture.py."""
    latents, partition, path, x, t, chunk, terms = build(case)
    estimate = estimate_group_fields(latents, partition, path, x, levels(t, 5), chunk=chunk)
    exact = group_fields(terms, partition)
    close(estimate.log_z, exact.log_z)
    close(estimate.alpha, exact.alpha)
    assert (estimate.fields - exact.fields).abs().max().item() <= 1e-10 * field_scale(estimate)
    posterior = terms.posterior
    close(estimate.effective_samples, torch.special.entr(posterior).sum(dim=1).exp())
    variance = interference.conditional_variance(terms)
    assert (estimate.conditional_variance - variance).abs().max().item() <= 1e-9 * field_scale(estimate) ** 2


def test_every_query_has_a_level_of_its_own():
    """One pass for all levels gives what a pass for each gives."""
    samples, x, t = normal(0, 20, 4), normal(1, 6, 4), torch.linspace(0.05, 1, 6, dtype=torch.float64)
    partition = random_partition(20, 3, 0)
    together = estimate_group_fields(ArrayLatents(samples), partition, PATHS["flow"], x, t, chunk=7)
    for row in range(6):
        alone = estimate_group_fields(
            ArrayLatents(samples), partition, PATHS["flow"], x[row : row + 1], t[row : row + 1]
        )
        close(together.fields[row : row + 1], alone.fields)
        close(together.log_z[row : row + 1], alone.log_z)


@given(cases())
@settings(max_examples=20)
def test_weights_are_those_of_a_weighted_law(case):
    latents, partition, path, x, t, chunk, _ = build(case)
    weights = normal(7, len(latents)).exp()
    samples = latents.read(0, len(latents))
    exact = group_fields(EmpiricalLaw(samples, AffinePath(path), weights).terms(x, t), partition)
    estimate = estimate_group_fields(latents, partition, path, x, levels(t, 5), weights, chunk)
    close(estimate.log_z, exact.log_z)
    assert (estimate.fields - exact.fields).abs().max().item() <= 1e-10 * field_scale(estimate)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_targets_are_what_the_model_predicts(prediction):
    """Eq. 14 in every parameterisation: the target of a Dirac is that of Path, and the groups' superpose."""
    path = VariancePreserving(NoiseSchedule(), prediction)
    x0, noise, t = normal(0, 2, 2, 2, 2), normal(1, 2, 2, 2, 2), levels(0.4, 2)
    sample = path(x0, noise, t)
    estimate = estimate_group_fields(ArrayLatents(x0), from_labels([0, 1]), path, sample.x_t, t)
    for k in range(2):
        close(estimate.targets[k, k], sample.target[k].flatten())
        velocity = path.x0_to_velocity(x0[k : k + 1], sample.x_t[k : k + 1], t[:1])
        close(estimate.fields[k, k], velocity.flatten())


def test_targets_of_rectified_flow_are_velocities():
    x0, noise, t = normal(0, 2, 3), normal(1, 2, 3), levels(0.4, 2)
    x = 0.6 * x0 + 0.4 * noise
    estimate = estimate_group_fields(ArrayLatents(x0), from_labels([0, 1]), PATHS["flow"], x, t)
    close(estimate.targets[[0, 1], [0, 1]], noise - x0)
    close(estimate.field_gain, 1 / t)  # u = (x - x0) / t


def test_the_quadratic_form_of_a_network_on_streamed_fields():
    """Eq. 20 on latents of an image model: alpha' Omega alpha = |v - u_t|^2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Conv2d(4, 4, 3, padding=1).double()
    latents = ArrayLatents(normal(0, 60, 4, 8, 8).float())
    drawn = draw_queries(latents, PATHS["flow"], [0.3, 0.7, 0.95], 8, seed=0)
    estimate = estimate_group_fields(latents, random_partition(60, 3, 0), PATHS["flow"], drawn.x, drawn.t, chunk=16)
    velocity = network(drawn.x).detach().flatten(1)
    omega = interference.interference_matrix(interference.residuals(velocity, estimate.fields))
    law = EmpiricalLaw(latents.read(0, 60).flatten(1), AffinePath(PATHS["flow"]))
    for t in (0.3, 0.7, 0.95):
        rows = drawn.t == t
        error = (velocity[rows] - marginal_field(law.terms(drawn.x[rows].flatten(1), t))).square().sum(dim=1)
        close(interference.quadratic_form(estimate.alpha[rows], omega[rows]), error)


@given(cases(), st.integers(1, 13))
@settings(max_examples=60)
def test_the_top_k_bound_holds(case, k):
    """|u_kept - u^xi| <= eps x spread x gain; eps is the share left out; log Z, alpha and entropy are exact."""
    latents, partition, path, x, t, chunk, terms = build(case)
    full = estimate_group_fields(latents, partition, path, x, levels(t, 5), chunk=chunk)
    near = estimate_nearest(latents, partition, path, x, levels(t, 5), k, chunk=chunk)
    close(near.estimate.log_z, full.log_z)
    close(near.estimate.effective_samples, full.effective_samples)
    error = (near.estimate.posterior_mean - full.posterior_mean).norm(dim=2)
    assert (error <= near.mean_error + 1e-12 * (1 + full.posterior_mean.abs().max())).all()
    error = (near.estimate.fields - full.fields).norm(dim=2)
    assert (error <= near.field_error + 1e-12 * field_scale(full)).all()
    for group in range(len(partition)):
        members = (partition.labels == group).nonzero().flatten()
        share = torch.softmax(terms.log_density[:, members], dim=1).sort(dim=1, descending=True).values
        close(near.weight[:, group, : len(members)], share[:, :k])
        assert torch.allclose(near.neglected[:, group], share[:, k:].sum(dim=1), rtol=1e-9, atol=1e-300)
        if k >= len(members):
            assert near.neglected[:, group].max() == 0
            close(near.estimate.posterior_mean[:, group], full.posterior_mean[:, group])
            assert (near.index[:, group, len(members) :] == -1).all()


def test_the_nearest_latents_are_named():
    samples = normal(0, 12, 3)
    near = estimate_nearest(
        ArrayLatents(samples), from_labels([0, 1] * 6), PATHS["flow"], samples[4:5] * 0.98, levels(0.02, 1), 2, chunk=5
    )
    distance = (samples[4] * 0.98 - 0.98 * samples).norm(dim=1)
    assert near.index[0, 0].tolist() == distance[::2].argsort()[:2].mul(2).tolist()
    assert near.index[0, 0, 0] == 4


@pytest.mark.parametrize("dimension", [1024, 16384])
@pytest.mark.parametrize("t", [0.005, 0.05, 0.3, 0.95])
def test_accuracy_in_high_dimension(dimension, t):
    """Log densities of thousands, relative to each other by distances taken directly in float64."""
    samples = normal(0, 24, dimension).float()
    x = (1 - t) * samples[:4].double() + t * normal(1, 4, dimension)
    partition = random_partition(24, 3, 0)
    estimate = estimate_group_fields(ArrayLatents(samples), partition, PATHS["flow"], x, levels(t, 4), chunk=10)
    exact = group_fields(EmpiricalLaw(samples.double(), AffinePath(PATHS["flow"])).terms(x, t), partition)
    assert (estimate.log_z - exact.log_z).abs().max() <= 1e-5 * (1 if t < 0.01 else 1e-2)
    assert (estimate.fields - exact.fields).abs().max().item() <= 1e-8 * field_scale(estimate)


def test_float32_would_not_do():
    """The claim of the docstring: at D = 4096, t = 0.05 the matrix form is off by over 0.05 in a log density."""
    samples, t = normal(0, 32, 4096), 0.05
    x = (1 - t) * samples[:8] + t * normal(1, 8, 4096)
    y, q = samples.float(), x.float()
    squared = q.square().sum(1)[:, None] - 2 * (1 - t) * (q @ y.T) + (1 - t) ** 2 * y.square().sum(1)
    exact = log_conditional(x, AffinePath(PATHS["flow"]).moments(y, t))
    constant = 4096 * (math.log(t) + 0.5 * math.log(2 * math.pi))
    assert (-0.5 * squared.double() / t**2 - constant - exact).abs().max() > 0.05


def test_latents_far_from_the_origin_and_close_to_each_other():
    """Norms of 1e4, distances of 1e-3: what cancels is taken from differences."""
    samples = 1e4 / math.sqrt(50) + 1e-3 * normal(0, 10, 50)
    t = 1e-4
    x = (1 - t) * samples[:5] + t * normal(1, 5, 50)
    partition = random_partition(10, 2, 0)
    estimate = estimate_group_fields(ArrayLatents(samples), partition, PATHS["flow"], x, levels(t, 5), chunk=3)
    exact = group_fields(EmpiricalLaw(samples, AffinePath(PATHS["flow"])).terms(x, t), partition)
    close(estimate.log_z, exact.log_z, 1e-5)
    close(estimate.alpha, exact.alpha, 1e-5)


def test_twins_at_tiny_noise():
    """Latents of norm 1e4, twins 1e-6 apart in different groups, t = 1e-6: the product alone has lost every digit."""
    t, first = 1e-6, 1e3 * normal(0, 6, 50)
    samples = torch.cat([first, first + 3e-7 * normal(2, 6, 50)])
    x, partition = (1 - t) * first + t * normal(1, 6, 50), from_labels([0] * 6 + [1] * 6)
    exact = group_fields(EmpiricalLaw(samples, AffinePath(PATHS["flow"])).terms(x, t), partition)
    assert interference.off_diagonal_weight(exact.alpha).max() > 0.05
    estimate = estimate_group_fields(ArrayLatents(samples), partition, PATHS["flow"], x, levels(t, 6), chunk=5)
    close(estimate.log_z, exact.log_z, 1e-4)
    close(estimate.alpha, exact.alpha, 1e-4)


def test_limits_of_alpha():
    """t -> 0: one-hot, cross terms without weight, one effective sample; t -> 1: shares n_xi / N and all N samples."""
    samples = normal(0, 30, 64)
    partition = from_labels([0] * 15 + [1] * 10 + [2] * 5)
    low = estimate_group_fields(ArrayLatents(samples), partition, PATHS["flow"], samples, levels(1e-3, 30))
    assert torch.equal(low.alpha, torch.nn.functional.one_hot(partition.labels, 3).double())
    assert interference.off_diagonal_weight(low.alpha).max() == 0
    close(low.effective_samples, torch.ones(30, dtype=torch.float64))
    high = estimate_group_fields(ArrayLatents(samples), partition, PATHS["flow"], samples, levels(1.0, 30))
    close(high.alpha, partition.shares.expand(30, 3))
    close(high.effective_samples, torch.full((30,), 30.0, dtype=torch.float64))
    means = torch.stack([samples[partition.labels == g].mean(dim=0) for g in range(3)])
    close(high.posterior_mean, means.expand(30, 3, 64))


def test_the_band_where_groups_share_a_point_is_narrow_in_high_dimension():
    """White latents: from one effective sample to half of all within an interval of t that shrinks and moves to 1."""
    grid, bands = [round(0.5 + 0.02 * k, 2) for k in range(25)] + [0.99, 0.995], []
    for dimension in (64, 2048):
        latents = ArrayLatents(normal(0, 200, dimension))
        drawn = draw_queries(latents, PATHS["flow"], grid, 8, seed=1)
        estimate = estimate_group_fields(latents, random_partition(200, 3, 0), PATHS["flow"], drawn.x, drawn.t)
        profiles = level_profiles(estimate)
        assert [p.t for p in profiles] == grid and all(p.queries == 8 for p in profiles)
        alone = max(p.t for p in profiles if p.effective_samples < 1.05)
        shared = min(p.t for p in profiles if p.effective_samples > 100)
        assert profiles[0].off_diagonal_weight < 0.05 < 0.6 < profiles[-1].off_diagonal_weight
        assert sum(profiles[-1].alpha) == pytest.approx(1)
        bands.append((alone, shared))
        # the docstring's edge: alpha^2 |y - y'|^2 / sigma^2 = 8 log N
        edge = 1 / (1 + math.sqrt(4 * math.log(200) / dimension))
        assert alone == pytest.approx(edge, abs=0.08)
    (low, high), (low_wide, high_wide) = bands
    assert low_wide > low + 0.2 and high_wide - low_wide < 0.6 * (high - low)


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_the_order_of_latents_does_not_matter(case, random):
    latents, partition, path, x, t, chunk, _ = build(case)
    order = list(range(len(latents)))
    random.shuffle(order)
    moved = from_labels(partition.labels[order])
    here = estimate_group_fields(latents, partition, path, x, levels(t, 5), chunk=chunk)
    there = estimate_group_fields(
        ArrayLatents(latents.read(0, len(order))[order]), moved, path, x, levels(t, 5), chunk=chunk
    )
    close(here.log_z, there.log_z)
    close(here.posterior_mean, there.posterior_mean)


def test_merging_groups():
    samples, x = normal(0, 15, 3), normal(1, 4, 3)
    partition = random_partition(15, 3, 0)
    parts, whole = (
        estimate_group_fields(ArrayLatents(samples), p, PATHS["flow"], x, levels(0.5, 4))
        for p in (partition, partition.merge(0, 2))
    )
    close(whole.log_z[:, 0], torch.logsumexp(parts.log_z[:, [0, 2]], dim=1))
    share = torch.softmax(parts.log_z[:, [0, 2]], dim=1)
    close(whole.fields[:, 0], torch.einsum("mg,mgd->md", share, parts.fields[:, [0, 2]]))
    close(whole.conditional_variance, parts.conditional_variance)


def test_latents_on_disk_are_read_in_pieces(tmp_path):
    samples = normal(0, 23, 2, 3, 3)
    np.save(tmp_path / "latents.npy", samples.numpy().astype(np.float32))
    mapped = np.load(tmp_path / "latents.npy", mmap_mode="r")
    pieces = []

    class Recorded(LatentSource):
        @property
        def shape(self):
            return (2, 3, 3)

        def __len__(self):
            return 23

        def read(self, start, stop):
            pieces.append(stop - start)
            return ArrayLatents(mapped).read(start, stop)

    x, partition = normal(1, 4, 2, 3, 3), random_partition(23, 2, 0)
    disk = estimate_group_fields(Recorded(), partition, PATHS["vp"], x, levels(0.5, 4), chunk=5)
    memory = estimate_group_fields(ArrayLatents(samples.float()), partition, PATHS["vp"], x, levels(0.5, 4))
    close(disk.fields, memory.fields)
    assert max(pieces) == 5 and sum(pieces) == 23 + 5  # the first chunk twice: it gives the centre


def test_queries_are_noised_latents_the_same_for_a_seed():
    latents = ArrayLatents(normal(0, 6, 2, 4, 4).float())
    path = PATHS["flow"]
    drawn = draw_queries(latents, path, [0.0, 0.5, 1.0], 6, seed=0)
    assert sorted(drawn.index[:6].tolist()) == list(range(6)) and torch.equal(drawn.index[:6], drawn.index[6:12])
    close(drawn.x[:6], latents.read(0, 6)[drawn.index[:6]].double())
    assert drawn.x[12:].std().item() == pytest.approx(1, abs=0.2)
    noise = 2 * (drawn.x[6:12] - 0.5 * drawn.x[:6])
    assert noise.std().item() == pytest.approx(1, abs=0.2)
    again = draw_queries(latents, path, [0.0, 0.5, 1.0], 6, seed=0)
    assert torch.equal(again.x, drawn.x)
    assert not torch.equal(draw_queries(latents, path, [0.0, 0.5, 1.0], 6, seed=1).x, drawn.x)
    heavy = draw_queries(latents, path, [0.5], 50, 0, weights=torch.tensor([1e-9, 1e-9, 1.0, 1e-9, 1e-9, 1e-9]))
    assert heavy.index.unique().tolist() == [2]


def test_errors():
    latents, partition, path = ArrayLatents(normal(0, 4, 2, 3, 3)), from_labels([0, 1, 0, 1]), PATHS["flow"]
    x, t = normal(1, 2, 2, 3, 3), levels(0.5, 2)
    with pytest.raises(DataError, match=r"queries of shape \(2, 4, 4\), latents of \(2, 3, 3\).*group slices by shape"):
        estimate_group_fields(latents, partition, path, normal(1, 2, 2, 4, 4), t)
    with pytest.raises(DataError, match="sigma = 0 at t = 0"):
        estimate_group_fields(latents, partition, path, x, torch.tensor([0.5, 0.0]))
    with pytest.raises(DataError, match="labels 2 samples, the data has 4"):
        estimate_group_fields(latents, from_labels([0, 1]), path, x, t)
    with pytest.raises(DataError, match="chunk 0, 2 queries, 2 levels"):
        estimate_group_fields(latents, partition, path, x, t, chunk=0)
    with pytest.raises(DataError, match="k = 0"):
        estimate_nearest(latents, partition, path, x, t, 0)
    with pytest.raises(DataError, match="positive finite"):
        estimate_group_fields(latents, partition, path, x, t, weights=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    broken = normal(0, 4, 2, 3, 3)
    broken[2] = torch.nan
    with pytest.raises(DataError, match="latents 0 to 3"):
        estimate_group_fields(ArrayLatents(broken), partition, path, x, t)
    with pytest.raises(DataError, match="a row for each latent"):
        ArrayLatents(torch.zeros(0, 3))
