"""The GLCM Score against scikit-image, and the constants of specs/spatial-gram.md (e)."""

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.feature import graycomatrix
from skimage.measure import shannon_entropy

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.detail.glcm import GlcmEntropy, GlcmScore, glcm_entropy, glcm_score, opencv_grey
from flowgrain.evaluate.table import PictureSet, score_metrics


def published(patch):
    """What the published script computes of one 64 x 64 patch, and the textbook entropy of the same matrices."""
    glcm = graycomatrix(
        patch // 4, [1, 2, 3, 4], [0, np.pi / 4, np.pi / 2, np.pi * 3 / 4], levels=64, symmetric=False, normed=True
    )
    p = glcm.reshape(-1, 16)
    joint = -np.sum(p * np.log2(p, out=np.zeros_like(p), where=p > 0), axis=0)
    return shannon_entropy(glcm), joint.mean()


def patches(grey):
    rows, columns = grey.shape[0] // 64, grey.shape[1] // 64
    return [grey[64 * i : 64 * i + 64, 64 * j : 64 * j + 64] for i in range(rows) for j in range(columns)]


def texture(std, side=256, blur=1.7):
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(side, side)), blur, mode="wrap")
    return np.clip((noise / noise.std() * std + 128).round(), 0, 255).astype(np.uint8)


def test_constant_patch():
    # 16 of 65,536 entries are 1, the rest 0
    constant = np.full((64, 64), 37, dtype=np.uint8)
    p = 16 / 65536
    assert glcm_score(constant) == pytest.approx(-p * np.log2(p) - (1 - p) * np.log2(1 - p), rel=1e-12)
    assert glcm_score(constant) == pytest.approx(0.0032818649698, rel=1e-10)
    assert glcm_entropy(constant) == 0


def test_horizontal_ramp():
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    assert glcm_score(ramp) == pytest.approx(0.14705369820, rel=1e-9)
    assert glcm_entropy(ramp) == pytest.approx(5.9655, abs=5e-5)


def test_noise_and_textures():
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64)).astype(np.uint8)
    assert glcm_score(noise) == pytest.approx(3.53, abs=0.01)
    assert glcm_entropy(noise) == pytest.approx(11.14, abs=0.01)
    assert glcm_score(texture(8)) == pytest.approx(0.40, abs=0.02)
    assert glcm_entropy(texture(8)) == pytest.approx(5.5, abs=0.15)
    assert glcm_score(texture(16)) == pytest.approx(0.96, abs=0.06)
    assert glcm_entropy(texture(16)) == pytest.approx(7.4, abs=0.15)


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_equal_to_scikit_image_on_photographs(name):
    # 300 x 451 and 400 x 600: whole patches only, more than are counted at once
    grey = opencv_grey(getattr(skimage.data, name)())
    expected = np.array([published(patch) for patch in patches(grey)])
    assert len(expected) > 16
    assert glcm_score(grey) == pytest.approx(expected[:, 0].mean(), rel=1e-12)
    assert glcm_entropy(grey) == pytest.approx(expected[:, 1].mean(), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 256), st.floats(0.0, 1.0))
def test_equal_to_scikit_image_on_any_patch(seed, levels, share):
    generator = np.random.default_rng(seed)
    patch = (generator.integers(0, levels, size=(64, 64)) * (generator.random((64, 64)) < share)).astype(np.uint8)
    score, joint = published(patch)
    assert glcm_score(patch) == pytest.approx(score, rel=1e-12)
    assert glcm_entropy(patch) == pytest.approx(joint, rel=1e-9, abs=1e-12)


def test_the_grey_values_are_those_of_opencv():
    # 15-bit weights of OpenCV; Pillow's 16-bit weights differ on 0.13 % of all colours, for example on the second one
    colours = np.array([[[255, 255, 255], [0, 4, 6], [200, 10, 90]]], dtype=np.uint8)
    expected = [(r * 9798 + g * 19235 + b * 3735 + 16384) >> 15 for r, g, b in colours[0].astype(int)]
    assert opencv_grey(colours)[0].tolist() == expected == [255, 3, 76]


def test_size_takes_the_top_left_square_as_the_published_script_does():
    generator = np.random.default_rng(1)
    picture = generator.integers(0, 256, size=(150, 200, 3)).astype(np.uint8)
    cropped = GlcmScore()([picture[:128, :128]], [""])
    assert GlcmScore(size=128)([picture], [""]) == pytest.approx(cropped)
    whole = GlcmScore()([picture], [""])
    assert whole == pytest.approx(GlcmScore()([picture[:128, :192]], [""]))
    assert whole != pytest.approx(cropped, rel=1e-6)


def test_errors_name_picture_and_limit(tmp_path):
    path = tmp_path / "small.png"
    Image.new("RGB", (63, 200)).save(path)
    with pytest.raises(DataError, match=r"small\.png: 63x200 pixels.*64 x 64"):
        GlcmScore()([path], [""])
    with pytest.raises(DataError, match="at least 256 x 256"):
        GlcmEntropy(size=256)([np.zeros((100, 300, 3), dtype=np.uint8)], [""])
    with pytest.raises(ConfigError, match="GLCM size 32"):
        GlcmScore(size=32)
    with pytest.raises(DataError, match="64 a side"):
        glcm_score(np.zeros((63, 64), dtype=np.uint8))


def test_scores_enter_the_table_with_paired_differences():
    generator = np.random.default_rng(2)
    plain = [generator.integers(100, 130, size=(64, 64, 3)).astype(np.uint8) for _ in range(12)]
    rich = [np.clip(p + generator.normal(scale=30, size=p.shape), 0, 255).astype(np.uint8) for p in plain]
    prompts = [f"thing {i}" for i in range(12)]
    sets = [PictureSet("plain", plain, prompts), PictureSet("rich", rich, prompts)]
    table = score_metrics(
        sets, [GlcmScore(), GlcmEntropy()], pairs=[("plain", "rich")], bootstrap=Bootstrap(resamples=100)
    )
    assert [difference.low > 0 for difference in table.differences] == [True, True]
    assert {difference.ahead for difference in table.differences} == {None}  # neither more nor less detail is better
    assert "Diffusion-4K" in table.results[0].encoder
