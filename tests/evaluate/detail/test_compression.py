import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.detail.compression import CompressionRatio, compression_ratio


def noise(side=256, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(side, side, 3)).astype(np.uint8)


def jpeg_bytes(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return len(buffer.getvalue())


def test_published_constants_at_256():
    flat = np.full((256, 256, 3), 128, dtype=np.uint8)
    values = CompressionRatio()([noise(), flat], ["", ""])
    assert values[0] == pytest.approx(2.54, abs=0.01)
    assert values[1] == pytest.approx(119.2, abs=0.1)


def test_pooled_is_the_ratio_of_totals_of_pictures_of_one_size():
    pictures = [noise(64), np.full((64, 64, 3), 90, dtype=np.uint8), noise(64) // 4]
    score = CompressionRatio()
    values = score(pictures, [""] * 3)
    # the published formula: n size^2 3 / sum of file sizes
    published = 3 * (64 * 64 * 3) / sum(jpeg_bytes(picture) for picture in pictures)
    assert score.pooled(values) == pytest.approx(published, rel=1e-12)
    assert score.pooled(values) < values.mean()


@given(st.lists(st.floats(0.5, 500), min_size=1, max_size=20))
def test_pooled_lies_between_the_extremes_and_below_the_mean(ratios):
    values = np.array(ratios)
    pooled = CompressionRatio().pooled(values)
    assert values.min() * (1 - 1e-12) <= pooled <= values.mean() * (1 + 1e-12)


def test_pictures_need_not_be_square():
    picture = Image.fromarray(np.concatenate([noise(64), noise(64, seed=1)], axis=1))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    assert compression_ratio(picture) == pytest.approx(128 * 64 * 3 / len(buffer.getvalue()), rel=1e-12)


def test_files_are_compressed_anew_unless_stored_ones_are_asked_for(tmp_path):
    jpeg, png = tmp_path / "a.jpg", tmp_path / "a.png"
    Image.fromarray(noise(64)).save(jpeg, quality=30)
    Image.open(jpeg).save(png)
    ours = CompressionRatio()([jpeg, png], ["", ""])
    assert ours[0] == ours[1]
    stored = CompressionRatio(stored=True)
    values = stored([jpeg, png], ["", ""])
    assert values == pytest.approx([64 * 64 * 3 / path.stat().st_size for path in (jpeg, png)])
    assert stored.title != CompressionRatio().title
    with pytest.raises(DataError, match="no file size"):
        stored([noise(64)], [""])


def test_quality_is_checked_and_named():
    with pytest.raises(ConfigError, match=r"quality 100.*1\.\.95"):
        CompressionRatio(quality=100)
    assert "quality 80" in CompressionRatio(quality=80).version and CompressionRatio().higher_is_better is None
