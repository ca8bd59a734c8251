"""Parts of an update: they sum to its gradient, and what is read from their inner products is what it is called."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.geometry.gradients import cross_gram, gradient_gram
from flowgrain.geometry.noise_scale import NoiseScaleLog, from_two_batch_sizes
from flowgrain.geometry.oscillation import Oscillation
from flowgrain.train.interference import halves, split
from flowgrain.train.interference_line import (
    PartProducts,
    interaction_log,
    interaction_values,
    plain,
    update_norms_of,
)
from flowgrain.train.interference_steps import WINDOW, StepSketches
from flowgrain.train.setup import prepare
from flowgrain.train.step import accumulate

EVERY = {"interference": {"every": 1}}
LORA = {"kind": "lora", "rank": 4, "alpha": 2}


def silent(_what, _done, _total):
    """No progress."""


def double_session(config):
    """A session in float64 at a point where all parameters matter."""
    session = prepare(config, silent)
    for component in session.family.components().values():
        component.double()
    for i, (_, parameter) in enumerate(session.objective.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        parameter.data.add_(0.02 * noise)
    return session


def largest_update(session):
    return max(session.plan(0), key=lambda update: update.slices)


def flat(gradient):
    return torch.cat([part.flatten() for part in gradient])


def part_sum_and_gradient(session):
    update = largest_update(session)
    parts = split(update, session.dataset.slices, session.recipe.tuples, session.recipe.seed)
    total = sum(flat(session.interference.gradient(part)[0]) for part in parts)
    parameters = [parameter for _, parameter in session.objective.parameters()]
    assert all(parameter.grad is None for parameter in parameters)
    accumulate(session.objective, (session.builder.build(m, 0) for m in update.micro_batches), session.autocast)
    whole = flat([parameter.grad for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return update, parts, total, whole


@pytest.mark.parametrize(
    "sections",
    [
        {"tuples": {"batch_size": 6}},
        {"tuples": {"batch_size": 6, "micro_batch": 2, "reduction": "literal", "lambdas": {"micro": 3.0}}},
        {"tuples": {"batch_size": 9, "grouping": "slice"}, "adapter": {**LORA, "kind": "dora"}},
        {"tuples": {"batch_size": 6, "grouping": "shuffled"}, "memory": {"gradient_checkpointing": True}},
    ],
)
def test_parts_sum_to_the_gradient_of_the_update(recipe, sections):
    session = double_session(recipe(**EVERY, **sections))
    update, parts, total, whole = part_sum_and_gradient(session)
    assert {part.level for part in parts} == {"macro", "meso", "micro"} and {part.half for part in parts} == {0, 1}
    assert sum(part.update.slices for part in parts) == update.slices
    assert (total - whole).norm() < 1e-6 * whole.norm() and whole.norm() > 0
    products, means = session.interference.products(parts)
    assert products.gram.sum() == pytest.approx(whole.square().sum().item(), rel=1e-6)
    assert sum(means.count.values()) == update.slices
    assert not products.units[0] - products.units[1] > 1
    assert sum(products.units) == (update.slices if session.recipe.tuples.grouping == "slice" else update.roots)


def test_parts_sum_to_the_gradient_where_text_encoders_train(unet_recipe):
    text = {"adapter": {**LORA, "text_encoders": {}}, "optimizer": {"lr": 1e-3, "lrs": {"text_encoder*": 1e-4}}}
    data = {**unet_recipe().data.model_dump(mode="json"), "cache_text": False}
    session = prepare(unet_recipe(data=data, tuples={"batch_size": 6}, **EVERY, **text), silent)
    _, _, total, whole = part_sum_and_gradient(session)
    names = [name for name, _ in session.objective.parameters()]
    assert any("text_encoder" in name for name in names)
    assert (total - whole).norm() < 1e-5 * whole.norm()


def test_micro_batches_of_parts_are_no_larger_than_those_of_the_update(recipe):
    session = prepare(recipe(tuples={"batch_size": 6, "micro_batch": 2}, **EVERY), silent)
    update = largest_update(session)
    for part in split(update, session.dataset.slices, session.recipe.tuples, 0):
        for micro in part.update.micro_batches:
            assert 1 <= len(micro.slices) <= 2
            assert len({session.dataset.slices[i].bucket for i in micro.slices}) == 1


@given(st.sets(st.text(min_size=1, max_size=5), min_size=1, max_size=9), st.integers(0, 99))
def test_halves_are_even_and_do_not_depend_on_the_order(units, seed):
    found = halves(units, seed, 0)
    assert found == halves(sorted(units, reverse=True), seed, 0)
    first, second = [sum(half == k for half in found.values()) for k in (0, 1)]
    assert first - second in (0, 1) and first + second == len(units)


def test_halves_are_drawn_anew_every_epoch():
    drawn = [halves([f"root{k}" for k in range(16)], 0, epoch) for epoch in range(8)]
    assert len({tuple(sorted(unit for unit in found if found[unit])) for found in drawn}) > 4


def products_of(vectors, first):
    """Levels of (n, d) gradients of roots of weight 1 / n, the roots ``first`` in half 0."""
    levels = tuple(vectors)
    n = len(next(iter(vectors.values())))
    rows = [sorted(first), sorted(set(range(n)) - set(first))]
    parts = np.stack([[value[half].sum(axis=0) / n for half in rows] for value in vectors.values()])
    gram = np.einsum("ahd,bkd->ahbk", parts, parts)
    units = np.tile([len(half) for half in rows], (len(levels), 1))
    return PartProducts(levels, gram, units / n, units, (len(rows[0]), len(rows[1]))), parts


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(6, 5))  # slices of one root have something in common
    return {level: generator.normal(size=(6, 5)) + shared + k for k, level in enumerate(("macro", "meso", "micro"))}


def test_whole_and_unbiased_products_are_those_of_geometry(vectors):
    products, parts = products_of(vectors, (0, 2, 5))
    first, second = (dict(zip(vectors, torch.from_numpy(2 * parts[:, h]), strict=True)) for h in (0, 1))
    whole = {level: torch.from_numpy(value.mean(axis=0)) for level, value in vectors.items()}
    assert np.allclose(products.unbiased().gram, cross_gram(first, second), rtol=1e-12)
    assert np.allclose(products.whole().gram, gradient_gram(whole), rtol=1e-12)


@pytest.mark.parametrize("size", [3, 2])
def test_over_all_splits_estimates_are_the_textbook_ones(vectors, size):
    """Products: the mean over pairs of different roots. Noise: the sample variance of a root's gradient."""
    found = [products_of(vectors, first)[0] for first in combinations(range(6), size)]
    gram = np.mean([products.unbiased().gram for products in found], axis=0)
    for i, a in enumerate(vectors.values()):
        for j, b in enumerate(vectors.values()):
            cross = a @ b.T
            assert gram[i, j] == pytest.approx((cross.sum() - cross.trace()) / 30, rel=1e-10)
    roots = sum(vectors.values())
    for name, value in {**vectors, "update": roots}.items():
        square, trace = np.mean([products.noise()[name].moments() for products in found], axis=0)
        variance = np.var(value, axis=0, ddof=1).sum()
        assert trace == pytest.approx(variance, rel=1e-10)
        assert square == pytest.approx(np.square(value.mean(axis=0)).sum() - variance / 6, rel=1e-10)


def test_noise_of_equal_halves_is_the_formula_of_two_batch_sizes(vectors):
    products, parts = products_of(vectors, (0, 1, 2))
    half = np.mean([np.square(2 * parts[:, h].sum(axis=0)).sum() for h in (0, 1)])
    whole = np.square(parts.sum(axis=(0, 1))).sum()
    assert products.noise()["update"].moments() == pytest.approx(from_two_batch_sizes(half, whole, 3, 6), rel=1e-10)


def without(products, level, half):
    """The same without the slices of one part."""
    weight, units, gram = products.weight.copy(), products.level_units.copy(), products.gram.copy()
    gram[level, half] = gram[:, :, level, half] = 0.0
    weight[level, half] = units[level, half] = 0
    return PartProducts(products.levels, gram, weight, units, products.units)


def test_a_level_in_one_half_keeps_its_products_with_the_other_half(vectors):
    products, parts = products_of(vectors, (0, 1, 2))
    found = without(products, 2, 1).unbiased().gram
    assert np.isnan(found[2, 2])
    assert found[2, 0] == pytest.approx(2 * parts[2, 0] @ parts[0, 1], rel=1e-12)  # half 0 is now all of the level
    assert np.array_equal(found[:2, :2], products.unbiased().gram[:2, :2])
    both = without(without(products, 2, 1), 1, 1)
    assert np.isnan(both.unbiased().gram[1, 2])
    assert both.noise()["micro"] is None and both.noise()["macro"] is not None


def test_values_are_json_and_come_back(vectors):
    logged = [products_of(vectors, first)[0] for first in ((0, 1, 2), (1, 3, 5))]
    logged.append(without(logged[0], 2, 1))
    lines = [json.loads(json.dumps(plain({"kind": "interference", **interaction_values(p)}), allow_nan=False))
             for p in logged]  # fmt: skip
    lines.insert(1, {"kind": "update"})
    raw, unbiased = (interaction_log(lines, unbiased=flag) for flag in (False, True))
    assert raw.levels == ("macro", "meso", "micro") and len(raw) == len(unbiased) == 3
    assert np.array_equal(raw.grams()[1], logged[1].whole().gram)
    assert np.array_equal(unbiased.grams()[2], logged[2].unbiased().gram, equal_nan=True)
    assert np.isfinite(unbiased.pooled().cosines).all()
    pool = NoiseScaleLog()
    for line in (lines[0], lines[2]):
        pool.add(update_norms_of(line))
    assert pool.estimate().trace == pytest.approx(np.mean([p.noise()["update"].moments()[1] for p in logged[:2]]))
    assert update_norms_of(lines[3], "micro") is None


def test_what_is_not_finite_is_null(vectors):
    products, _ = products_of(vectors, (0, 1, 2))
    gram = products.gram.copy()
    gram[1, 0] = gram[:, :, 1, 0] = np.nan
    values = plain(
        interaction_values(PartProducts(products.levels, gram, products.weight, products.level_units, (3, 3)))
    )
    assert values["norm_by_level"]["macro"] > 0 and values["norm_by_level"]["meso"] is None
    assert values["cosine"]["macro-micro"] is not None and values["cosine"]["macro-meso"] is None
    assert values["conflict"]["macro-meso"] is None and values["conflict_rate"] is None
    assert values["cross_share"] is None and values["noise"]["update"]["trace"] is None


def walk(parameter, kind, generator):
    """A step of a straight line, a random walk, or there and back."""
    with torch.no_grad():
        drawn = torch.randn(parameter.shape, generator=generator) if kind == "random" else torch.ones_like(parameter)
        parameter.add_(drawn)


@pytest.mark.parametrize("kind", ["straight", "random", "back"])
def test_sketches_of_steps_measure_what_whole_steps_measure(kind):
    generator = torch.Generator().manual_seed(0)
    parameters = [(name, torch.nn.Parameter(torch.zeros(size))) for name, size in (("a", (30, 80)), ("b", (90, 40)))]
    sketches, exact = StepSketches(parameters, every=1), Oscillation(torch.Generator().manual_seed(1), sketch=4096)
    for number in range(1, WINDOW + 1):
        before = [p.detach().clone() for _, p in parameters]
        sketches.before(number)
        for _, parameter in parameters:
            walk(parameter, kind, generator)
            if kind == "back" and number % 2:
                parameter.data.sub_(2.0)
        sketches.after(number)
        exact.add([p.detach() - old for (_, p), old in zip(parameters, before, strict=True)])
    found, true = sketches.measures(WINDOW), exact.measures()
    assert found["updates"] == WINDOW
    assert found["mean_cosine"] == pytest.approx(true.mean_cosine, abs=0.02)
    assert found["straightness"] == pytest.approx(true.straightness, abs=0.05)
    assert found["random_straightness"] == pytest.approx(true.random_straightness, abs=0.01)
    assert found["high_frequency_share"] == pytest.approx(true.high_frequency_share, abs=0.05)
    assert {"straight": 0.99, "random": -0.1, "back": -1.01}[kind] < found["mean_cosine"]


def test_only_the_updates_that_a_measurement_looks_back_on_are_sketched():
    parameters = [("a", torch.nn.Parameter(torch.zeros(10)))]
    sketches = StepSketches(parameters, every=2 * WINDOW)
    for number in range(1, 2 * WINDOW + 1):
        sketches.before(number)
        parameters[0][1].data.add_(1.0)
        sketches.after(number)
        assert len(sketches.tensors()) == max(number - WINDOW, 0)
    restored = StepSketches(parameters, every=2 * WINDOW)
    restored.load({**sketches.tensors(), "parameter.a": torch.zeros(10)})
    assert restored.measures(2 * WINDOW) == sketches.measures(2 * WINDOW)


def test_a_gap_of_updates_ends_the_window():
    parameters = [("a", torch.nn.Parameter(torch.zeros(10)))]
    sketches = StepSketches(parameters, every=1)
    for number in (1, 2, 3, 5, 6):
        sketches.before(number)
        parameters[0][1].data.add_(1.0)
        sketches.after(number)
    assert sketches.measures(6)["updates"] == 2
