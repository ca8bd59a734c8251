import threading
import time

import numpy as np
import pytest
from PIL import Image
from tiny_encoders import picture_files, pictures

from flowgrain.errors import DataError
from flowgrain.evaluate.encoders.batches import AHEAD, decoded_batches


class Counted:
    """A preparation that knows how many of its results are alive."""

    def __init__(self):
        self.made, self.alive, self.most = 0, 0, 0
        self._lock = threading.Lock()

    def __call__(self, image):
        with self._lock:
            self.made += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
        return np.array(image.resize((4, 4)))

    def release(self, count):
        with self._lock:
            self.alive -= count


def test_pictures_come_in_order_in_batches(tmp_path):
    paths = picture_files(tmp_path, 7)
    batches = list(decoded_batches(paths, np.array, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    for pixels, picture in zip([p for batch in batches for p in batch], pictures(7), strict=True):
        np.testing.assert_array_equal(pixels, np.array(picture))
    assert list(decoded_batches([], np.array, 3)) == []


def test_few_pictures_are_in_memory_at_a_time():
    counted = Counted()
    for batch in decoded_batches([Image.new("RGB", (8, 8))] * 200, counted, 4):
        time.sleep(0.001)  # time for the threads to run as far ahead as they may
        counted.release(len(batch))
    assert counted.made == 200
    assert counted.most <= (AHEAD + 1) * 4


def test_a_broken_picture_is_named_and_stops_the_rest(tmp_path):
    paths = picture_files(tmp_path, 40)
    paths[5].write_bytes(b"not a picture")
    counted = Counted()
    batches = decoded_batches(paths, counted, 4)
    assert len(next(batches)) == 4
    with pytest.raises(DataError, match=r"005\.png: not an image"):
        next(batches)
    assert counted.made < 40


def test_threads_end_with_the_iterator():
    before = threading.active_count()
    batches = decoded_batches([Image.new("RGB", (8, 8))] * 100, np.array, 2)
    next(batches)
    batches.close()
    assert threading.active_count() == before
