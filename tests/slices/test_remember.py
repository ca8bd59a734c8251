"""What was computed from a picture is kept with the picture: once a key, for no other picture, and no longer."""

import gc

import pytest
from PIL import Image

from flowgrain.slices.detectors import remember
from flowgrain.slices.detectors.remember import remembered


def blank():
    return Image.new("RGB", (4, 4))


@pytest.mark.parametrize("value", [None, 0, [], [1]])
def test_a_value_is_computed_once_per_picture_and_key(value):
    image, calls = blank(), []
    for key in (("faces", (0.0, 1.0)), ("faces", (0.0, 2.0)), ("bodies", (0.0, 1.0))):
        first, again = (remembered(image, key, lambda: calls.append(1) or value) for _ in range(2))
        assert first is again is value
    assert len(calls) == 3


def test_pictures_of_equal_pixels_are_two():
    one, other = blank(), blank()
    assert one == other
    assert [remembered(one, "key", lambda: 1), remembered(other, "key", lambda: 2)] == [1, 2]
    assert [remembered(one, "key", lambda: 3), remembered(other, "key", lambda: 4)] == [1, 2]


def test_values_go_with_their_picture():
    image, other = blank(), blank()
    before = len(remember._known)
    for picture in (image, other):
        remembered(picture, "one", lambda: 1)
        remembered(picture, "two", lambda: 2)
    assert len(remember._known) == before + 2
    key = id(image)
    del image, picture
    gc.collect()
    assert len(remember._known) == before + 1 and key not in remember._known
    assert remembered(other, "one", lambda: 3) == 1


def test_a_picture_with_the_id_of_an_earlier_one_starts_anew():
    ids = set()
    for number in range(200):
        image = blank()
        ids.add(id(image))
        assert remembered(image, "key", lambda number=number: number) == number
        image = None
    assert len(ids) < 200, "no id came twice: nothing was tested"


def test_a_failure_is_not_remembered():
    image = blank()
    with pytest.raises(ZeroDivisionError):
        remembered(image, "key", lambda: 1 // 0)
    assert remembered(image, "key", lambda: 1) == 1
