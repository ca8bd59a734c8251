"""Buckets: kohya's list (spec e.4), the logarithmic choice, the cover crop."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.data.buckets import best_aspect_match, bucket_list, cover_crop, fitted_margins, shrink_crop
from flowgrain.errors import ConfigError, DataError
from flowgrain.slices.config import BucketRule, DecomposeConfig

SDXL = bucket_list(1024, 64, 256, 2048)


def half(resolution, step, smallest, largest) -> list[tuple[int, int]]:
    return [(w, h) for w, h in bucket_list(resolution, step, smallest, largest) if w <= h]


def test_list_512():
    expected = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    assert half(512, 64, 256, 1024) == [*expected, (512, 512)]


def test_list_512x768():
    expected = "256x1024 320x1024 384x896 384x960 384x1024 448x832 512x704 512x768 576x576 576x640"
    assert [f"{w}x{h}" for w, h in half((512, 768), 64, 256, 1024)] == expected.split()


def test_list_768():
    expected = (
        "256x1536 320x1536 384x1344 384x1408 384x1472 384x1536 448x1216 448x1280 512x1088 512x1152 576x960 576x1024 "
        "640x896 704x832 768x768"
    )
    assert [f"{w}x{h}" for w, h in half(768, 64, 256, 1536)] == expected.split()


def test_list_1280():
    expected = (
        "640x2368 640x2432 640x2496 640x2560 704x2176 704x2240 704x2304 768x1984 768x2048 768x2112 832x1856 832x1920 "
        "896x1728 896x1792 960x1664 1024x1536 1024x1600 1088x1472 1152x1408 1216x1344 1280x1280"
    )
    assert [f"{w}x{h}" for w, h in half(1280, 64, 640, 2560)] == expected.split()
    assert bucket_list(1280) == bucket_list(1280, 64, 640, 2560)


def test_list_1024():
    expected = (
        "256x2048 320x2048 384x2048 448x2048 512x1856 512x1920 512x1984 512x2048 576x1664 576x1728 576x1792 640x1536 "
        "640x1600 704x1408 704x1472 768x1280 768x1344 832x1216 896x1152 960x1088 1024x1024"
    )
    assert [f"{w}x{h}" for w, h in half(1024, 64, 256, 2048)] == expected.split()
    assert set(SDXL) - set(bucket_list(1024, 64, 512, 2048)) == {
        shape for w in (256, 320, 384, 448) for shape in ((w, 2048), (2048, w))
    }


def test_list_1280_with_a_limit():
    """Width 640 to 768 is capped at 2048 (spec e.4)."""
    assert {h for w, h in bucket_list(1280, 64, 256, 2048) if w in (640, 704, 768)} == {1984, 2048}
    assert max(max(shape) for shape in bucket_list(1280, 64, 256, 2048)) == 2048


def test_list_of_novelai():
    """768x512 with the base 512: kohya's list with 512x512 in place of the area's 576x576; the same at 1024."""
    shapes = bucket_list((768, 512), 64, 256, 1024, square=512)
    expected = "256x1024 320x1024 384x896 384x960 384x1024 448x832 512x512 512x704 512x768 576x640"
    assert [f"{w}x{h}" for w, h in shapes if w <= h] == expected.split()
    assert len(shapes) == 19
    assert set(bucket_list((512, 768), 64, 256, 1024)) ^ set(shapes) == {(512, 512), (576, 576)}
    assert bucket_list(1024, 64, 256, 2048, square=1024) == SDXL


@pytest.mark.parametrize(
    ("resolution", "step", "smallest", "largest", "count"),
    [
        (512, 64, 256, 1024, 17),
        ((512, 768), 64, 256, 1024, 19),
        (768, 64, 256, 1536, 29),
        (1024, 64, 256, 1024, 25),
        (1024, 64, 256, 2048, 41),
        (1024, 64, 512, 2048, 33),
        (1280, 64, 640, 2560, 41),
        (1280, 64, 320, 2560, 51),
        (1280, 64, 256, 2048, 41),
        (1280, 16, 640, 2560, 161),
    ],
)
def test_counts(resolution, step, smallest, largest, count):
    assert len(bucket_list(resolution, step, smallest, largest)) == count


def test_low_max_side_shrinks_the_area():
    """kohya's default maximum of 1024 forces one side to 1024 everywhere."""
    assert all(1024 in shape for shape in bucket_list(1024, 64, 256, 1024))


@pytest.mark.parametrize(
    ("size", "bucket", "resize", "offset"),
    [
        ((1920, 1080), (1344, 768), (1365, 768), (10, 0)),
        ((1080, 1920), (768, 1344), (768, 1365), (0, 10)),
        ((3000, 2000), (1216, 832), (1248, 832), (16, 0)),
        ((2000, 3000), (832, 1216), (832, 1248), (0, 16)),
        ((640, 480), (1152, 896), (1195, 896), (21, 0)),
        ((4000, 1000), (2048, 512), (2048, 512), (0, 0)),
        ((1234, 777), (1280, 768), (1280, 806), (0, 19)),
    ],
)
def test_choice_and_crop_at_1024(size, bucket, resize, offset):
    assert best_aspect_match(*size, SDXL) == bucket
    crop = cover_crop(*size, bucket)
    assert (crop.resize, (crop.left, crop.top)) == (resize, offset)


@pytest.mark.parametrize(
    ("size", "bucket", "resize"),
    [
        ((1920, 1080), (1664, 960), (1707, 960)),
        ((640, 480), (1472, 1088), (1472, 1104)),
        ((1234, 777), (1600, 1024), (1626, 1024)),
    ],
)
def test_choice_and_crop_at_1280(size, bucket, resize):
    assert best_aspect_match(*size, bucket_list(1280)) == bucket
    assert cover_crop(*size, bucket).resize == resize


@pytest.mark.parametrize(
    ("size", "bucket", "resize", "trim"),
    [
        ((1000, 1000), (960, 960), (1000, 1000), (40, 40)),
        ((640, 480), (640, 448), (640, 480), (0, 32)),
        ((1234, 777), (1216, 768), (1234, 777), (18, 9)),
        ((1920, 1080), (1344, 768), (1365, 768), (21, 0)),
    ],
)
def test_without_enlarging_at_1024(size, bucket, resize, trim):
    chosen, crop = shrink_crop(*size, 1024)
    assert (chosen, crop.resize) == (bucket, resize)
    assert (crop.left, crop.top) == (trim[0] // 2, trim[1] // 2)
    turned, turned_crop = shrink_crop(*size[::-1], (1024, 1024))
    assert (turned, turned_crop.resize) == (bucket[::-1], resize[::-1])


@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([512, 768, 1024]), st.sampled_from([8, 32, 64]))
def test_without_enlarging_laws(width, height, resolution, step):
    try:
        bucket, crop = shrink_crop(width, height, resolution, step)
    except DataError as error:
        assert f"{width}x{height}" in str(error)
        assert min(width, height) < step or max(width, height) / min(width, height) > (resolution / step) ** 2 / 4
        return
    assert bucket[0] % step == bucket[1] % step == 0
    assert all(0 <= crop.resize[axis] - bucket[axis] < step for axis in (0, 1))
    assert crop.resize[0] <= width and crop.resize[1] <= height
    # above the area by rounding to whole pixels alone
    assert bucket[0] * bucket[1] <= resolution**2 * (1 + 1 / min(bucket)) ** 2
    if width * height <= resolution**2:
        assert crop.resize == (width, height)
    else:
        assert abs(crop.resize[0] * height - crop.resize[1] * width) <= max(width, height) / 2 + 1


def test_several_resolutions_per_level():
    """A level's list may hold several resolutions: the aspect decides, then the area nearest to the box's."""
    config = DecomposeConfig.model_validate(
        {
            "targets": BucketRule(resolution=1024),
            "levels": {
                "macro": {"granularity": "macro"},
                "micro": {
                    "granularity": "micro",
                    "detector": "saliency",
                    "targets": [[512, 512], [1024, 1024], [768, 1024], [384, 512]],
                },
            },
        }
    )
    micro = config.levels["micro"].targets
    assert isinstance(micro, tuple)
    assert best_aspect_match(600, 590, micro) == (512, 512)
    assert best_aspect_match(900, 910, micro) == (1024, 1024)
    assert best_aspect_match(400, 530, micro) == (384, 512)
    assert best_aspect_match(700, 930, micro) == (768, 1024)
    assert config.levels["macro"].targets is None


def test_logarithmic_where_kohya_is_linear():
    assert best_aspect_match(200, 241, SDXL) == (960, 1088)
    # kohya's linear comparison takes 1088x1472 here (resized to 1145x1472)
    assert best_aspect_match(896, 1152, bucket_list(1280)) == (1152, 1408)
    assert cover_crop(896, 1152, (1088, 1472)).resize == (1145, 1472)


def test_ties():
    assert best_aspect_match(100, 100, [(64, 64), (128, 128), (256, 256)]) == (128, 128)
    assert best_aspect_match(200, 200, [(200, 100), (100, 200)]) == (100, 200)
    assert best_aspect_match(128, 128, [(64, 64), (256, 256)]) == (64, 64)


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_cover_crop_covers_centres_and_keeps_the_aspect(width, height):
    bucket = best_aspect_match(width, height, SDXL)
    crop = cover_crop(width, height, bucket)
    spare = (crop.resize[0] - bucket[0], crop.resize[1] - bucket[1])
    assert min(spare) == 0
    assert (crop.left, crop.top) == (spare[0] // 2, spare[1] // 2)
    scale = max(bucket[0] / width, bucket[1] / height)
    assert abs(crop.resize[0] - width * scale) <= 0.5 + 1e-6
    assert abs(crop.resize[1] - height * scale) <= 0.5 + 1e-6


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_choice_is_nearest_and_symmetric(width, height):
    chosen = best_aspect_match(width, height, SDXL)
    error = {b: abs(math.log(width / height) - math.log(b[0] / b[1])) for b in SDXL}
    assert error[chosen] <= min(error.values()) + 1e-9
    if width != height:
        assert best_aspect_match(height, width, SDXL) == chosen[::-1]


@given(st.integers(2, 20), st.sampled_from([16, 32, 64]))
def test_list_laws(units, step):
    resolution = units * 2 * step
    shapes = bucket_list(resolution, step)
    assert list(shapes) == sorted(set(shapes))
    assert set(shapes) == {(h, w) for w, h in shapes}
    assert all(w % step == h % step == 0 and w * h <= resolution**2 for w, h in shapes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((32, 64), "at least the bucket step"),
        ((512, 64, 250, 1024), "min_side 250"),
        (((768, 512), 64, 256, 1024, 500), "square 500"),
        ((1280, 64, 256, 1024), "raise max_side"),
    ],
)
def test_errors(arguments, words):
    with pytest.raises(ConfigError, match=words):
        bucket_list(*arguments)


def test_no_bucket():
    with pytest.raises(ConfigError, match="at least one"):
        best_aspect_match(10, 10, [])


@pytest.mark.parametrize(
    ("size", "bucket", "margins"),
    [
        ((1024, 1024), (1024, 1024), (0, 0, 0)),
        ((2048, 1024), (1024, 512), (0, 0, 0)),  # the bucket's aspect, whatever the size
        ((1920, 1080), (1344, 768), (0, 6, 0)),  # fitted 1344 x 756
        ((1080, 1920), (768, 1344), (6, 0, 6)),
        ((3000, 2000), (1216, 832), (0, 10, 0)),  # 1216 x 810.67
        ((640, 480), (1152, 896), (0, 16, 0)),
        ((1234, 777), (1280, 768), (30, 0, 30)),  # 1219.71 x 768: 60.29 to share
    ],
)
def test_margins_of_a_fitted_picture_are_kohyas(size, bucket, margins):
    assert fitted_margins(*size, bucket) == margins


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 32).map(lambda n: 64 * n),
    st.integers(1, 32).map(lambda n: 64 * n),
)  # fmt: skip
def test_margins_are_never_negative_and_leave_the_picture_its_aspect(width, height, across, down):
    left, top, right = fitted_margins(width, height, (across, down))
    assert min(left, top, right) >= 0 and 0 <= right - left <= 2  # left is rounded down, as kohya does
    scale = min(across / width, down / height)
    assert left + right == pytest.approx(across - scale * width, abs=0.5 + 1e-6)
    assert top == pytest.approx((down - scale * height) / 2, abs=1 + 1e-6)
