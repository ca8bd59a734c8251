"""A page: sections of blocks, rendered to one HTML file that needs nothing else.

Pictures and figures are embedded as data URIs, styles are inline, there is no script. Every text is escaped: captions
and prompts come from data sets and are not trusted. A new kind of block is one frozen dataclass and one template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flowgrain.errors import ConfigError
from flowgrain.files import atomic_write_text
from flowgrain.report.pictures import Drawing, Tile

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Paragraph:
    """Running text; ``note`` is small print, ``warning`` stands out."""

    template: ClassVar[str] = "blocks/paragraph.html"
    text: str
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True)
class Bullets:
    """A short list."""

    template: ClassVar[str] = "blocks/bullets.html"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under column names; the first column names the row. ``reading`` says how to read it, in one sentence."""

    template: ClassVar[str] = "blocks/table.html"
    title: str
    reading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    """Columns that are aligned right."""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(f"table '{self.title}': a row has {len(row)} cells, {len(self.columns)} columns")


@dataclass(frozen=True)
class Figure:
    """A drawing with its text for those who cannot see it."""

    drawing: Drawing
    alt: str


@dataclass(frozen=True)
class FigureRow:
    """Drawings side by side, below each other on narrow screens."""

    template: ClassVar[str] = "blocks/figures.html"
    title: str
    reading: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class GridRow:
    """One row of a picture grid; None leaves a cell empty."""

    label: str
    tiles: tuple[Tile | None, ...]


@dataclass(frozen=True)
class PictureGrid:
    """Pictures in columns that mean the same in every row."""

    template: ClassVar[str] = "blocks/grid.html"
    title: str
    reading: str
    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]

    def __post_init__(self):
        for row in self.rows:
            if len(row.tiles) != len(self.columns):
                raise ConfigError(f"grid '{self.title}': row '{row.label}' does not fill {len(self.columns)} columns")


@dataclass(frozen=True)
class PictureStrips:
    """Rows of pictures of any number, each picture with its own caption."""

    template: ClassVar[str] = "blocks/strips.html"
    title: str
    reading: str
    rows: tuple[GridRow, ...]


Block = Paragraph | Bullets | Table | FigureRow | PictureGrid | PictureStrips


@dataclass(frozen=True)
class Section:
    """A titled part of a page with one sentence that says what it shows."""

    anchor: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A title, a subtitle in one sentence, and sections."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def __post_init__(self):
        anchors = [section.anchor for section in self.sections]
        if len(set(anchors)) != len(anchors):
            raise ConfigError(f"page '{self.title}': section anchors must differ, got {', '.join(anchors)}")

    def render(self) -> str:
        """The whole page as HTML."""
        return _environment().get_template("page.html").render(page=self)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        atomic_write_text(path, self.render())


def without_empty(sections: Sequence[Section | None]) -> tuple[Section, ...]:
    """The sections that have something to show."""
    return tuple(section for section in sections if section is not None)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
