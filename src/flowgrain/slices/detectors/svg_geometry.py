"""Where the elements of an SVG document lie on its canvas, in pixels of a picture of it.

Followed: nested groups and ``svg``, ``use`` and ``symbol``, transforms, view boxes with ``preserveAspectRatio``, all
shapes, images by their frame, and clipping by the box of ``clip-path``. Not followed: text (its size depends on
fonts), markers, masks, filters, patterns, scripts and animation.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from flowgrain.data.records import Box
from flowgrain.errors import DataError
from flowgrain.slices.detectors import svg_path
from flowgrain.slices.detectors.svg_document import Document, Element
from flowgrain.slices.detectors.svg_path import Matrix, Outline, Stroke, times, translation
from flowgrain.slices.framing import area, clip_box

SHAPES = ("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "image")
CONTAINERS = ("g", "svg", "a", "switch", "use", "symbol")
MAX_COPIES = 50_000
"""Elements that ``use`` may show, again and again; a bound for files that multiply themselves."""
_UNITS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0, "q": 96 / 101.6}
_LENGTH = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|[a-zA-Z]*)\s*$")
_NUMBERS = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CALL = re.compile(r"\s*,?\s*(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Place:
    """What holds where an element stands."""

    matrix: Matrix
    """From the element's user units to pixels of the picture."""
    style: dict[str, str]
    clip: Box
    """Pixels outside are not seen."""
    viewport: tuple[float, float]
    """Width and height that percentages are of."""
    depth: int = 0
    """Of ``use`` within ``use``."""


class Layout:
    """Boxes of elements of a document drawn on ``width`` x ``height`` pixels; ``strokes``: with the lines' widths."""

    def __init__(self, document: Document, width: int, height: int, strokes: bool, place: str):
        self._document = document
        self._strokes = strokes
        self._place = place
        self._copies = 0
        root = document.root
        self.canvas: Box = (0.0, 0.0, float(width), float(height))
        view = _view_box(root)
        if view is None:
            sides = tuple(_length(root.attributes.get(key, ""), 0.0) for key in ("width", "height"))
            if min(sides) <= 0:
                raise DataError(f"{place}: neither a viewBox nor a size in absolute units; it cannot be laid on pixels")
            view = (0.0, 0.0, sides[0], sides[1])
        matrix = _fitted(view, self.canvas, root.attributes.get("preserveAspectRatio", ""))
        self.root = Place(matrix, document.style_of(root, {}), self.canvas, (view[2], view[3]))

    def children(self, element: Element, place: Place) -> list[tuple[Element, Place]]:
        """The children of a container with their places; what ``use`` shows is its child."""
        if element.name != "use":
            return [(child, self.inside(child, place)) for child in element.children]
        link = element.attributes.get("href", "")
        target = self._document.by_id.get(link[1:]) if link.startswith("#") else None
        if target is None or place.depth > 16:
            return []
        shown = self.inside(target, place, element)
        return [(target, shown)]

    def inside(self, element: Element, parent: Place, user: Element | None = None) -> Place:
        """The place of a child of what stands at ``parent``; ``user``: the ``use`` that shows it."""
        self._copies += parent.depth + (user is not None) > 0
        if self._copies > MAX_COPIES:
            raise DataError(f"{self._place}: 'use' multiplies its elements beyond {MAX_COPIES}")
        style = self._document.style_of(element, parent.style)
        matrix = times(parent.matrix, _transform(style.get("transform", "")))
        place = Place(matrix, style, parent.clip, parent.viewport, parent.depth + (user is not None))
        if element.name == "use":
            x, y = self._number(element, "x", place, 0), self._number(element, "y", place, 1)
            place = Place(times(matrix, translation(x, y)), style, place.clip, place.viewport, place.depth)
        place = self._clipped(style, place, element)
        if element.name == "svg" or (element.name == "symbol" and user is not None):
            return self._framed(element, user, place)
        return place

    def box(self, element: Element, place: Place) -> Box | None:
        """The visible box of an element and all in it; None for what is not painted."""
        if not _painted(element, place):
            return None
        if element.name in SHAPES:
            found = self._shape_box(element, place, self._strokes)
            return None if found is None else _visible(found, place.clip)
        if element.name not in CONTAINERS:
            return None
        inner = (self.box(child, at) for child, at in self.children(element, place) if _drawn(child, element))
        return union(box for box in inner if box is not None)

    def _shape_box(self, element: Element, place: Place, strokes: bool) -> Box | None:
        style = place.style
        outlines = self._outlines(element, place)
        boxes = []
        if element.name == "image" or style.get("fill", "black") != "none":
            boxes.append(svg_path.fill_box(outlines, place.matrix))
        if element.name != "image" and style.get("stroke", "none") != "none":
            width = self._size(style.get("stroke-width", "1"), math.hypot(*place.viewport) / math.sqrt(2))
            if width > 0 and strokes:
                limit = _length(style.get("stroke-miterlimit", ""), 4.0)
                cap, join = style.get("stroke-linecap", "butt"), style.get("stroke-linejoin", "miter")
                boxes.append(svg_path.stroke_box(outlines, place.matrix, Stroke(width, cap, join, limit)))
            elif width > 0:
                boxes.append(svg_path.fill_box(outlines, place.matrix))
        return union(box for box in boxes if box is not None)

    def _outlines(self, element: Element, place: Place) -> list[Outline]:
        def number(key: str, axis: int) -> float:
            return self._number(element, key, place, axis)

        match element.name:
            case "path":
                return svg_path.parse_path(place.style.get("d", ""))
            case "circle" | "ellipse":
                rx, ry = (number("r", 2),) * 2 if element.name == "circle" else (number("rx", 0), number("ry", 1))
                return [svg_path.ellipse(number("cx", 0), number("cy", 1), rx, ry)] if min(rx, ry) > 0 else []
            case "rect" | "image":
                width, height = number("width", 0), number("height", 1)
                rx, ry = number("rx", 0), number("ry", 1)
                rx, ry = rx if "rx" in place.style else ry, ry if "ry" in place.style else rx
                rectangle = svg_path.rounded_rectangle(number("x", 0), number("y", 1), width, height, rx, ry)
                return [rectangle] if min(width, height) > 0 else []
            case "line":
                ends = complex(number("x1", 0), number("y1", 1)), complex(number("x2", 0), number("y2", 1))
                return svg_path.polyline(ends, False)
            case _:
                values = [float(value) for value in _NUMBERS.findall(place.style.get("points", ""))]
                points = [complex(x, y) for x, y in zip(values[::2], values[1::2], strict=False)]
                return svg_path.polyline(points, element.name == "polygon")

    def _clipped(self, style: dict[str, str], place: Place, element: Element) -> Place:
        """The place, seen through the box of its ``clip-path``."""
        link = re.fullmatch(r"url\(\s*[\"']?#([^\"')]+)[\"']?\s*\)", style.get("clip-path", ""))
        target = self._document.by_id.get(link.group(1)) if link else None
        if target is None or target.name != "clipPath" or place.depth > 16:
            return place
        if target.attributes.get("clipPathUnits") == "objectBoundingBox":
            return place
        matrix = times(place.matrix, _transform(target.attributes.get("transform", "")))
        holder = Place(matrix, {}, place.clip, place.viewport, place.depth + 1)
        found = [self._clip_box(child, self.inside(child, holder)) for child in target.children]
        box = union(one for one in found if one is not None)
        clip = (0.0, 0.0, 0.0, 0.0) if box is None else clip_box(box, place.clip)
        return Place(place.matrix, place.style, clip, place.viewport, place.depth)

    def _clip_box(self, element: Element, place: Place) -> Box | None:
        if element.name == "use":
            return union(
                box for child, at in self.children(element, place) if (box := self._clip_box(child, at)) is not None
            )
        return svg_path.fill_box(self._outlines(element, place), place.matrix) if element.name in SHAPES else None

    def _framed(self, element: Element, user: Element | None, place: Place) -> Place:
        """The place inside a nested ``svg`` or a ``symbol``: its frame, its view box, and what its frame cuts off."""
        sizes = []
        for axis, key in enumerate(("width", "height")):
            given = None if user is None else user.attributes.get(key)
            sizes.append(self._size(given or element.attributes.get(key, "100%"), place.viewport[axis]))
        x, y = (self._number(element, key, place, axis) if user is None else 0.0 for axis, key in enumerate("xy"))
        frame = (x, y, x + sizes[0], y + sizes[1])
        view = _view_box(element)
        inner = translation(x, y)
        if view is not None:
            inner = _fitted(view, frame, element.attributes.get("preserveAspectRatio", ""))
        clip = place.clip
        if place.style.get("overflow", "hidden") not in ("visible", "auto"):
            corners = svg_path.rounded_rectangle(x, y, sizes[0], sizes[1], 0.0, 0.0)
            edge = svg_path.fill_box([corners], place.matrix)
            clip = clip if edge is None else clip_box(edge, clip)
        viewport = (view[2], view[3]) if view is not None else (sizes[0], sizes[1])
        return Place(times(place.matrix, inner), place.style, clip, viewport, place.depth)

    def _number(self, element: Element, key: str, place: Place, axis: int) -> float:
        """A length; percentages are of the viewport's width (axis 0), height (1) or diagonal (2)."""
        whole = (*place.viewport, math.hypot(*place.viewport) / math.sqrt(2))[axis]
        return self._size(place.style.get(key, element.attributes.get(key, "0")), whole)

    def _size(self, text: str, whole: float) -> float:
        match = _LENGTH.match(text)
        if match is not None and match.group(2) == "%":
            return float(match.group(1)) * whole / 100
        return _length(text, 0.0)


def union(boxes: Iterable[Box]) -> Box | None:
    """The smallest box that holds all; None for none."""
    found = list(boxes)
    if not found:
        return None
    x0, y0, x1, y1 = zip(*found, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))


def _painted(element: Element, place: Place) -> bool:
    """Whether anything of an element can be seen, by its own properties."""
    style = place.style
    if style.get("display") == "none" or _length(style.get("opacity", ""), 1.0) == 0:
        return False
    return element.name in CONTAINERS or style.get("visibility", "visible") not in ("hidden", "collapse")


def _drawn(child: Element, parent: Element) -> bool:
    """A symbol is drawn only where ``use`` shows it."""
    return child.name != "symbol" or parent.name == "use"


def _visible(box: Box, clip: Box) -> Box | None:
    seen = clip_box(box, clip)
    return seen if area(seen) > 0 else None


def _length(text: str, otherwise: float) -> float:
    """A length in user units (96 to the inch)."""
    match = _LENGTH.match(text)
    unit = _UNITS.get(match.group(2).lower()) if match is not None else None
    return otherwise if match is None or unit is None else float(match.group(1)) * unit


def _view_box(element: Element) -> tuple[float, float, float, float] | None:
    values = [float(value) for value in _NUMBERS.findall(element.attributes.get("viewBox", ""))]
    if len(values) != 4 or values[2] <= 0 or values[3] <= 0:
        return None
    return (values[0], values[1], values[2], values[3])


def _fitted(view: tuple[float, float, float, float], frame: Box, rule: str) -> Matrix:
    """The matrix that lays a view box into a frame by ``preserveAspectRatio`` (SVG 2, section 8.2)."""
    x, y, width, height = view
    across, down = (frame[2] - frame[0]) / width, (frame[3] - frame[1]) / height
    words = rule.replace("defer", "").split()
    align = words[0] if words else "xMidYMid"
    if align != "none":
        across = down = max(across, down) if "slice" in words else min(across, down)
    share = {"Min": 0.0, "Mid": 0.5, "Max": 1.0}
    left = share.get(align[1:4], 0.5) * (frame[2] - frame[0] - width * across)
    top = share.get(align[5:8], 0.5) * (frame[3] - frame[1] - height * down)
    return (across, 0.0, 0.0, down, frame[0] + left - x * across, frame[1] + top - y * down)


def _transform(text: str) -> Matrix:
    """The matrix of a ``transform``; IDENTITY where it has an error, as for no transform at all."""
    matrix, end = svg_path.IDENTITY, 0
    for call in _CALL.finditer(text):
        values = [float(value) for value in _NUMBERS.findall(call.group(2))]
        one = _one_transform(call.group(1), values)
        if one is None or call.start() != end:
            return svg_path.IDENTITY
        matrix, end = times(matrix, one), call.end()
    return svg_path.IDENTITY if text[end:].strip() else matrix


def _one_transform(name: str, values: list[float]) -> Matrix | None:
    match name, values:
        case "matrix", [a, b, c, d, e, f]:
            return (a, b, c, d, e, f)
        case "translate", [x, *rest] if len(rest) < 2:
            return translation(x, rest[0] if rest else 0.0)
        case "scale", [x, *rest] if len(rest) < 2:
            return (x, 0.0, 0.0, rest[0] if rest else x, 0.0, 0.0)
        case "rotate", [angle, *rest] if len(rest) in (0, 2):
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = rest or (0.0, 0.0)
            return (cos, sin, -sin, cos, x - cos * x + sin * y, y - sin * x - cos * y)
        case "skewX", [angle]:
            return (1.0, 0.0, math.tan(math.radians(angle)), 1.0, 0.0, 0.0)
        case "skewY", [angle]:
            return (1.0, math.tan(math.radians(angle)), 0.0, 1.0, 0.0, 0.0)
    return None
