"""A page: sections of blocks, rendered to one HTML file that needs nothing else.

Pictures and figures are embedded as data URIs, styles are inline. Every text is escaped: captions and prompts come
from data sets and are not trusted. The only script is that of the picture slider, on pages that have one; a content
security policy names it and the styles by their hashes, and forbids everything else. A new kind of block is one
frozen dataclass and one template.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

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


@dataclass(frozen=True)
class SeedRow:
    """The pictures of one noise seed; ``number`` is this row's own on the whole page, None leaves a cell empty."""

    number: int
    label: str
    tiles: tuple[Tile | None, ...]


@dataclass(frozen=True)
class PromptRows:
    """A prompt, the real picture of what it names (if there is one) and a row for each seed."""

    prompt: str
    reference: Tile | None
    rows: tuple[SeedRow, ...]


@dataclass(frozen=True)
class PromptGrid:
    """Pictures of the same prompts and seeds in columns, the reference first. A :class:`Slider` finds them here."""

    template: ClassVar[str] = "blocks/prompts.html"
    title: str
    reading: str
    columns: tuple[str, ...]
    prompts: tuple[PromptRows, ...]

    def __post_init__(self):
        for prompt in self.prompts:
            for row in prompt.rows:
                if len(row.tiles) != len(self.columns):
                    raise ConfigError(
                        f"grid '{self.title}': a row of '{prompt.prompt}' does not fill {len(self.columns)} columns"
                    )

    @property
    def has_references(self) -> bool:
        """Whether any prompt has a picture of its own."""
        return any(prompt.reference is not None for prompt in self.prompts)


@dataclass(frozen=True)
class Slider:
    """Two pictures of one row on top of each other with a movable divider. Shows what the page's grids hold."""

    template: ClassVar[str] = "blocks/slider.html"
    title: str
    reading: str
    rows: tuple[tuple[str, tuple[tuple[int, str], ...]], ...]
    """Groups of (number of a :class:`SeedRow`, what to call it)."""
    columns: tuple[tuple[int, str], ...]
    """(column, what to call it); 0 is the reference."""
    first: int
    """Column on the left at the start."""
    second: int


@dataclass(frozen=True)
class Details:
    """Blocks that open on a click."""

    template: ClassVar[str] = "blocks/details.html"
    summary: str
    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Numbers:
    """A few counts that say most, each with what it counts."""

    template: ClassVar[str] = "blocks/numbers.html"
    items: tuple[tuple[str, str], ...]
    """(number, what it counts)"""


@dataclass(frozen=True)
class Warned:
    """A warning with its numbers, what to do, and pictures of what it is about."""

    template: ClassVar[str] = "blocks/warned.html"
    title: str
    text: str
    remedy: str
    tiles: tuple[Tile, ...] = ()


@dataclass(frozen=True)
class TreeNode:
    """A picture with what is known about it, and what it contains."""

    name: str
    mark: str
    """Style of the name: macro, meso or micro."""
    tile: Tile | None
    lines: tuple[str, ...]
    caption: str
    children: tuple["TreeNode", ...]


@dataclass(frozen=True)
class Tree:
    """What came of one thing."""

    title: str
    note: str
    nodes: tuple[TreeNode, ...]


@dataclass(frozen=True)
class Trees:
    """Trees of pictures, side by side where there is room."""

    template: ClassVar[str] = "blocks/trees.html"
    title: str
    reading: str
    trees: tuple[Tree, ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    template: ClassVar[str] = "blocks/code.html"
    title: str
    reading: str
    text: str


Block = (
    Paragraph
    | Bullets
    | Table
    | FigureRow
    | PictureGrid
    | PictureStrips
    | PromptGrid
    | Slider
    | Details
    | Numbers
    | Warned
    | Trees
    | Code
)


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks with those inside :class:`Details` in their place."""
    for block in blocks:
        if isinstance(block, Details):
            yield from flat(block.blocks)
        else:
            yield block


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
        style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
        script = (TEMPLATES / "slider.js").read_text(encoding="utf-8") if self._has_slider() else ""
        policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"
        if script:
            policy += f"; script-src {_digest(script)}"
        return (
            _environment()
            .get_template("page.html")
            .render(page=self, style=Markup(style), script=Markup(script), policy=Markup(policy))
        )

    def _has_slider(self) -> bool:
        return any(isinstance(block, Slider) for section in self.sections for block in flat(section.blocks))

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        atomic_write_text(path, self.render())


def without_empty(sections: Sequence[Section | None]) -> tuple[Section, ...]:
    """The sections that have something to show."""
    return tuple(section for section in sections if section is not None)


def _digest(text: str) -> str:
    """The source expression of an inline style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
