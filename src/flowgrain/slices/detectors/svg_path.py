"""Outlines of vector graphics: curves, the path data of SVG, and exact boxes of fills and strokes.

Points are complex numbers (x + iy, y down). A matrix is (a, b, c, d, e, f) as SVG writes it: x' = a x + c y + e,
y' = b x + d y + f.
"""

import cmath
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flowgrain.data.records import Box

Points = NDArray[np.complex128]
Reals = NDArray[np.float64]
Matrix = tuple[float, float, float, float, float, float]
IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
_SAMPLES = 48
"""Places along a curve at which the edge of its stroke is measured, besides those where the curve turns back."""
_NUMBER = re.compile(r"[\s,]*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_FLAG = re.compile(r"[\s,]*([01])")
_COMMAND = re.compile(r"[\s,]*([MmLlHhVvCcSsQqTtAaZz])")
_ARGUMENTS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}


def translation(x: float, y: float) -> Matrix:
    """The matrix that moves by (x, y)."""
    return (1.0, 0.0, 0.0, 1.0, x, y)


def times(first: Matrix, second: Matrix) -> Matrix:
    """The matrix that applies ``second`` and then ``first``."""
    a, b, c, d, e, f = first
    g, h, i, j, k, m = second
    return (a * g + c * h, b * g + d * h, a * i + c * j, b * i + d * j, a * k + c * m + e, b * k + d * m + f)


def moved(matrix: Matrix, z: Points) -> Points:
    """Points after the matrix."""
    a, b, c, d, e, f = matrix
    return (a * z.real + c * z.imag + e) + 1j * (b * z.real + d * z.imag + f)


class Curve(ABC):
    """One piece of an outline, over t in [0, 1]."""

    @abstractmethod
    def at(self, t: Reals) -> Points:
        """Points at ``t``."""

    @abstractmethod
    def slope(self, t: Reals) -> Points:
        """Derivatives at ``t``."""

    @abstractmethod
    def turns(self, matrix: Matrix) -> Reals:
        """All t where the curve, after the matrix, has a horizontal or vertical tangent."""


@dataclass(frozen=True)
class Bezier(Curve):
    """A line, a quadratic or a cubic curve by its 2, 3 or 4 control points."""

    points: tuple[complex, ...]

    def at(self, t: Reals) -> Points:
        """See :class:`Curve`."""
        return _bernstein(np.array(self.points), t)

    def slope(self, t: Reals) -> Points:
        """See :class:`Curve`."""
        return _bernstein(np.diff(np.array(self.points)) * (len(self.points) - 1), t)

    def turns(self, matrix: Matrix) -> Reals:
        """See :class:`Curve`."""
        if len(self.points) == 2:
            return np.zeros(0)
        steps: Points = np.diff(moved(matrix, np.array(self.points)))
        roots = [root for axis in (steps.real, steps.imag) for root in _roots(axis)]
        return np.array([root for root in roots if 0 < root < 1])


@dataclass(frozen=True)
class Arc(Curve):
    """centre + u cos(angle) + v sin(angle), the angle going from ``start`` to ``end``."""

    centre: complex
    u: complex
    v: complex
    start: float
    end: float

    def at(self, t: Reals) -> Points:
        """See :class:`Curve`."""
        angle = self.start + (self.end - self.start) * t
        return self.centre + self.u * np.cos(angle) + self.v * np.sin(angle)

    def slope(self, t: Reals) -> Points:
        """See :class:`Curve`."""
        sweep = self.end - self.start
        angle = self.start + sweep * t
        return sweep * (self.v * np.cos(angle) - self.u * np.sin(angle))

    def turns(self, matrix: Matrix) -> Reals:
        """See :class:`Curve`."""
        u, v = moved((*matrix[:4], 0.0, 0.0), np.array([self.u, self.v]))
        found = []
        for first in (math.atan2(v.real, u.real), math.atan2(v.imag, u.imag)):
            low, high = sorted((self.start, self.end))
            for k in range(math.ceil((low - first) / math.pi), math.floor((high - first) / math.pi) + 1):
                found.append((first + k * math.pi - self.start) / (self.end - self.start))
        return np.array(found)


@dataclass(frozen=True)
class Outline:
    """Connected curves."""

    curves: tuple[Curve, ...]
    closed: bool


@dataclass(frozen=True)
class Stroke:
    """How a line is drawn, in user units."""

    width: float
    cap: str = "butt"
    join: str = "miter"
    miter_limit: float = 4.0


def ellipse(cx: float, cy: float, rx: float, ry: float) -> Outline:
    """A whole ellipse."""
    return Outline((Arc(complex(cx, cy), complex(rx), complex(0, ry), 0.0, 2 * math.pi),), True)


def polyline(points: Sequence[complex], closed: bool) -> list[Outline]:
    """Straight lines between points; nothing for fewer than two."""
    if len(points) < 2:
        return []
    ends = [*points[1:], points[0]] if closed else points[1:]
    return [Outline(tuple(Bezier((a, b)) for a, b in zip(points, ends, strict=False)), closed)]


def rounded_rectangle(x: float, y: float, width: float, height: float, rx: float, ry: float) -> Outline:
    """A rectangle whose corners are quarters of an ellipse; square corners with radii of 0."""
    rx, ry = min(rx, width / 2), min(ry, height / 2)
    if rx <= 0 or ry <= 0:
        corners = [complex(x, y), complex(x + width, y), complex(x + width, y + height), complex(x, y + height)]
        return polyline(corners, True)[0]
    curves: list[Curve] = []
    centres = ((x + width - rx, y + ry), (x + width - rx, y + height - ry), (x + rx, y + height - ry), (x + rx, y + ry))
    for quarter, (cx, cy) in enumerate(centres):
        start = (quarter - 1) * math.pi / 2
        arc = Arc(complex(cx, cy), complex(rx), complex(0, ry), start, start + math.pi / 2)
        if curves:
            curves.append(Bezier((_end(curves[-1], 1.0), _end(arc, 0.0))))
        curves.append(arc)
    curves.append(Bezier((_end(curves[-1], 1.0), _end(curves[0], 0.0))))
    return Outline(tuple(curves), True)


def fill_box(outlines: Iterable[Outline], matrix: Matrix) -> Box | None:
    """Smallest box of the outlines after the matrix; None for nothing."""
    return _box([_bounds(curve, matrix) for outline in outlines for curve in outline.curves])


def stroke_box(outlines: Iterable[Outline], matrix: Matrix, stroke: Stroke) -> Box | None:
    """Smallest box of what a stroke of the outlines covers after the matrix."""
    half = stroke.width / 2
    parts: list[Points] = []
    for outline in outlines:
        pieces = [piece for curve in outline.curves if (piece := _edge(curve, matrix)) is not None]
        if not pieces:
            if outline.curves and stroke.cap != "butt":  # a dot
                centre = outline.curves[0].at(np.array([0.0]))
                corners = moved(matrix, centre + half * np.array([1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j]))
                parts.append(corners if stroke.cap == "square" else _bounds(_disc(complex(centre[0]), half), matrix))
            continue
        for places, tangents in pieces:
            parts += [moved(matrix, places + side * half * 1j * tangents) for side in (1, -1)]
            back = np.flatnonzero((tangents[:-1].conj() * tangents[1:]).real < 0)
            parts += [_bounds(_disc(complex(places[k]), half), matrix) for k in back]  # a cusp is drawn round
        joints = list(pairwise(pieces))
        if outline.closed:
            joints.append((pieces[-1], pieces[0]))
        for before, after in joints:
            parts.append(_join(before[0][-1], before[1][-1], after[1][0], matrix, stroke))
        if not outline.closed:
            parts.append(_cap(pieces[0][0][0], -pieces[0][1][0], matrix, stroke))
            parts.append(_cap(pieces[-1][0][-1], pieces[-1][1][-1], matrix, stroke))
    return _box(parts)


def _end(curve: Curve, t: float) -> complex:
    return complex(curve.at(np.array([t]))[0])


def _edge(curve: Curve, matrix: Matrix) -> tuple[Points, Points] | None:
    """Points along a curve and its unit tangents there; None for one without length."""
    straight = isinstance(curve, Bezier) and len(curve.points) == 2
    t = np.array([0.0, 1.0]) if straight else np.sort(np.append(np.linspace(0, 1, _SAMPLES), curve.turns(matrix)))
    slopes = curve.slope(t)
    still = np.abs(slopes) < 1e-12
    if still.any():  # control points that coincide: the tangent is that of a place close by
        slopes[still] = curve.slope(np.clip(t[still], 1e-4, 1 - 1e-4))
    usable = np.abs(slopes) > 1e-12
    if not usable.any():
        return None
    return curve.at(t[usable]), slopes[usable] / np.abs(slopes[usable])


def _disc(centre: complex, radius: float) -> Arc:
    return Arc(centre, complex(radius), 1j * radius, 0.0, 2 * math.pi)


def _bounds(curve: Curve, matrix: Matrix) -> Points:
    """Points of a curve between which it stays: its ends and where it turns back."""
    return moved(matrix, curve.at(np.concatenate([[0.0, 1.0], curve.turns(matrix)])))


def _join(place: complex, before: complex, after: complex, matrix: Matrix, stroke: Stroke) -> Points:
    """What a corner adds to the edges of its two sides: an arc, or the tip of a miter within its limit."""
    turn = cmath.phase(before.conjugate() * after)
    side = math.copysign(1.0, turn)
    if stroke.join == "round" and turn != 0:
        start = -side * 1j * before * stroke.width / 2
        return _bounds(Arc(place, start, side * 1j * start, 0.0, abs(turn)), matrix)
    cosine = math.cos(turn / 2)
    if stroke.join != "miter" or cosine * stroke.miter_limit < 1 or cosine < 1e-9:
        return moved(matrix, np.array([place]))
    tip = place - side * 1j * (before + after) / (2 * cosine * cosine) * stroke.width / 2
    return moved(matrix, np.array([tip]))


def _cap(place: complex, outward: complex, matrix: Matrix, stroke: Stroke) -> Points:
    """What the end of a line adds."""
    if stroke.cap == "round":
        side = outward * stroke.width / 2
        return _bounds(Arc(place, side, 1j * side, -math.pi / 2, math.pi / 2), matrix)
    if stroke.cap == "square":
        corners = np.array([outward * (1 + 1j), outward * (1 - 1j)]) * stroke.width / 2
        return moved(matrix, place + corners.astype(np.complex128))
    return moved(matrix, np.array([place]))


def _box(parts: list[Points]) -> Box | None:
    if not parts:
        return None
    z = np.concatenate(parts)
    if not np.isfinite(z).all():
        return None
    return (float(z.real.min()), float(z.imag.min()), float(z.real.max()), float(z.imag.max()))


def _bernstein(points: Points, t: Reals) -> Points:
    n = len(points) - 1
    weights = [math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(n + 1)]
    return np.tensordot(points, np.array(weights), 1).astype(np.complex128)


def _roots(steps: Reals) -> list[float]:
    """Real roots of the derivative whose Bernstein coefficients are the steps of the control points."""
    if len(steps) == 2:
        return [] if steps[0] == steps[1] else [steps[0] / (steps[0] - steps[1])]
    a, b, c = steps[0] - 2 * steps[1] + steps[2], 2 * (steps[1] - steps[0]), steps[0]
    if abs(a) < 1e-12 * max(np.abs(steps).max(), 1e-300):
        return [] if b == 0 else [-c / b]
    root = b * b - 4 * a * c
    if root < 0:
        return []
    q = -0.5 * (b + math.copysign(math.sqrt(root), b))
    return [q / a] + ([c / q] if q != 0 else [])


def parse_path(data: str) -> list[Outline]:
    """Outlines of the ``d`` of a path. What follows the first error is left out, as SVG 2 (section 9.5.4) asks."""
    reader = _PathReader(data)
    reader.read()
    return reader.outlines


class _PathReader:
    """Follows the commands with the pen's place."""

    def __init__(self, data: str):
        self.outlines: list[Outline] = []
        self._data = data
        self._cursor = 0
        self._pen = self._start = 0j
        self._control = 0j
        """Last control point, for the smooth curves."""
        self._previous = ""
        self._curves: list[Curve] = []

    def read(self) -> None:
        command = None
        while (match := _COMMAND.match(self._data, self._cursor)) is not None or command not in (None, "Z", "z"):
            if match is not None:
                command, self._cursor = match.group(1), match.end()
            elif command in ("M", "m"):
                command = "L" if command == "M" else "l"
            values = self._arguments(command.upper()) if command is not None else None
            if values is None or command is None or (not self._previous and command not in ("M", "m")):
                break
            self._obey(command, values)
            self._previous = command.upper()
        self._finish(False)

    def _arguments(self, command: str) -> list[float] | None:
        """The command's numbers; None where they are not all there."""
        values = []
        for index in range(_ARGUMENTS[command]):
            pattern = _FLAG if command == "A" and index in (3, 4) else _NUMBER
            match = pattern.match(self._data, self._cursor)
            if match is None:
                return None
            values.append(float(match.group(1)))
            self._cursor = match.end()
        return values

    def _obey(self, command: str, values: list[float]) -> None:
        origin = self._pen if command.islower() else 0j
        upper = command.upper()
        if upper == "Z":
            if self._pen != self._start:
                self._curves.append(Bezier((self._pen, self._start)))
            self._finish(True)
            self._pen = self._start
        elif upper == "A":
            self._draw(_arc(self._pen, values, origin + complex(*values[5:])), origin + complex(*values[5:]))
        elif upper in "HV":
            x = values[0] + origin.real if upper == "H" else self._pen.real
            y = values[0] + origin.imag if upper == "V" else self._pen.imag
            self._draw(Bezier((self._pen, complex(x, y))), complex(x, y))
        else:
            self._points(upper, [origin + complex(x, y) for x, y in zip(values[::2], values[1::2], strict=True)])

    def _points(self, command: str, points: list[complex]) -> None:
        if command == "M":
            self._finish(False)
            self._pen = self._start = points[0]
            return
        if command in "ST":
            smooth = self._previous in ("CS" if command == "S" else "QT")
            points.insert(0, 2 * self._pen - self._control if smooth else self._pen)
        self._control = points[-2] if len(points) > 1 else points[-1]
        self._draw(Bezier((self._pen, *points)), points[-1])

    def _draw(self, curve: Curve, end: complex) -> None:
        self._curves.append(curve)
        self._pen = end

    def _finish(self, closed: bool) -> None:
        if not self._curves and closed:
            self._curves.append(Bezier((self._pen, self._pen)))
        if self._curves:
            self.outlines.append(Outline(tuple(self._curves), closed))
        self._curves = []


def _arc(start: complex, values: list[float], end: complex) -> Curve:
    """SVG's arc by its end points (SVG 2, appendix B.2.4); a line where a radius is 0."""
    rx, ry, tilt = abs(values[0]), abs(values[1]), cmath.exp(1j * math.radians(values[2]))
    if rx == 0 or ry == 0 or start == end:
        return Bezier((start, end))
    half = (start - end) / 2 / tilt
    p = complex(half.real / rx, half.imag / ry)
    grow = max(abs(p), 1.0)
    rx, ry, p = rx * grow, ry * grow, p / grow
    side = -1.0 if bool(values[3]) == bool(values[4]) else 1.0
    centre = side * math.sqrt(max(1 / abs(p) ** 2 - 1, 0.0)) * complex(p.imag, -p.real)
    first, last = cmath.phase(p - centre), cmath.phase(-p - centre)
    if values[4] and last < first:
        last += 2 * math.pi
    elif not values[4] and last > first:
        last -= 2 * math.pi
    middle = complex(centre.real * rx, centre.imag * ry) * tilt + (start + end) / 2
    return Arc(middle, rx * tilt, 1j * ry * tilt, first, last)
