"""Pictures are sent as bare pixels of bounded size."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from flowgrain.vlm.images import PictureConfig, encode_picture, picture_part, picture_tokens, sent_size, text_tokens

SECRET = b"granularity-1.5x"


def decoded(data):
    return Image.open(io.BytesIO(data))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 2048))
def test_pictures_are_never_enlarged_and_keep_their_shape(width, height, side):
    w, h = sent_size((width, height), side)
    assert 1 <= w <= min(width, max(side, 1)) and 1 <= h <= min(height, max(side, 1))
    assert max(w, h) == min(max(width, height), side)
    scale = min(1.0, side / max(width, height))
    assert abs(w - width * scale) <= 0.5 or w == 1
    assert abs(h - height * scale) <= 0.5 or h == 1


def test_a_png_holds_the_very_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    sent = decoded(encode_picture(Image.fromarray(pixels), PictureConfig()))
    assert sent.format == "PNG" and np.array_equal(np.asarray(sent), pixels)


@pytest.mark.parametrize("format", ["png", "jpeg"])
@pytest.mark.parametrize("source", ["png", "jpeg"])
def test_nothing_of_the_source_but_pixels_goes_along(format, source, tmp_path):
    image = Image.new("RGB", (50, 40), (10, 200, 30))
    path = tmp_path / f"x.{source}"
    if source == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", SECRET.decode())
        image.save(path, pnginfo=info, icc_profile=SECRET, exif=_exif(), dpi=(12, 12))
    else:
        image.save(path, comment=SECRET, icc_profile=SECRET, exif=_exif())
    assert SECRET in path.read_bytes()
    data = encode_picture(Image.open(path), PictureConfig(format=format))
    assert SECRET not in data
    assert not {"icc_profile", "exif", "comment", "parameters", "dpi"} & decoded(data).info.keys()


def _exif():
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    return exif


def test_a_part_is_a_data_uri():
    part = picture_part(b"abc", PictureConfig(format="jpeg", detail="high"))
    assert part["type"] == "image_url" and part["image_url"]["detail"] == "high"
    assert part["image_url"]["url"] == "data:image/jpeg;base64," + base64.b64encode(b"abc").decode()
    assert "detail" not in picture_part(b"abc", PictureConfig())["image_url"]


def test_the_forecast_counts_what_is_sent():
    assert picture_tokens((750, 100), 1024) == 100 + 85
    assert picture_tokens((4000, 4000), 1024) == picture_tokens((1024, 1024), 1024) == 1399 + 85
    assert text_tokens("abcd") == 2 and text_tokens("") == 0
