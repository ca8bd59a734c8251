"""A model that sees: it finds rectangles of one colour in the picture that was sent and answers as it is told to."""

import json
import re

import numpy as np
from fake_endpoint import Say

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 220)}
_NEAR = 60


def rectangles(image):
    """(colour, (x0, y0, x1, y1)) of each colour in a picture, in its pixels, edges on the half-way shade."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    for name, colour in COLOURS.items():
        near = np.abs(pixels - colour).max(-1) < _NEAR
        if near.any():
            rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            yield name, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def told(call):
    """(name of the box key, corners in the order asked for, unit, (width, height) where they are told)."""
    name = re.search(r'"label": "[^"]*", "(\w+)": \[', call.text)[1]
    down_first = f'"{name}" is [y0, x0, y1, x1]' in call.text
    size = re.search(r"(\d+) pixels wide \(x\) and (\d+) pixels high", call.text)
    unit = "thousandths" if "integers from 0 to 1000" in call.text else "pixels" if size else "fractions"
    return name, down_first, unit, size and (int(size[1]), int(size[2]))


def see(call, wanted=None, **extra):
    """The answer of a model that follows its instructions to the letter."""
    (picture,) = call.pictures
    name, down_first, unit, size = told(call)
    assert size in (None, picture.size)
    across, down = picture.size
    entries = []
    for colour, (x0, y0, x1, y1) in rectangles(picture):
        if colour != (wanted or colour):
            continue
        if unit == "pixels":
            box = [x0, y0, x1, y1]
        else:
            box = [x0 / across, y0 / down, x1 / across, y1 / down]
            box = [round(number * 1000) for number in box] if unit == "thousandths" else box
        box = [box[1], box[0], box[3], box[2]] if down_first else box
        entries.append({"label": colour, name: box, "score": 0.75} | extra)
    return Say(json.dumps({"boxes": entries}))
