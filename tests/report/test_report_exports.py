import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_evaluation import NAMES, SCRIPT

from flowgrain.errors import ConfigError
from flowgrain.report.markdown import escape
from flowgrain.report.output import named_figures, write_report
from flowgrain.report.page import Page, Paragraph, Section, Table, flat
from flowgrain.report.sheets import NAMES as SHEET_NAMES
from flowgrain.report.sheets import Sheet, guarded, sheets_of, unguarded

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def read(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def markdown_tables(text):
    """Tables of a Markdown file as lists of rows of plain cells."""
    tables, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            rows.append([plain(cell) for cell in re.split(r"(?<!\\) \| ", line[2:-2])])
        elif rows:
            tables.append([rows[0], *rows[2:]])
            rows = []
    return tables


def plain(cell):
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.replace("<br>", "\n"))


@given(st.lists(st.tuples(TEXT, st.floats(allow_nan=False), st.integers()), max_size=8))
def test_csv_gives_texts_and_numbers_back(rows):
    header, *found = read(Sheet("t", ("a", "b", "c"), tuple(rows)).csv())
    assert header == ["a", "b", "c"]
    assert [(unguarded(a), float(b), int(c)) for a, b, c in found] == rows


@given(TEXT)
def test_no_text_of_a_csv_file_is_a_formula(text):
    (_, (cell,)) = read(Sheet("t", ("a",), ((text,),)).csv())
    assert not cell.startswith(FORMULAS)
    assert unguarded(guarded(text)) == text


def test_a_negative_number_stays_a_number():
    assert read(Sheet("t", ("a",), ((-0.5,),)).csv())[1] == ["-0.5"]


def test_nothing_known_is_an_empty_cell():
    assert read(Sheet("t", ("a", "b", "c"), ((None, float("nan"), True),)).csv())[1] == ["", "", "True"]


def test_tables_hold_the_inputs_in_full(evaluation, written):
    files = {path.stem: path.read_text(encoding="utf-8") for path in written.tables}
    assert set(files) <= set(SHEET_NAMES)
    header, *rows = read(files["first-places"])
    found = [dict(zip(header, row, strict=True)) for row in rows]
    for ballot in (evaluation.judge, evaluation.study):
        for dimension, rates in ballot.summary.first_place.items():
            for variant, rate in rates.items():
                (row,) = [
                    r
                    for r in found
                    if (r["evaluator"], r["dimension"], r["dataset"], r["variant"])
                    == (ballot.summary.source, dimension, "", variant)
                ]
                assert float(row["value"]) == rate.value
                assert (row["low"], row["high"]) == tuple("" if e is None else str(e) for e in (rate.low, rate.high))
    header, *rows = read(files["metrics"])
    assert [float(row[header.index("value")]) for row in rows] == [r.value for r in evaluation.metrics.results]
    header, *rows = read(files["pictures"])
    assert len(rows) == len(evaluation.comparison.items()) * len(NAMES)
    assert {unguarded(row[1]) for row in rows} == {item.prompt for item in evaluation.comparison.items()}


def test_every_sheet_of_a_full_evaluation_has_a_known_name(evaluation):
    assert [sheet.name for sheet in sheets_of(evaluation)] == [
        name for name in SHEET_NAMES if name not in ("scores", "exclusions")
    ]


def test_markdown_tables_are_those_of_the_page(evaluation_report, written):
    tables = markdown_tables(written.markdown.read_text(encoding="utf-8"))
    expected = [
        [list(block.columns), *map(list, block.rows)]
        for section in evaluation_report.sections
        for block in flat(section.blocks)
        if isinstance(block, Table)
    ]

    def spaced(rows):  # Markdown knows one kind of space
        return [[re.sub(r"[^\S\n]+", " ", cell) for cell in row] for row in rows]

    assert [spaced(rows) for rows in tables] == [spaced(rows) for rows in expected]


def test_markdown_shows_each_figure_from_a_file(written):
    text = written.markdown.read_text(encoding="utf-8")
    for path in written.figures:
        assert path.is_file() and f"](<report-figures/{path.name}>)" in text


def test_names_cannot_become_markdown(written):
    text = written.markdown.read_text(encoding="utf-8")
    assert SCRIPT not in text and "<script" not in text.replace("\\<", "")
    assert "](http" not in text.replace("\\]", "") and "`c`" not in text


@given(TEXT)
def test_escaped_text_is_one_line_without_live_markup(text):
    escaped = escape(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>*_`\[\]|]", escaped)
    assert not re.match(r"([-+]|\d+[.)])(\s|$)", escaped)
    assert plain(escaped) == " ".join(text.split())


def test_files_lie_beside_the_page_and_stale_tables_go(tmp_path):
    page = Page("t", "s", (Section("one", "One", "Lead.", (Paragraph("x \ud800 half a pair"),)),))
    sheets = [Sheet(name, ("a",), ((1,),)) for name in ("metrics", "ranks")]
    path = tmp_path / "sub" / "mine.html"
    written = write_report(page, sheets, path)
    own = path.parent / "mine-tables" / "own.csv"
    own.write_text("kept")
    write_report(page, sheets[:1], path)
    found = sorted(str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file())
    assert found == ["mine-tables/metrics.csv", "mine-tables/own.csv", "mine.html", "mine.md"]
    assert written.page_bytes == path.stat().st_size and list(named_figures(page)) == []


@pytest.mark.parametrize("name", ["report", "report.pdf"])
def test_only_html_files_are_written(tmp_path, name):
    with pytest.raises(ConfigError, match=r"expected a file that ends in \.html"):
        write_report(Page("t", "s", ()), [], tmp_path / name)
