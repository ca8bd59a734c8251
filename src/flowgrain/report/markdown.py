"""A page as Markdown: the same words and tables, figures as files beside it.

Every text is escaped, as captions, prompts and names are not trusted: they cannot become markup, links or HTML.
"""

import re
from collections.abc import Iterator, Mapping

from flowgrain.report.page import (
    Block,
    Bullets,
    Code,
    Details,
    Figure,
    FigureRow,
    Numbers,
    Page,
    Paragraph,
    PictureGrid,
    PictureStrips,
    PromptGrid,
    Table,
    Trees,
    Warned,
)

_MARKUP = re.compile(r"([\\`*_\[\]<>|~&$#@])")
_LIST = re.compile(r"^(\d*)([-+.)])(?=\s|$)")
_LINK = re.compile(r"(?i)(https?|ftp|www|mailto)([:.])")


def to_markdown(page: Page, files: Mapping[Figure, str]) -> str:
    """The page as CommonMark with tables; ``files`` holds the file of each figure, relative to the Markdown's."""
    lines = [f"# {escape(page.title)}", "", escape(page.subtitle), ""]
    for section in page.sections:
        lines += [f"## {escape(section.title)}", "", escape(section.lead), ""]
        for block in section.blocks:
            lines += [*_block(block, files), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def escape(text: str) -> str:
    """One line of plain text that Markdown shows as it is."""
    text = _MARKUP.sub(r"\\\1", " ".join(text.split()))
    return _LINK.sub(r"\1\\\2", _LIST.sub(r"\1\\\2", text))


def _block(block: Block, files: Mapping[Figure, str]) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield f"**{escape(block.text)}**" if block.tone == "warning" else escape(block.text)
    elif isinstance(block, Bullets):
        yield from (f"- {escape(item)}" for item in block.items)
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, FigureRow):
        yield f"**{escape(block.title)}** {escape(block.reading)}"
        yield ""
        yield from (f"![{escape(figure.alt)}]({files[figure]})" for figure in block.figures)
    elif isinstance(block, Details):
        yield f"### {escape(block.summary)}"
        for inner in block.blocks:
            yield ""
            yield from _block(inner, files)
    elif isinstance(block, PromptGrid):
        yield f"**{escape(block.title)}** Pictures of these prompts are on the page:"
        yield ""
        yield from (f"- {escape(prompt.prompt)}" for prompt in block.prompts)
    elif isinstance(block, PictureGrid | PictureStrips):
        yield f"**{escape(block.title)}** Pictures are on the page:"
        yield ""
        yield from (f"- {escape(row.label)}" for row in block.rows)
    elif isinstance(block, Numbers):
        yield from (f"- {escape(name)}: {escape(number)}" for number, name in block.items)
    elif isinstance(block, Warned):
        yield f"**{escape(block.title)}** {escape(block.text)} {escape(block.remedy)}"
    elif isinstance(block, Trees):
        yield f"**{escape(block.title)}** Pictures are on the page:"
        yield ""
        yield from (f"- {escape(tree.title)}" for tree in block.trees)
    elif isinstance(block, Code):
        yield f"**{escape(block.title)}** {escape(block.reading)}"
        yield ""
        yield from (f"    {line}" for line in block.text.split("\n"))
    # a Slider is a control: it has nothing to write down


def _table(table: Table) -> Iterator[str]:
    yield f"**{escape(table.title)}** {escape(table.reading)}"
    yield ""
    yield _row(table.columns)
    yield _row(tuple("---:" if index in table.numeric else "---" for index in range(len(table.columns))), raw=True)
    yield from (_row(row) for row in table.rows)


def _row(cells: tuple[str, ...], raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else _cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))
