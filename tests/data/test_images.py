"""The door to pixels: every format comes out upright, 8-bit sRGB and opaque, or not at all."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from flowgrain.data import images
from flowgrain.data.images import from_tensor, list_images, open_image, sha1_of, to_tensor
from flowgrain.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def left_red_right_blue():
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (4, 0, 8, 4))
    return image


@pytest.mark.parametrize(("orientation", "size", "first", "last"), [(3, (8, 4), BLUE, RED), (6, (4, 8), RED, BLUE)])
def test_exif_orientation_is_applied(tmp_path, orientation, size, first, last):
    exif = Image.Exif()
    exif[0x0112] = orientation
    left_red_right_blue().save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == size
    assert image.getpixel((0, 0)) == first
    assert image.getpixel((size[0] - 1, size[1] - 1)) == last


def test_alpha_is_flattened_over_the_background(tmp_path):
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((1, 0)) == (255, 255, 255)
    green = open_image(tmp_path / "a.png", (0, 255, 0))
    assert [green.getpixel((x, 0)) for x in (0, 1)] == [RED, (0, 255, 0)]


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert [open_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert [open_image(tmp_path / "a.png").getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_floating_point_is_refused(tmp_path):
    Image.new("F", (2, 2), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*floating-point"):
        open_image(tmp_path / "a.tif")


def test_cmyk_and_animation(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    red, green, _ = open_image(tmp_path / "a.tif").getpixel((0, 0))
    assert red > 200 and green < 60
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(tmp_path / "b.webp").getpixel((0, 0)) == RED


def test_profile_is_converted_and_srgb_left_alone(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (2, 2), (10, 120, 240))
    image.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert open_image(tmp_path / "srgb.png").getpixel((0, 0)) == (10, 120, 240)
    image.save(tmp_path / "broken.png", icc_profile=b"not a profile")
    assert open_image(tmp_path / "broken.png").getpixel((0, 0)) == (10, 120, 240)


def test_broken_files_name_the_file_and_the_reason(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:900])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cut\.jpg: damaged or truncated"):
        open_image(tmp_path / "cut.jpg")
    for name in ("text.png", "empty.png"):
        with pytest.raises(DataError, match=f"{name}: not an image"):
            open_image(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        open_image(tmp_path / "gone.png")


def test_pixel_limit(tmp_path, monkeypatch):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    with pytest.raises(DataError, match="20x10 is more than 199 pixels"):
        open_image(tmp_path / "a.png")


def test_listing_is_sorted_recursive_and_skips_hidden(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b.txt", ".hidden.png", ".cache/c.png", "a-1.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == ["a-1.webp", "a/z.JPG", "b.png"]


def test_listing_errors(tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        list_images(tmp_path / "file")


def test_sha1(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha1_of(tmp_path / "a") == "a9993e364706816aba3e25717850c26c9cd0d89d"


def test_tensor_round_trip_is_exact_for_every_value():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_tensor(Image.fromarray(values))
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert np.array_equal(np.asarray(from_tensor(pixels)), values)
    assert from_tensor(torch.full((3, 1, 1), 7.0)).getpixel((0, 0)) == (255, 255, 255)


def test_no_metadata_leaves_the_door(tmp_path):
    """Pillow would write a profile, which holds the time when it was made, into every copy of the pixels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc in (("other.png", profile), ("srgb.png", srgb)):
        Image.new("RGB", (8, 8), "teal").save(tmp_path / name, icc_profile=icc, dpi=(300, 300))
        assert open_image(tmp_path / name).info == {}
