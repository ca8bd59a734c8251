"""Measuring pairs: pooling, intervals, paired differences, and the Frechet distance of reconstructions."""

import weakref

import numpy as np
import pytest
from PIL import Image

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.encoders.base import ImageEncoder, open_rgb
from flowgrain.evaluate.frechet import frechet_distance
from flowgrain.evaluate.reconstruction.measure import (
    Pair,
    measure_reconstruction,
    reconstruction_table,
    score_pairs,
)
from flowgrain.evaluate.reconstruction.pixel_errors import PSNR_CAP
from flowgrain.evaluate.reconstruction.rfid import GROUPS, reconstruction_frechet

BOOTSTRAP = Bootstrap(resamples=200)


class QuadrantMeans(ImageEncoder):
    """Mean colour of four quadrants: an encoder without weights that counts what it encodes."""

    family = "Quadrants"
    name = "Quadrants 2 x 2"
    version = "1"
    size = 2
    resize = "box"
    dimension = 12

    def __init__(self):
        self.encoded = 0

    def __call__(self, images):
        self.encoded += len(images)
        small = [open_rgb(image).resize((2, 2), Image.Resampling.BOX) for image in images]
        return np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in small])


def originals(count=40, side=16):
    generator = np.random.default_rng(0)
    return [generator.integers(40, 216, size=(side, side, 3)).astype(np.uint8) for _ in range(count)]


def degraded(pictures, noise, seed):
    generator = np.random.default_rng(seed)
    return [np.clip(p + generator.normal(scale=noise, size=p.shape), 0, 255).astype(np.uint8) for p in pictures]


def pairs(pictures, noises, seed=1):
    arms = {arm: degraded(pictures, noise, seed) for arm, noise in noises.items()}
    for row, original in enumerate(pictures):
        for arm, reconstructions in arms.items():
            yield Pair(arm, f"picture {row}", original, reconstructions[row])


def by_name(table):
    return {(result.name, result.arm): result for result in table.results}


def test_the_better_autoencoder_is_ahead_on_every_metric():
    encoder = QuadrantMeans()
    table = measure_reconstruction(
        pairs(originals(), {"coarse": 30, "fine": 8}), encoder, compare=[("coarse", "fine")], bootstrap=BOOTSTRAP
    )
    names = ["PSNR", "SSIM", "NMSE", "NRMSE", "Quadrants reconstruction Frechet distance"]
    assert [difference.name for difference in table.differences] == names
    assert [difference.ahead for difference in table.differences] == ["fine"] * 5
    for result in table.results:
        assert result.low <= result.value <= result.high
        assert result.n == result.clusters == 40
    assert encoder.encoded == 3 * 40  # each original once, though two arms share it


def test_values_are_those_of_the_pictures():
    pictures = originals(5)
    arms = score_pairs(pairs(pictures, {"a": 20}))
    x = np.stack(pictures).astype(float) / 255
    y = np.stack(degraded(pictures, 20, 1)).astype(float) / 255
    error = np.square(x - y).mean(axis=(1, 2, 3))
    assert arms["a"].values["PSNR"] == pytest.approx(-10 * np.log10(error), rel=1e-5)
    assert arms["a"].values["NMSE"] == pytest.approx(error / np.square(x).mean(axis=(1, 2, 3)), rel=1e-5)
    assert arms["a"].values["NRMSE"] ** 2 == pytest.approx(arms["a"].values["NMSE"])
    assert arms["a"].keys == tuple(f"picture {row}" for row in range(5))
    table = reconstruction_table(arms, bootstrap=BOOTSTRAP)
    assert by_name(table)["PSNR", "a"].value == pytest.approx(arms["a"].values["PSNR"].mean())


def test_exact_and_black_pictures_are_told():
    pictures = [*originals(6), np.zeros((16, 16, 3), dtype=np.uint8)]
    same = [Pair("identity", str(row), picture, picture) for row, picture in enumerate(pictures)]
    results = by_name(measure_reconstruction(same, bootstrap=BOOTSTRAP))
    psnr, nmse = results["PSNR", "identity"], results["NMSE", "identity"]
    assert psnr.value == psnr.low == psnr.high == PSNR_CAP and "7 of 7 pictures came back exactly" in psnr.warning
    assert nmse.value == 0 and "not defined on 1 of 7" in nmse.warning


def test_pairs_are_streamed():
    alive, most = 0, 0

    def gone():
        nonlocal alive
        alive -= 1

    def stream():
        nonlocal alive, most
        for row in range(30):
            picture = np.random.default_rng(row).integers(0, 256, size=(16, 16, 3)).astype(np.uint8)
            weakref.finalize(picture, gone)
            alive += 1
            most = max(most, alive)
            yield Pair("a", str(row), picture, degraded([picture], 9, row)[0])

    measure_reconstruction(stream(), QuadrantMeans(), bootstrap=BOOTSTRAP)
    assert most <= 3


def test_errors_name_picture_and_arm(tmp_path):
    small = originals(1, side=8)[0]
    with pytest.raises(DataError, match=r"a of 'x': the original has 16x16 pixels, its reconstruction 8x8"):
        measure_reconstruction([Pair("x", "a", originals(1)[0], small)])
    with pytest.raises(DataError, match=r"b of 'x': a picture of 8x8 pixels: this metric needs 11"):
        measure_reconstruction([Pair("x", "b", small, small)])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        measure_reconstruction([Pair("x", "c", small, broken)])
    arms = score_pairs([*pairs(originals(4), {"a": 5}), *pairs(originals(3), {"b": 5})])
    with pytest.raises(DataError, match="'picture 3'"):
        reconstruction_table(arms, compare=[("a", "b")], bootstrap=BOOTSTRAP)
    with pytest.raises(DataError, match="'a' has no features"):
        reconstruction_table(arms, encoder=QuadrantMeans(), bootstrap=BOOTSTRAP)


def features(count, seed=0, dimension=6):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def test_frechet_of_exact_reconstructions_is_zero_with_a_zero_interval():
    x = features(50)
    estimate, replicates = reconstruction_frechet(x, x, [str(row) for row in range(50)], BOOTSTRAP)
    assert estimate == pytest.approx(0, abs=1e-9)
    assert replicates == pytest.approx(np.zeros(200), abs=1e-9)


def test_leaving_out_pairs_is_tighter_than_holding_the_originals_fixed():
    # reconstructions with a constant shift: the distance is |shift|^2 whatever pictures are drawn
    x = features(60)
    shift = np.full(6, 0.5)
    estimate, replicates = reconstruction_frechet(x, x + shift, [str(row) for row in range(60)], BOOTSTRAP)
    assert estimate == pytest.approx(frechet_distance(x + shift, x)) == pytest.approx(6 * 0.25)
    assert replicates.std() < 1e-9


def test_frechet_interval_covers_the_large_sample_value():
    generator = np.random.default_rng(3)
    scale = np.linspace(0.5, 1.5, 6)
    truth = np.square(1 - scale).sum()
    covered = 0
    for _ in range(40):
        x = generator.normal(size=(400, 6))
        estimate, replicates = reconstruction_frechet(x, x * scale, [str(i) for i in range(400)], BOOTSTRAP)
        low, high = BOOTSTRAP.interval(estimate, replicates)
        covered += low <= truth <= high
    assert covered >= 34


def test_frechet_groups_follow_keys_not_rows():
    x, y = features(90), features(90, seed=1)
    keys = [f"root {row % 45}" for row in range(90)]
    order = np.random.default_rng(0).permutation(90)
    first = reconstruction_frechet(x, y, keys, BOOTSTRAP)
    second = reconstruction_frechet(x[order], y[order], [keys[row] for row in order], BOOTSTRAP)
    assert first[0] == pytest.approx(second[0])
    assert first[1] == pytest.approx(second[1])
    assert GROUPS < 45
    with pytest.raises(DataError, match="at least 3 pictures"):
        reconstruction_frechet(x[:2], y[:2], ["a", "b"], BOOTSTRAP)
