"""Boxes as vision-language models write them: in which unit, in which order, under which name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowgrain.vlm.answers import AnswerError, read_entries

CoordinateStyle = Literal["thousandths", "pixels", "fractions", "qwen2.5-vl", "qwen3-vl", "gemini"]
Unit = Literal["thousandths", "pixels", "fractions"]
Size = tuple[int, int]

LIST_NAME = "boxes"
_OVERSHOOT = 0.01
"""Share of a side by which a box may reach beyond the picture and is clipped; models round."""
_LONGEST_LABEL = 100
_LONGEST_CAPTION = 2000
_SCORE_STEP = 0.01
"""By which the score falls from one box to the next where an answer gives none: the first is the clearest."""
_LOWEST_SCORE = 0.5


@dataclass(frozen=True)
class Coordinates:
    """A convention for boxes."""

    name: str
    """Of the box in an entry: what the model was trained to write."""
    unit: Unit
    down_first: bool = False
    """[y0, x0, y1, x1] instead of [x0, y0, x1, y1]."""
    multiple: int = 1
    """Sides of pictures are sent as multiples of this: a model that works on such sides resizes all others itself,
    and its pixels would be those of a picture that nobody else has seen."""

    def limits(self, size: Size) -> tuple[float, float]:
        """The coordinates of the lower right corner of a picture of ``size`` (width, height) as sent."""
        if self.unit == "pixels":
            return float(size[0]), float(size[1])
        return (1.0, 1.0) if self.unit == "fractions" else (1000.0, 1000.0)

    def describe(self, size: Size) -> str:
        """The convention in words for the model."""
        across, down = self.limits(size)
        corners = "[y0, x0, y1, x1]" if self.down_first else "[x0, y0, x1, y1]"
        unit = {
            "thousandths": "integers from 0 to 1000, in thousandths of the picture's width (x) and height (y)",
            "pixels": f"integers in pixels: the picture is {across:g} pixels wide (x) and {down:g} pixels high (y)",
            "fractions": "decimal fractions from 0 to 1 of the picture's width (x) and height (y)",
        }[self.unit]
        return (
            f'"{self.name}" is {corners}: (x0, y0) is the upper left corner of the box, (x1, y1) the lower right one, '
            f"measured from the picture's upper left corner. The numbers are {unit}."
        )

    def sent_size(self, size: Size, max_side: int) -> Size:
        """The size to which a picture of ``size`` is brought before it is sent; shrunk only, but for ``multiple``."""
        scale = min(1.0, max_side / max(size))
        most = max(max_side // self.multiple, 1)
        across, down = (min(max(round(side * scale / self.multiple), 1), most) * self.multiple for side in size)
        return across, down


STYLES: dict[CoordinateStyle, Coordinates] = {
    "thousandths": Coordinates("box", "thousandths"),
    "pixels": Coordinates("box", "pixels"),
    "fractions": Coordinates("box", "fractions"),
    "qwen2.5-vl": Coordinates("bbox_2d", "pixels", multiple=28),
    "qwen3-vl": Coordinates("bbox_2d", "thousandths"),
    "gemini": Coordinates("box_2d", "thousandths", down_first=True),
}


def answer_schema(coordinates: Coordinates, captions: bool) -> dict[str, Any]:
    """``name``, ``strict`` and ``schema`` of the answer. Lengths and ranges are checked here: not all endpoints know
    how to ask for them."""
    number = {"type": "number" if coordinates.unit == "fractions" else "integer"}
    entry: dict[str, Any] = {
        "label": {"type": "string"},
        coordinates.name: {"type": "array", "items": number},
        "score": {"type": "number"},
    }
    if captions:
        entry["caption"] = {"type": "string"}
    item = {"type": "object", "properties": entry, "required": list(entry), "additionalProperties": False}
    properties = {LIST_NAME: {"type": "array", "items": item}}
    schema = {"type": "object", "properties": properties, "required": [LIST_NAME], "additionalProperties": False}
    return {"name": LIST_NAME, "strict": True, "schema": schema}


def read_boxes(text: str, coordinates: Coordinates, size: Size, fallback_label: str, captions: bool) -> dict[str, Any]:
    """``{"boxes": [{"box", "label", "score", "caption"}]}`` of an answer, boxes as (x0, y0, x1, y1) in fractions.

    ``size``: of the picture as sent. Raises AnswerError, which tells the model what is wrong with which box.
    """
    boxes = []
    for number, entry in enumerate(read_entries(text, LIST_NAME)):
        where = f"box {number + 1}"
        if coordinates.name not in entry:
            raise AnswerError(f'{where} lacks "{coordinates.name}"')
        boxes.append(
            {
                "box": _fractions(entry[coordinates.name], coordinates, size, where),
                "label": _text(entry, "label", _LONGEST_LABEL, where) or fallback_label,
                "score": _score(entry, number, where),
                "caption": _text(entry, "caption", _LONGEST_CAPTION, where) if captions else None,
            }
        )
    return {LIST_NAME: boxes}


def _fractions(value: Any, coordinates: Coordinates, size: Size, where: str) -> list[float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise AnswerError(f'{where}: "{coordinates.name}" is not a list of four numbers')
    corners = [float(number) for number in value]
    ordered = [corners[1], corners[0], corners[3], corners[2]] if coordinates.down_first else corners
    across, down = coordinates.limits(size)
    tops = (across, down, across, down)
    shown = f"{where} {value}"
    for number, top in zip(ordered, tops, strict=True):
        if not -_OVERSHOOT * top <= number <= (1 + _OVERSHOOT) * top:
            raise AnswerError(f"{shown} reaches outside of the picture: {number:g} is not from 0 to {top:g}")
    if coordinates.unit != "fractions" and max(ordered) <= 1:
        raise AnswerError(f"{shown} looks like fractions; write integers from 0 to {across:g}")
    x0, y0, x1, y1 = (min(max(number / top, 0.0), 1.0) for number, top in zip(ordered, tops, strict=True))
    if x0 >= x1 or y0 >= y1:
        order = "y0 < y1 and x0 < x1" if coordinates.down_first else "x0 < x1 and y0 < y1"
        raise AnswerError(f"{shown} is empty: {order} must hold")
    return [x0, y0, x1, y1]


def _text(entry: Mapping[str, Any], key: str, longest: int, where: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise AnswerError(f'{where}: "{key}" is no text')
    return " ".join(value.split())[:longest].strip() or None


def _score(entry: Mapping[str, Any], number: int, where: str) -> float:
    value = entry.get("score")
    if value is None:
        return max(1.0 - _SCORE_STEP * number, _LOWEST_SCORE)
    if not _is_number(value) or not 0 <= value <= 1:
        raise AnswerError(f'{where}: "score" must be a number from 0 to 1')
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
