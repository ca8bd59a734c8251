"""Pictures decoded ahead by threads, batch by batch: however many there are, few are in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import open_rgb

AHEAD = 2
"""Batches that are decoded while the network works on one."""
MAX_WORKERS = 8


def decoded_batches(
    images: Sequence[ImageLike], prepare: Callable[[Image.Image], np.ndarray], batch_size: int
) -> Iterator[list[np.ndarray]]:
    """``prepare`` of every picture (RGB), in order, in lists of ``batch_size`` (the last may be shorter).

    At most ``(AHEAD + 1) * batch_size`` prepared pictures exist at a time. Raises :class:`DataError` for a picture that
    cannot be read, when its batch is asked for.
    """
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    starts = range(0, len(images), batch_size)
    waiting: deque[list[Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for start in starts:
            chunk = images[start : start + batch_size]
            waiting.append([pool.submit(_prepared, image, prepare) for image in chunk])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(image: ImageLike, prepare: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    return prepare(open_rgb(image))
