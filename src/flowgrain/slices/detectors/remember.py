"""What was computed from a picture, while the picture is in memory: levels that ask the same share one answer."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from PIL import Image

T = TypeVar("T")

_known: dict[int, dict[Hashable, Any]] = {}
"""Values by the id of their picture and by their key."""


def remembered(image: Image.Image, key: Hashable, compute: Callable[[], T]) -> T:
    """What ``compute`` gives, called once for this very picture and ``key``: what is computed and all that decides it.

    Pictures are told apart as objects: their pixels must not change. Everyone is given the same value, so nobody may
    change that either; it must not refer to the picture, which would then stay in memory.
    """
    if id(image) not in _known:
        # first of all, so that values never outlive their picture, whose id the next one may get
        weakref.finalize(image, _known.pop, id(image), None)
        _known[id(image)] = {}
    values = _known[id(image)]
    if key not in values:
        values[key] = compute()
    return values[key]
