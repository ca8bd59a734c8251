"""SVG files as trees of elements: parsed without entities and within limits, with the styles that apply to each.

Style comes from attributes, ``style=""`` and style sheets; of these, selectors of one part (``path``, ``.eye``,
``#head``) are followed, others are not.
"""

import re
import zlib
from dataclasses import dataclass, field
from xml.parsers import expat

from flowgrain.errors import DataError

MAX_BYTES = 16_000_000
MAX_ELEMENTS = 100_000
MAX_DEPTH = 128
INHERITED = frozenset(
    (
        *("fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "stroke-miterlimit"),
        *("visibility", "font-size", "color"),
    )
)
_SVG = "http://www.w3.org/2000/svg"
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_SELECTOR = re.compile(r"(\*|[\w-]+|[.#][^\s.#:>\[+~*]+)$")


@dataclass(eq=False)
class Element:
    """One element; ``name`` and the names of attributes are without their namespaces."""

    name: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    text: str = ""

    @property
    def id(self) -> str:
        """Its id, '' without one."""
        return self.attributes.get("id", "")

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes."""
        return tuple(self.attributes.get("class", "").split())


class Document:
    """The root element, elements by id, and the rules of style sheets."""

    def __init__(self, root: Element):
        self.root = root
        self.by_id: dict[str, Element] = {}
        rules: list[tuple[str, dict[str, str]]] = []
        for element in _all_of(root):
            if element.id:
                self.by_id.setdefault(element.id, element)
            if element.name == "style":
                rules += _rules(element.text)
        self._rules: dict[str, dict[str, str]] = {}
        for selector, values in rules:
            self._rules.setdefault(selector, {}).update(values)

    def style_of(self, element: Element, inherited: dict[str, str]) -> dict[str, str]:
        """Properties of an element below one whose properties are ``inherited``."""
        own = {key: value.strip() for key, value in element.attributes.items()}
        selectors = ["*", element.name, *(f".{name}" for name in element.classes), f"#{element.id}"]
        for selector in selectors:
            own.update(self._rules.get(selector, {}))
        own.update(_declarations(element.attributes.get("style", "")))
        passed_on = {key: value for key, value in inherited.items() if key in INHERITED}
        given = {key: value for key, value in own.items() if value != "inherit"}
        return passed_on | given


def parse(data: bytes, place: str) -> Document:
    """The document in ``data``; gzip is read too. ``place`` is named in errors.

    Raises :class:`DataError` for what is no SVG, declares entities, or goes beyond the limits.
    """
    if data[:2] == b"\x1f\x8b":
        data = _inflated(data, place)
    if len(data) > MAX_BYTES:
        raise DataError(f"{place}: {len(data)} bytes of SVG, the limit is {MAX_BYTES}")
    root = _Builder(place).build(data)
    if root.name != "svg":
        raise DataError(f"{place}: not an SVG file (its root is <{root.name}>)")
    return Document(root)


class _Builder:
    """Makes the tree while expat reads. Entities cannot be declared, so nothing expands and nothing is fetched."""

    def __init__(self, place: str):
        self._place = place
        self._open: list[Element] = []
        self._root: Element | None = None
        self._count = 0

    def build(self, data: bytes) -> Element:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.EntityDeclHandler = self._entity
        try:
            parser.Parse(data, True)
        except expat.ExpatError as error:
            problem = expat.ErrorString(error.code)
            raise DataError(f"{self._place}:{error.lineno}: not well-formed SVG ({problem})") from None
        except (ValueError, LookupError):
            raise DataError(f"{self._place}: not well-formed SVG (unknown encoding)") from None
        if self._root is None:
            raise DataError(f"{self._place}: not well-formed SVG (no element)")
        return self._root

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            limits = f"{MAX_ELEMENTS} elements, {MAX_DEPTH} deep"
            raise DataError(f"{self._place}: more than is read of an SVG file; the limits are {limits}")
        namespace, _, local = name.rpartition(" ")
        plain = {key.rpartition(" ")[2]: value for key, value in attributes.items() if " " in key}
        plain |= {key: value for key, value in attributes.items() if " " not in key}
        element = Element(local if namespace in ("", _SVG) else name, plain)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        self._open.pop()

    def _characters(self, text: str) -> None:
        if self._open:
            self._open[-1].text += text

    def _entity(self, name: str, *_: object) -> None:
        raise DataError(
            f"{self._place}: declares the entity '{name}'; entities are refused for safety; "
            "save the file without them (as plain SVG)"
        )


def _inflated(data: bytes, place: str) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data, MAX_BYTES + 1)
    except zlib.error:
        raise DataError(f"{place}: damaged gzip data") from None


def _all_of(root: Element) -> list[Element]:
    found, waiting = [], [root]
    while waiting:
        element = waiting.pop()
        found.append(element)
        waiting += reversed(element.children)
    return found


def _rules(sheet: str) -> list[tuple[str, dict[str, str]]]:
    found = []
    for selectors, body in _RULE.findall(_COMMENT.sub(" ", sheet)):
        for selector in selectors.split(","):
            if _SELECTOR.fullmatch(selector.strip()):
                found.append((selector.strip(), _declarations(body)))
    return found


def _declarations(text: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in text.split(";"))
    return {key.strip(): value.replace("!important", "").strip() for key, colon, value in pairs if colon}
