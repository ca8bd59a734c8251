"""Tables of results inside a document that is written by hand: only what stands between two markers is replaced."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .analysis import Interval


def fill(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """Put each block between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; the names that the document lacks.

    Raises ValueError for a marker of the document that no block fills: a table would silently be old.
    """
    text = path.read_text(encoding="utf-8")
    wanted = set(re.findall(r"<!-- begin ([\w-]+) -->", text))
    if unknown := sorted(wanted - blocks.keys()):
        raise ValueError(f"{path}: nothing to put into {', '.join(unknown)}")
    for name in wanted:
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, name=name: f"{found[1]}{blocks[name]}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{path}: block {name} needs one beginning and one end, found {count}")
    path.write_text(text, encoding="utf-8")
    return sorted(blocks.keys() - wanted)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int) -> str:
    """A number without the zero before its point."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def signed(value: float, digits: int) -> str:
    """A difference with its sign."""
    return ("+" if value >= 0 else "-") + number(abs(value), digits)


def interval(found: Interval, digits: int) -> str:
    """A difference and its interval, in bold where it leaves no zero."""
    text = f"{signed(found.value, digits)} [{signed(found.low, digits)}, {signed(found.high, digits)}]"
    return f"**{text}**" if found.excludes_zero else text
