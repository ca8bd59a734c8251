import re
from html.parser import HTMLParser

import pytest

from flowgrain.errors import ConfigError
from flowgrain.report.page import Bullets, GridRow, Page, Paragraph, PictureGrid, Section, Table


class Outline(HTMLParser):
    """Collects tags, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "link", "img", "source", "br", "input"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.stack = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def simple(*blocks):
    return Page("A page", "about something", (Section("one", "One", "First.", blocks),))


def test_page_is_well_formed_and_needs_nothing_else(page):
    html = page.render()
    outline = Outline(html)
    assert not outline.stack
    assert "script" not in outline.tags
    for tag, attributes in outline.attributes:
        for name in ("src", "srcset", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:60])
    assert "@import" not in html and "url(" not in html


def test_every_picture_has_a_text_for_those_who_cannot_see_it(page):
    images = [attributes for tag, attributes in Outline(page.render()).attributes if tag == "img"]
    assert len(images) > 40
    assert all(image["alt"] for image in images)


def test_every_table_and_figure_says_how_to_read_it(page):
    for section in page.sections:
        assert section.lead.endswith(".")
        for block in section.blocks:
            if not isinstance(block, (Paragraph, Bullets)):
                assert block.reading.rstrip(")").endswith("."), block.title


def test_untrusted_text_is_escaped_everywhere():
    evil = "<script>alert(1)</script>\"'&"
    page = Page(
        evil,
        evil,
        (
            Section(
                "one",
                evil,
                evil,
                (
                    Paragraph(evil),
                    Bullets((evil,)),
                    Table(evil, evil, (evil, evil), ((evil, evil),)),
                    PictureGrid(evil, evil, (evil,), (GridRow(evil, (None,)),)),
                ),
            ),
        ),
    )
    html = page.render()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 14


def test_navigation_leads_to_every_section(page):
    outline = Outline(page.render())
    anchors = {attributes["id"] for tag, attributes in outline.attributes if tag == "section"}
    links = {attributes["href"][1:] for tag, attributes in outline.attributes if tag == "a"}
    assert links == anchors == {section.anchor for section in page.sections}


def test_rendering_is_a_function_of_the_data(page):
    assert page.render() == page.render()


def test_page_is_written_whole(tmp_path):
    path = tmp_path / "sub" / "report.html"
    page = simple(Paragraph("hello"))
    page.write(path)
    assert path.read_text(encoding="utf-8") == page.render()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_page_adapts_to_dark_narrow_and_paper():
    html = simple(Paragraph("x")).render()
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert re.search(r"@media \(max-width: \d+px\)", html) and "@media print" in html


def test_ragged_tables_grids_and_equal_anchors_are_refused():
    with pytest.raises(ConfigError, match="a row has 1 cells, 2 columns"):
        Table("t", "r.", ("a", "b"), (("only",),))
    with pytest.raises(ConfigError, match="does not fill 2 columns"):
        PictureGrid("t", "r.", ("a", "b"), (GridRow("row", (None,)),))
    section = Section("same", "S", "L.", ())
    with pytest.raises(ConfigError, match="anchors must differ"):
        Page("t", "s", (section, section))
