"""PSNR, SSIM, NMSE and NRMSE against scikit-image and torchmetrics, and their laws."""

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torch_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from flowgrain.errors import DataError
from flowgrain.evaluate.reconstruction.pixel_errors import PSNR_CAP, NormalisedError, Psnr, mse, nmse, nrmse, psnr
from flowgrain.evaluate.reconstruction.ssim import WEIGHTS, ssim

SEEDS = st.integers(0, 2**32 - 1)


def pair(seed, height=24, width=31, noise=0.1, batch=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, height, width, generator=generator)
    return x, (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def photographs(crop=(slice(None), slice(None))):
    clean = skimage.data.chelsea()[crop]
    noisy = np.clip(clean + np.random.default_rng(0).normal(scale=15, size=clean.shape), 0, 255).astype(np.uint8)
    return [torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 for picture in (clean, noisy)]


def channels_last(x):
    return x[0].permute(1, 2, 0).double().numpy()


def test_equal_to_scikit_image_on_a_photograph():
    # 300 x 451: several bands of the similarity map, the last one cut
    x, y = photographs()
    a, b = channels_last(x), channels_last(y)
    expected = structural_similarity(
        a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    assert ssim(x, y).item() == pytest.approx(expected, rel=1e-12)
    assert psnr(x, y).item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), rel=1e-9)
    assert nrmse(x, y).item() == pytest.approx(normalized_root_mse(a, b, normalization="euclidean"), rel=1e-9)


@pytest.mark.parametrize("size", [(11, 11), (74, 12), (75, 75), (140, 33)])
def test_equal_to_torchmetrics_at_every_size(size):
    # 74 and 75 rows make a map of exactly one band, and of one row more
    x, y = pair(3, *size, batch=2)
    # torchmetrics also averages over windows that hang over the border; those inside are the same
    _, windows = structural_similarity_index_measure(x.double(), y.double(), data_range=1.0, return_full_image=True)
    inside = windows[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(x, y).tolist() == pytest.approx(inside.tolist(), rel=1e-9)
    psnrs = torch_psnr(x.double(), y.double(), data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert psnr(x, y).tolist() == pytest.approx(psnrs.tolist(), rel=1e-6)


def test_closed_forms():
    x = torch.full((1, 3, 16, 16), 0.5)
    y = torch.full((1, 3, 16, 16), 0.6)
    assert mse(x, y).item() == pytest.approx(0.01, rel=1e-6)
    assert psnr(x, y).item() == pytest.approx(20.0, rel=1e-6)
    assert psnr(255 * x, 255 * y, peak=255.0).item() == pytest.approx(20.0, rel=1e-6)
    assert nmse(x, y).item() == pytest.approx(0.04, rel=1e-6)
    assert nrmse(x, y).item() == pytest.approx(0.2, rel=1e-6)
    # constant pictures: only the luminance term is left, (2 mu nu + C1) / (mu^2 + nu^2 + C1)
    assert ssim(x, y).item() == pytest.approx((0.6 + 1e-4) / (0.61 + 1e-4), rel=1e-6)
    assert sum(WEIGHTS) == pytest.approx(1.0) and pytest.approx(WEIGHTS[::-1]) == WEIGHTS


def test_the_two_published_nmse_are_told_apart():
    # spec (h): inverting published (PSNR, NMSE) pairs for the RMS of the pictures
    for decibel, published, root in ((29.22, 0.08, True), (26.90, 0.01522, False)):
        error = 10 ** (-decibel / 20)
        rms = error / published if root else error / published**0.5
        assert 0.33 < rms < 0.45


@given(SEEDS)
def test_laws(seed):
    x, y = pair(seed, 16, 19)
    assert ssim(x, x).item() == pytest.approx(1.0, abs=1e-12)
    assert ssim(x, y).item() == pytest.approx(ssim(y, x).item(), abs=1e-12)
    assert -1 <= ssim(x, y).item() < 1
    assert psnr(x, y).item() == pytest.approx(psnr(y, x).item(), rel=1e-12)
    assert psnr(x, x).item() == float("inf")
    assert nrmse(x, y).item() ** 2 == pytest.approx(nmse(x, y).item(), rel=1e-12)
    assert nmse(x / 2, y / 2).item() == pytest.approx(nmse(x, y).item(), rel=1e-5)  # scale-free, the MSE is not


@given(SEEDS, st.integers(1, 4))
def test_a_value_does_not_depend_on_the_batch(seed, batch):
    x, y = pair(seed, 16, 17, batch=batch)
    for measure in (psnr, ssim, nmse, nrmse):
        alone = [measure(x[row : row + 1], y[row : row + 1]).item() for row in range(batch)]
        assert measure(x, y).tolist() == pytest.approx(alone, rel=1e-12)


def test_an_exact_reconstruction_counts_as_the_cap():
    score = Psnr()
    values = np.array([20.0, np.inf, 40.0])
    assert score.pooled(values) == pytest.approx((20 + PSNR_CAP + 40) / 3)
    assert "1 of 3 pictures came back exactly" in score.note(values)
    assert score.note(np.array([20.0])) is None


def test_a_black_original_has_no_normalised_error():
    x, y = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    assert nmse(x, y).isnan().item() and nrmse(x, y).isnan().item()
    assert NormalisedError(root=False).title != NormalisedError(root=True).title


def test_smallest_size():
    with pytest.raises(DataError, match="10x40 pixels: this metric needs 11"):
        ssim(*pair(0, 40, 10))
