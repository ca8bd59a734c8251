"""One update: exact under any partition, stopped before the step when something is not finite."""

import dataclasses

import pytest
import torch

from flowgrain.align.base import Term
from flowgrain.errors import NonFiniteError
from flowgrain.train.setup import prepare
from flowgrain.train.step import accumulate, run_update


def silent(what, done, total):
    pass


def session_of(recipe, **sections):
    session = prepare(recipe(**sections), silent)
    # float64, so that a difference is one of mathematics and not of rounding
    session.family.components()["transformer"].double()
    # an untrained adapter has B = 0 and hence no gradient in A: start from a point where all parameters matter
    for i, (_, parameter) in enumerate(session.objective.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        parameter.data.add_(0.02 * noise)
    return session


def gradient(session):
    update = session.plan(0)[0]
    for _, parameter in session.objective.parameters():
        parameter.grad = None
    loss, levels = accumulate(
        session.objective, (session.builder.build(m, 0) for m in update.micro_batches), session.autocast
    )
    return update, loss, levels, torch.cat([p.grad.flatten() for _, p in session.objective.parameters()])


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradient_does_not_depend_on_the_micro_batch(recipe, kind):
    adapter = {"kind": kind, "rank": 4, "alpha": 2}
    results = [
        gradient(session_of(recipe, adapter=adapter, tuples={"batch_size": 6, "micro_batch": m})) for m in (1, 2, None)
    ]
    (one, loss_one, levels_one, reference), *others = results
    assert len(one.micro_batches) > len(others[-1][0].micro_batches)
    for _, loss, levels, value in others:
        assert loss == pytest.approx(loss_one, rel=1e-9)
        assert levels.count == levels_one.count
        assert (value - reference).norm() / reference.norm() < 1e-6


def test_update_gradient_is_that_of_equation_6(recipe):
    """mean over roots of (1 / K_r) sum over the root's slices, each slice run alone and weighted by hand."""
    session = session_of(recipe, tuples={"batch_size": 6})
    update, _, _, value = gradient(session)
    names = {s.slice_id: s for s in session.dataset.slices}
    per_root = {}
    for item in names.values():
        per_root.setdefault(item.root, []).append(item)
    parameters = [p for _, p in session.objective.parameters()]
    total = torch.zeros_like(value)
    for micro in update.micro_batches:
        batch = session.builder.build(micro, 0)
        losses = session.objective.per_sample(batch).total
        for i, name in enumerate(batch.names):
            weight = 1 / (update.roots * len(per_root[names[name].root]))
            parts = torch.autograd.grad(losses[i] * weight, parameters, retain_graph=True)
            total += torch.cat([part.flatten() for part in parts])
    assert (value - total).norm() / total.norm() < 1e-6


class Pull(Term):
    """Mean squared prediction: a term with a gradient that is easy to check."""

    name = "pull"

    def __init__(self, weight, poison=False):
        self.weight = weight
        self.poison = poison

    def __call__(self, context):
        value = context.output.prediction.float().square().flatten(1).mean(dim=1)
        return value * float("nan") if self.poison else value


def with_terms(session, *terms):
    return dataclasses.replace(session, objective=dataclasses.replace(session.objective, terms=terms))


def test_terms_add_their_weighted_gradient(recipe):
    session = session_of(recipe)
    plain = gradient(session)[3]
    one, two = gradient(with_terms(session, Pull(0.5)))[3], gradient(with_terms(session, Pull(1.0)))[3]
    assert (one - plain).norm() > 0.01 * plain.norm()
    assert ((two - plain) - 2 * (one - plain)).norm() < 1e-4 * (two - plain).norm()


def test_a_non_finite_loss_stops_before_the_step_and_names_slice_t_and_term(recipe):
    session = with_terms(session_of(recipe), Pull(1.0, poison=True))
    before = [p.detach().clone() for _, p in session.objective.parameters()]
    update = session.plan(0)[0]
    with pytest.raises(NonFiniteError) as caught:
        batches = (session.builder.build(m, 0) for m in update.micro_batches)
        run_update(session.objective, batches, session.optimizer, 1.0, session.autocast)
    message = str(caught.value)
    assert "macro0" in message and "t = 0." in message and "pull = nan" in message
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, session.objective.parameters(), strict=True))
    assert all(p.grad is None for _, p in session.objective.parameters())


def test_clipping_limits_the_norm_and_reports_it_before(recipe):
    session = session_of(recipe, clip=1e-3)
    optimizer = torch.optim.SGD([p for _, p in session.objective.parameters()], lr=1.0)
    before = torch.cat([p.detach().flatten() for _, p in session.objective.parameters()])
    batches = (session.builder.build(m, 0) for m in session.plan(0)[0].micro_batches)
    result = run_update(session.objective, batches, optimizer, 1e-3, session.autocast)
    after = torch.cat([p.detach().flatten() for _, p in session.objective.parameters()])
    assert result.grad_norm > 1e-3
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)
