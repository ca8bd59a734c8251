"""The wavelet loss in training: where it is the squared error, where it is not, and what is refused."""

import dataclasses

import pytest
import torch
from aligned_runs import first, silent

from flowgrain.align.haar import BandWeights, band_errors, haar, wavelet_error
from flowgrain.align.wavelet import WaveletLoss
from flowgrain.flow.paths import PathSample, RectifiedFlow
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.train.setup import prepare

WAVELET = {"loss": {"kind": "wavelet"}}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(recipe, **sections):
    session = prepare(recipe(**sections), silent)
    for i, (_, parameter) in enumerate(session.adapter.parameters()):
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return session


def test_on_a_family_it_is_sigma_squared_times_flow_matching(recipe):
    """Diffusion-4K's loss as released: the same losses and the same gradient as a weight sigma^2."""
    session = trained(recipe, **WAVELET)
    batch = first(session)
    losses = session.objective.per_sample(batch)
    sigma = losses.t.float()
    assert torch.allclose(losses.total.float(), sigma.square() * losses.parts["flow"], rtol=1e-5)
    assert torch.equal(losses.parts["wavelet"], losses.watched["wavelet"])
    losses.total.sum().backward()
    mine = {name: parameter.grad for name, parameter in session.objective.parameters()}
    plain = trained(recipe)
    (plain.objective.per_sample(batch).total * sigma.square()).sum().backward()
    for name, parameter in plain.objective.parameters():
        assert torch.allclose(mine[name], parameter.grad, rtol=1e-4, atol=1e-8), name


def test_of_a_model_that_predicts_noise_it_is_the_error_of_x0(unet_recipe):
    session = trained(unet_recipe, **WAVELET)
    batch = first(session)
    losses = session.objective.per_sample(batch)
    snr = session.objective.path.snr(losses.t)
    assert torch.allclose(losses.total.double(), losses.parts["flow"].double() / snr, rtol=1e-4)
    band = trained(unet_recipe, loss={"kind": "wavelet", "bands": {"ll": 0.0}})
    assert (band.objective.per_sample(batch).total < losses.total).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_factor_turns_errors_of_predictions_into_errors_of_x0(prediction):
    path = VariancePreserving(NoiseSchedule(), prediction)
    x0, noise, error = (random(2, 4, 6, 6, seed=seed) for seed in range(3))
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    sample = path(x0, noise, t)
    guess = sample.target + error
    difference = path.prediction_to_x0(guess, sample.x_t, t) - x0
    expected = difference.square().flatten(1).mean(dim=1)
    found = WaveletLoss(path, BandWeights())(guess, sample, t)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_bands_that_differ_are_a_loss_of_their_own():
    """A checkerboard is all HH; a constant is all LL."""
    path, t = RectifiedFlow(), torch.tensor([0.5, 0.5], dtype=torch.float64)
    x0 = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    board = (torch.arange(4).view(1, 4) + torch.arange(4).view(4, 1)) % 2 * 2.0 - 1
    error = torch.stack([board.expand(3, 4, 4), torch.ones(3, 4, 4)]).double()
    sample = path(x0, torch.zeros_like(x0), t)
    loss = WaveletLoss(path, BandWeights(ll=2.0, lh=5.0, hl=7.0, hh=3.0))
    assert loss(error, sample, t).tolist() == pytest.approx([0.25 * 3.0, 0.25 * 2.0])


def test_masks_weigh_coefficients_by_the_mean_of_their_cell():
    error = random(2, 3, 6, 5)
    even = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = even.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :5]
    expected = (error.square() * weight).mean(dim=(1, 2, 3))
    assert torch.allclose(band_errors(error, weight).sum(0), expected)
    assert torch.equal(wavelet_error(error, BandWeights(), torch.ones(2, 1, 6, 5)), wavelet_error(error, BandWeights()))
    uneven = torch.zeros(2, 1, 6, 5, dtype=torch.float64)
    uneven[:, :, 0, 0] = 1
    by_hand = haar(error)[..., 0, 0].square().sum(dim=(0, 2)) / 4 / error[0].numel()
    assert torch.allclose(wavelet_error(error, BandWeights(), uneven), by_hand)


def test_a_masked_batch_is_trained_by_it(recipe):
    session = trained(recipe, **WAVELET)
    batch = first(session)
    even = torch.rand(len(batch.x0), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scale = batch.x0.shape[2] // 4
    weight = even.repeat_interleave(scale, 2).repeat_interleave(batch.x0.shape[3] // 4, 3)
    losses = session.objective.per_sample(dataclasses.replace(batch, cell_weight=weight))
    assert torch.allclose(losses.total.float(), losses.t.float().square() * losses.parts["flow"], rtol=1e-5)


def test_validation_stays_the_plain_one(recipe, dataset):
    held_out = {"validation": {"path": str(dataset), "max_roots": 1}}
    plain, wavelet = trained(recipe, **held_out), trained(recipe, **held_out, **WAVELET)
    assert plain.validator.measure(plain.autocast)["loss"] == wavelet.validator.measure(wavelet.autocast)["loss"]
    assert recipe(loss={"kind": "mse"}).identity() == recipe().identity() != recipe(**WAVELET).identity()


def test_what_it_does_not_go_with_is_refused(unet_recipe):
    with pytest.raises(ValueError, match="is an error of x0: set one of them back"):
        unet_recipe(**WAVELET, weighting={"kind": "min_snr"})
    sample = PathSample(
        torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.full((1, 2), 0.5), torch.full((1, 2), 0.5), (1, 1)
    )
    with pytest.raises(ValueError, match="of one latent group, this path has 2"):
        WaveletLoss(RectifiedFlow(), BandWeights())(torch.zeros(1, 2, 2, 2), sample, torch.tensor([0.5]))
