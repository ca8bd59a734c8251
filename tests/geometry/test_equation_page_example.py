"""The example of ``docs/geometry.md`` runs as it stands and prints what the page says it prints."""

import contextlib
import io
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "geometry.md"


def block_after(text, mark):
    """The first indented block after a line."""
    lines = text[text.index(mark) :].splitlines()[1:]
    start = next(i for i, line in enumerate(lines) if line.startswith("    "))
    end = next((i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines))
    return textwrap.dedent("\n".join(lines[start:end])).strip() + "\n"


def test_the_example_prints_what_the_page_says():
    page = PAGE.read_text(encoding="utf-8")
    code = block_after(page, "runs this as it stands")
    assert len(code.splitlines()) <= 31
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    assert printed.getvalue() == block_after(page, "It prints")
