"""Write a report: the page, the same as Markdown with its figures as SVG files, and every table as CSV."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowgrain.errors import ConfigError
from flowgrain.files import atomic_write_bytes
from flowgrain.report.markdown import to_markdown
from flowgrain.report.page import Figure, FigureRow, Page, flat
from flowgrain.report.sheets import NAMES, Sheet

LARGE_PAGE_MB = 30.0
"""From this size on a page is slow to open on a phone and refused by many mail servers."""


@dataclass(frozen=True)
class Written:
    """What was written where."""

    page: Path
    page_bytes: int
    markdown: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]

    @property
    def megabytes(self) -> float:
        """Size of the page in 10^6 bytes."""
        return self.page_bytes / 1e6


def check_target(path: Path) -> None:
    """Raise ConfigError unless ``path`` names an HTML file."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"--out {path}: expected a file that ends in .html; report.md and tables are written beside it"
        )
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder; give the file, for example {path / 'report.html'}")


def write_report(page: Page, sheets: Sequence[Sheet], path: Path) -> Written:
    """Write ``NAME.html``, ``NAME.md``, ``NAME-figures/*.svg`` and ``NAME-tables/*.csv``, each whole.

    Tables of an earlier report that this one does not have are removed. Raises ConfigError for a path that
    is no HTML file.
    """
    check_target(path)
    figure_folder, table_folder = (path.with_name(f"{path.stem}-{kind}") for kind in ("figures", "tables"))
    files = {figure: f"{figure_folder.name}/{name}" for name, figure in named_figures(page)}
    html = _encoded(page.render())
    figures = []
    for name, figure in named_figures(page):
        atomic_write_bytes(figure_folder / name, base64.b64decode(figure.drawing.light.partition(",")[2]))
        figures.append(figure_folder / name)
    tables = []
    for sheet in sheets:
        target = table_folder / f"{sheet.name}.csv"
        atomic_write_bytes(target, _encoded(sheet.csv()))
        tables.append(target)
    for stale in {table_folder / f"{name}.csv" for name in NAMES} - set(tables):
        stale.unlink(missing_ok=True)
    markdown = path.with_suffix(".md")
    atomic_write_bytes(markdown, _encoded(to_markdown(page, {figure: _quoted(name) for figure, name in files.items()})))
    atomic_write_bytes(path, html)
    return Written(path, len(html), markdown, tuple(figures), tuple(tables))


def named_figures(page: Page) -> Iterator[tuple[str, Figure]]:
    """File name and figure, in the order of the page: section and running number."""
    for section in page.sections:
        figures = [figure for block in flat(section.blocks) if isinstance(block, FigureRow) for figure in block.figures]
        for number, figure in enumerate(figures, start=1):
            yield f"{section.anchor}-{number}.svg", figure


def _encoded(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which a prompt from JSON may hold, becomes a question mark."""
    return text.encode("utf-8", "replace")


def _quoted(name: str) -> str:
    """A relative path as a Markdown link target."""
    return f"<{name}>"
