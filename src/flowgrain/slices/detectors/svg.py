"""Exact parts of vector art: ``fox.png`` has ``fox.svg`` beside it, and its groups and shapes are the parts."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from flowgrain.data.collections import Item
from flowgrain.data.records import Box
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.svg_document import Element, parse
from flowgrain.slices.detectors.svg_geometry import CONTAINERS, SHAPES, Layout, Place, union
from flowgrain.slices.framing import area, clip_box, intersection

SUFFIX = ".svg"
_SELECTOR = re.compile(r"\*|[A-Za-z]+|[#.][^\s#.\[\]]+|\[[\w-]+=(?:\"[^\"]*\"|'[^']*'|[^\"'\]]*)\]")
_GENERATED = re.compile(r"(?:[A-Za-z]{1,8}|layer|polyline|use)?[-_ ]*\d[\d-]*(?:_\d*)?")
"""Names that drawing programs make up: path123, g12-3, Layer_1."""


def _listed(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class SvgConfig(DetectorConfig):
    """Which elements are parts, and how small and how large a part may be."""

    short_key: ClassVar[str | None] = "parts"
    kind: Literal["svg"] = "svg"
    parts: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(),
        description="selectors: '#id', '.class', a tag as 'path' or 'g', '[label=Head]' for any attribute, '*' for "
        "every shape; empty: the groups and shapes of the outermost group that has several",
    )
    strokes: bool = Field(default=True, description="count the width of outlines")
    min_fraction: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="share of the picture; a smaller part joins its nearest neighbour",
    )
    max_fraction: float = Field(
        default=0.95, gt=0, le=1, description="share of the picture; a larger part is left out (a background)"
    )

    @field_validator("parts")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = next((part for part in value if not _SELECTOR.fullmatch(part)), None)
        if wrong is not None:
            raise ValueError(f"'{wrong}' is no selector; give '#id', '.class', a tag, '[attribute=value]' or '*'")
        return value

    def build(self, context: DetectorContext) -> "SvgDetector":
        """See :class:`DetectorConfig`."""
        return SvgDetector(self)


class SvgDetector(Detector):
    """The score of a part is the share of the region that its box covers, so that the largest come first."""

    kind = "svg"

    def __init__(self, config: SvgConfig):
        self._config = config

    def inputs(self, item: Item) -> bytes:
        """The SVG file's bytes."""
        return item.beside(SUFFIX) or b""

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; a picture without an SVG file has no parts. The picture shows the whole canvas."""
        data, place = view.item.beside(SUFFIX), view.item.place(SUFFIX)
        if data is None:
            return []
        document = parse(data, place)
        layout = Layout(document, view.image.width, view.image.height, self._config.strokes, place)
        if self._config.parts:
            chosen = selected(layout, document.root, layout.root, self._config.parts)
        else:
            chosen = outermost(layout, document.root)
        whole = area(layout.canvas)
        parts = [(box, label_of(element)) for element, at in chosen if (box := layout.box(element, at)) is not None]
        parts = [(box, label) for box, label in parts if area(box) <= self._config.max_fraction * whole]
        parts = joined(parts, self._config.min_fraction * whole)
        region = view.region
        return [
            Detection(box, label, area(clip_box(box, region)) / area(region))
            for box, label in parts
            if intersection(box, region) > 0
        ]


def outermost(layout: Layout, root: Element) -> list[tuple[Element, Place]]:
    """Children of the root, or of the only group in it, and so on down to where there are several."""
    chosen = [(root, layout.root)]
    while len(chosen) == 1 and chosen[0][0].name in CONTAINERS:
        below = [(child, at) for child, at in layout.children(*chosen[0]) if layout.box(child, at) is not None]
        if not below:
            break
        chosen = below
    return [] if chosen[0][0] is root else chosen


def selected(layout: Layout, element: Element, place: Place, selectors: tuple[str, ...]) -> list[tuple[Element, Place]]:
    """Drawn elements below ``element`` that a selector names, in the order of drawing; also within one another."""
    found = []
    for child, at in layout.children(element, place):
        if layout.box(child, at) is None:
            continue
        if any(matches(child, selector) for selector in selectors):
            found.append((child, at))
        if child.name in CONTAINERS:
            found += selected(layout, child, at, selectors)
    return found


def matches(element: Element, selector: str) -> bool:
    """Whether a selector names an element."""
    match selector[0]:
        case "*":
            return element.name in SHAPES
        case "#":
            return element.id == selector[1:]
        case ".":
            return selector[1:] in element.classes
        case "[":
            name, _, value = selector[1:-1].partition("=")
            return element.attributes.get(name) == value.strip("\"'")
        case _:
            return element.name == selector


def label_of(element: Element) -> str:
    """Its title, its label (Inkscape), its id or class unless a program made it up, else ``part``."""
    titles = [child.text.strip() for child in element.children if child.name == "title"]
    names = [*titles, element.attributes.get("label", ""), element.id, *element.classes[:1]]
    known = (name for name in names if name and not _GENERATED.fullmatch(name))
    return " ".join(re.sub(r"[-_]+", " ", next(known, "part")).split()) or "part"


def joined(parts: list[tuple[Box, str]], least: float) -> list[tuple[Box, str]]:
    """Parts with an area of ``least`` or more. A smaller one, the smallest first, is united with its nearest part.

    The larger gives the label. A part whose neighbours are all farther than the side of a square of ``least`` is left
    out: what lies alone and is tiny is no part worth a slice.
    """
    parts = list(parts)
    while parts:
        index = min(range(len(parts)), key=lambda k: (area(parts[k][0]), parts[k][0]))
        if area(parts[index][0]) >= least:
            break
        box, _ = parts.pop(index)
        others = [k for k in range(len(parts)) if _gap(box, parts[k][0]) <= least**0.5]
        if others:
            nearest = min(others, key=lambda k: (_gap(box, parts[k][0]), area(parts[k][0]), k))
            both = union([box, parts[nearest][0]])
            parts[nearest] = (both or box, parts[nearest][1])
    return parts


def _gap(a: Box, b: Box) -> float:
    """Distance of two boxes, 0 where they meet."""
    across, down = max(a[0] - b[2], b[0] - a[2], 0.0), max(a[1] - b[3], b[1] - a[3], 0.0)
    return (across * across + down * down) ** 0.5
