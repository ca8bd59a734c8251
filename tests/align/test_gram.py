"""The Gram loss: both forms, its gradient, masks, precision (Spatial Gram Alignment, Eqs. 3 and 4)."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.align.gram import GramTarget, choose_form, gram_loss, unit_rows

FORMS = ("direct", "factored")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(tokens, features):
    """The definition, through autograd."""
    z, f = F.normalize(tokens, dim=-1), F.normalize(features, dim=-1)
    return F.mse_loss(z @ z.mT, f @ f.mT, reduction="none").mean(dim=(1, 2))


def gradient(loss, tokens):
    return torch.autograd.grad(loss.sum(), tokens)[0]


@pytest.mark.parametrize("form", FORMS)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_value_and_gradient_are_those_of_the_definition(form, n, width, reference_width, seed):
    tokens = random(2, n, width, seed=seed).requires_grad_()
    features = random(2, n, reference_width, seed=seed + 1)
    expected = plain(tokens, features)
    found = gram_loss(tokens, GramTarget.of(features, width, form=form))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient(found, tokens), gradient(expected, tokens), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_upstream_weights_reach_the_gradient_by_sample(form):
    tokens, features = random(3, 5, 4).requires_grad_(), random(3, 5, 4, seed=1)
    weights = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
    found = gradient(weights * gram_loss(tokens, GramTarget.of(features, 4, form=form)), tokens)
    torch.testing.assert_close(found, gradient(weights * plain(tokens, features), tokens), rtol=1e-10, atol=1e-14)
    assert found[1].abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("centred", [False, True])
def test_masked_tokens_do_not_count(form, centred):
    """A padded sample is the sample without its padding, whatever the padding holds."""
    tokens, features = random(1, 7, 4), random(1, 7, 3, seed=1)
    mask = torch.tensor([[True, True, False, True, True, False, False]])
    own, reference = tokens.clone().requires_grad_(), features.clone()
    padded = gram_loss(own, GramTarget.of(reference, 4, mask, centred, form), mask, centred)
    cut = tokens[:, mask[0]].clone().requires_grad_()
    short = gram_loss(cut, GramTarget.of(features[:, mask[0]], 4, None, centred, form), None, centred)
    torch.testing.assert_close(padded, short, rtol=1e-12, atol=0)
    found = gradient(padded, own)
    torch.testing.assert_close(found[:, mask[0]], gradient(short, cut), rtol=1e-10, atol=1e-14)
    assert found[:, ~mask[0]].abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_of_padding_alone_is_zero(form):
    tokens = random(1, 3, 4).requires_grad_()
    mask = torch.zeros(1, 3, dtype=torch.bool)
    loss = gram_loss(tokens, GramTarget.of(random(1, 3, 4), 4, mask, form=form), mask)
    assert loss.item() == 0 and gradient(loss, tokens).abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_zero_row_has_no_direction_and_no_nan(form):
    tokens = random(1, 4, 3)
    tokens[0, 1] = 0
    tokens.requires_grad_()
    loss = gram_loss(tokens, GramTarget.of(random(1, 4, 3, seed=1), 3, form=form))
    found = gradient(loss, tokens)
    assert torch.isfinite(loss).all() and found[0, 1].abs().max() == 0 < found[0, 0].abs().max() < 10


def test_centring_removes_a_shared_direction():
    features = random(2, 6, 5)
    moved = features + 40.0
    same = gram_loss(features, GramTarget.of(moved, 5, centred=True), centred=True)
    assert same.max() < 1e-20 and gram_loss(features, GramTarget.of(moved, 5)).min() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_low_precision_inputs_are_computed_in_float32(form):
    tokens, features = random(2, 8, 6, dtype=torch.float32), random(2, 8, 6, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gram_loss(tokens, GramTarget.of(features, 6, form=form))
    torch.testing.assert_close(found, plain(tokens, features), rtol=1e-5, atol=1e-7)
    half = tokens.bfloat16().requires_grad_()
    loss = gram_loss(half, GramTarget.of(features, 6, form=form))
    assert loss.dtype == torch.float32 and gradient(loss, half).dtype == torch.bfloat16
    torch.testing.assert_close(loss, plain(half.float(), features), rtol=1e-5, atol=1e-7)


def test_precision_near_zero():
    """What the module says of both forms in float32, near a loss of 2e-6."""
    features = random(1, 256, 64, dtype=torch.float32)
    tokens = features + 4e-3 * random(1, 256, 64, seed=1, dtype=torch.float32)
    exact = plain(tokens.double(), features.double()).item()
    off = {form: abs(gram_loss(tokens, GramTarget.of(features, 64, form=form)).item() / exact - 1) for form in FORMS}
    assert 1e-7 < exact < 1e-5
    assert off["direct"] < 1e-5 and off["factored"] < 2e-2 and off["direct"] < off["factored"]


def test_the_form_is_chosen_by_multiplications():
    assert choose_form(256, 768, 768) == "direct" and choose_form(4096, 768, 768) == "factored"
    assert (
        GramTarget.of(random(1, 64, 4), 4).form == "factored" and GramTarget.of(random(1, 4, 64), 64).form == "direct"
    )
    for tokens, width, reference in ((100, 30, 60), (5000, 100, 900), (64, 64, 64)):
        direct = tokens**2 * (2 * width + reference)
        factored = tokens * (2 * width**2 + 2 * width * reference + reference**2)
        assert (choose_form(tokens, width, reference) == "direct") == (direct <= factored)


def test_no_second_derivative_rather_than_a_wrong_one():
    tokens = random(1, 4, 3).requires_grad_()
    loss = gram_loss(tokens, GramTarget.of(random(1, 4, 3, seed=1), 3)).sum()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, tokens, create_graph=True)


def test_the_reference_has_no_gradient():
    features = random(1, 4, 3, seed=1).requires_grad_()
    tokens = random(1, 4, 3).requires_grad_()
    gram_loss(tokens, GramTarget.of(features, 3)).sum().backward()
    assert features.grad is None and tokens.grad is not None


def test_grids_that_differ_are_refused():
    with pytest.raises(ValueError, match="reference"):
        gram_loss(random(1, 4, 3), GramTarget.of(random(1, 5, 3), 3))


def test_unit_rows_keep_float64_and_raise_the_rest():
    assert unit_rows(random(1, 2, 3)).dtype == torch.float64
    assert unit_rows(random(1, 2, 3).half()).dtype == torch.float32
    torch.testing.assert_close(unit_rows(random(1, 5, 3)).norm(dim=-1), torch.ones(1, 5, dtype=torch.float64))
