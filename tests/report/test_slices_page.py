"""The data report as a page: every section's numbers, hostile texts, shards, and the command."""

import re
from html.parser import HTMLParser

import pytest
import typer
import yaml
from made_up_data_set import MadeUpDataSet, clean
from typer.testing import CliRunner

from flowgrain.cli.report import report
from flowgrain.config import load_config
from flowgrain.errors import ConfigError, DataError
from flowgrain.report.markdown import to_markdown
from flowgrain.report.page import Code, Details, Numbers, Paragraph, PictureStrips, Table, Trees, Warned, flat
from flowgrain.report.sections.slices_forecast import forecast_section
from flowgrain.report.sections.slices_settings import minimal_yaml
from flowgrain.report.slices_page import RunNotes, slices_page, write_slices_page
from flowgrain.report.slices_tiles import plain
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_names, preset_path
from flowgrain.slices.recorded import is_data_set
from flowgrain.slices.settings import load_settings
from flowgrain.slices.statistics import read_statistics
from flowgrain.slices.tuning import Forecast

app = typer.Typer()
app.command()(report)
NONE = RunNotes()


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def section(page, anchor):
    return next(each for each in page.sections if each.anchor == anchor)


def block(page, anchor, kind, title=""):
    blocks = flat(section(page, anchor).blocks)
    return next(b for b in blocks if isinstance(b, kind) and (not title or b.title.startswith(title)))


def known_contents(folder):
    """4 whole roots, one without micro, a refused image, an unreadable one, two alike."""
    made = MadeUpDataSet(folder, pictures=True)
    for index in range(4):
        same = {"phash": "0123456789abcdef"} if index < 2 else {}
        made.image(f"photo{index}.png", [("macro", {}, same), ("meso",), ("micro", {"height": 96})])
    made.image(
        "photo4.png", [("macro",), ("meso", {"caption": ""})], [("micro", "max_upscale"), ("micro", "min_score")]
    )
    made.image("photo5.png", rejects=[("macro", "min_side")])
    made.image("photo6.png", fault="unreadable")
    return made.finish()


@pytest.fixture
def mixed(tmp_path):
    return known_contents(tmp_path / "mixed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return slices_page(known_contents(tmp_path_factory.mktemp("known")), RunNotes(origins={"targets": "command line"}))


def test_sections_in_order_and_the_headline(page):
    anchors = [each.anchor for each in page.sections]
    assert anchors == ["summary", "roots", "counts", "sizes", "rejects", "duplicates", "captions", "settings"]
    assert block(page, "summary", Numbers).items == (
        ("7", "images in"), ("5", "roots"), ("14", "slices"), ("5", "macro slices"), ("5", "meso slices"),
        ("4", "micro slices"), ("2", "images not used"),
    )  # fmt: skip
    titles = [b.title for b in flat(section(page, "summary").blocks) if isinstance(b, Warned)]
    assert titles[:3] == [
        "2 of 7 images gave no slice",
        "2 pictures look like another one",
        "7\u00a0% of the slices have no caption",
    ]


def test_tables_hold_the_numbers(page):
    buckets = block(page, "counts", Table, "Buckets")
    assert buckets.columns == ("size", "width / height", "macro", "meso", "micro", "all", "share", "roots")
    assert buckets.rows == (
        ("64×64", "1.00", "5", "5", "0", "10", "71.4\u00a0%", "5"),
        ("64×96", "0.67", "0", "0", "4", "4", "28.6\u00a0%", "4"),
    )
    assert block(page, "counts", Table, "Detectors").rows == (
        ("macro", "saliency", "1", "0", "1", "–"),
        ("macro", "whole_image", "5", "5", "0", "–"),
        ("meso", "saliency", "5", "5", "0", "0.50"),
        ("micro", "saliency", "6", "4", "2", "0.50"),
    )
    reasons = {row[0]: row[1] for row in block(page, "rejects", Table, "Reasons").rows}
    assert reasons == {
        "max_upscale": "micro 1",
        "min_score": "micro 1",
        "min_side": "macro 1",
        "unreadable": "images 1",
    }
    assert block(page, "rejects", Table, "Images").rows == (
        ("photo5.png", "min_side", "because of min_side"),
        ("photo6.png", "unreadable", "photo6.png is unreadable"),
    )
    assert block(page, "duplicates", Table, "Groups").rows == (("2", "alike", "photo0.png; photo1.png"),)
    sources = block(page, "captions", Table, "Sources").rows
    assert [row[5] for row in sources] == ["0", "1", "0"] and sources[0][1] == "the level's template 5"
    assert block(page, "sizes", Table, "Scales").rows[0][1:4] == ("5", "0", "0")


def test_trees_follow_the_parents(tmp_path):
    made = clean(tmp_path / "d", 3, pictures=True)
    page = slices_page(made.finish(), NONE)
    trees = block(page, "roots", Trees).trees
    assert [tree.title for tree in trees] == ["photo000.png", "photo001.png", "photo002.png"]
    macro, micro = trees[0].nodes  # the meso slice names the macro slice as its parent, the micro slice none
    assert [child.name for child in macro.children] == ["meso1"] and micro.name == "micro2"
    assert macro.mark == "macro" and macro.tile is not None and macro.lines[0] == "whole image"
    assert macro.children[0].lines[0] == "saliency “detail” 0.50"
    assert macro.children[0].caption == "meso of photo000.png"


def test_a_clean_set_says_so(tmp_path):
    page = slices_page(clean(tmp_path / "d", pictures=True).finish(), NONE)
    assert not [b for b in flat(section(page, "summary").blocks) if isinstance(b, Warned)]
    assert block(page, "summary", Paragraph).text.startswith("No warning")
    assert block(page, "rejects", Paragraph).text == "Every image gave a slice and no box was refused."
    assert block(page, "duplicates", Paragraph).text == "No two pictures look the same."


def test_a_level_without_slices_is_named(tmp_path):
    made = MadeUpDataSet(tmp_path / "d", pictures=True)
    for index in range(3):
        made.image(f"{index}.png", [("macro",)], [("meso", "max_upscale"), ("micro", "min_side")])
    page = slices_page(made.finish(), NONE)
    page.render()
    assert {b.title for b in flat(section(page, "summary").blocks) if isinstance(b, Warned)} >= {
        "level meso has no slice",
        "level micro has no slice",
    }
    rows = block(page, "rejects", PictureStrips, "Refused").rows
    assert [row.label for row in rows] == ["meso: max_upscale, 3 boxes", "micro: min_side, 3 boxes"]
    assert all(len(row.tiles) == 3 for row in rows)


class Words(HTMLParser):
    """Tags and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_texts_are_shown_and_do_nothing(tmp_path):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    made = MadeUpDataSet(tmp_path / "d", pictures=True)
    for index in range(9):
        made.image(
            f"a {index}.png",
            [("macro", {"caption": evil}), ("meso", {"caption": "\u202egnp.\x07", "label": evil}), ("micro",)],
            [("micro", "min_side", {"reason": evil})],
        )
    made.image(f"{evil.replace('/', '|')}.png", fault="unreadable")
    folder = made.finish()
    words = Words()
    html = slices_page(folder, RunNotes(origins={"targets": evil})).render()
    words.feed(html)
    assert "script" not in words.tags and evil in " ".join(words.text)
    assert "\u202e" not in html and "\x07" not in html and "\ufffdgnp.\ufffd" in html
    assert "default-src 'none'" in html and not re.search(r'(src|href)="(?!data:|#)', html)


def test_the_page_knows_no_place_and_comes_out_the_same(tmp_path):
    pages = []
    for name in ("one", "another"):
        folder = clean(tmp_path / name, 5, pictures=True).finish()
        pages.append(write_slices_page(folder).read_bytes())
        before = (folder / "report.html").stat().st_mtime_ns
        write_slices_page(folder)
        assert (folder / "report.html").stat().st_mtime_ns == before  # not even written again
    assert pages[0] == pages[1] and str(tmp_path).encode() not in pages[0]


def test_what_the_run_said_is_remembered(tmp_path):
    folder = clean(tmp_path / "d", 5, pictures=True).finish()
    notes = RunNotes(
        origins={"targets": "/home/me/photos/decompose.yaml:3"}, forecast=Forecast(500, 5, 1500, 900.0, 10**9)
    )
    first = write_slices_page(folder, notes).read_bytes()
    assert write_slices_page(folder).read_bytes() == first
    assert b"decompose.yaml:3" in first and b"/home/me" not in first
    assert b'id="forecast"' in first
    (table, _) = forecast_section(read_statistics(folder)[0], notes.forecast).blocks
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["slices of level micro"] == ("5", "500") and rows["roots"] == ("5", "500")
    assert rows["time of one process"] == ("9.0 s", "15 min 0 s") and rows["on the disk"] == ("10.0 MB", "1.0 GB")
    assert b'id="forecast"' not in write_slices_page(folder, RunNotes()).read_bytes()


def test_a_missing_slice_file_is_warned_about(mixed):
    next((mixed / "slices").rglob("macro0.png")).unlink()
    page = slices_page(mixed, NONE)
    assert "slice files looked at are missing or damaged" in block(page, "summary", Warned).title
    assert any(node.tile is None for tree in block(page, "roots", Trees).trees for node in tree.nodes)
    assert "no picture" in page.render()


def test_an_unfinished_data_set_is_warned_about(mixed):
    next((mixed / ".decompose" / "chunks").glob("*.jsonl")).unlink()
    assert "not finished" in block(slices_page(mixed, NONE), "summary", Warned).title


@pytest.mark.parametrize("name", [None, *preset_names()])
def test_the_settings_shown_give_the_same_settings(tmp_path, name):
    config = DecomposeConfig() if name is None else load_settings([name], None, None, [])[0]
    file = tmp_path / "settings.yaml"
    file.write_text(minimal_yaml(config), encoding="utf-8")
    assert load_config(DecomposeConfig, file, [])[0] == config


def test_markdown_holds_the_new_blocks(page):
    from flowgrain.report.output import named_figures

    text = to_markdown(page, {figure: name for name, figure in named_figures(page)})
    for words in ("- images in: 7", "2 of 7 images gave no slice", "    targets:", "- photo0.png"):
        assert words in text


def test_text_is_made_plain():
    assert plain("a\n b\x00c\u2066d") == "a b\ufffdc\ufffdd"
    assert plain("x" * 300, 10) == "x" * 9 + "…"


# ---- a real decomposition


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 240), Image.Resampling.BICUBIC).save(folder / f"p{index}.png")
        (folder / f"p{index}.txt").write_text(f"picture {index}")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def test_folders_and_shards_give_the_same_pictures(tmp_path, photos):
    found = {}
    for layout in ("folder", "webdataset"):
        config = load_config(DecomposeConfig, preset_path("tiny-128"), [f"layout={layout}"])[0]
        decompose(photos, tmp_path / layout, config)
        html = write_slices_page(tmp_path / layout).read_text(encoding="utf-8")
        found[layout] = re.findall(r'<img src="(data:image/webp[^"]*)" alt="([^"]*)"', html)
        assert ">no picture<" not in html and "broken.png" in html
    assert found["folder"] == found["webdataset"] and len(found["folder"]) > 9
    sheets = [(tmp_path / layout / "contact_sheet.png").read_bytes() for layout in found]
    assert sheets[0] == sheets[1]


def test_the_command(tmp_path, mixed):
    assert is_data_set(mixed) and not is_data_set(tmp_path)
    assert f"would write {mixed / 'report.html'}" in run(mixed, "--dry-run").output
    assert not (mixed / "report.html").exists()
    assert run(mixed, "--title", "Mine", "--out", tmp_path / "sub" / "x.html").output.startswith(
        f"{tmp_path}/sub/x.html: "
    )
    assert "<h1>Mine</h1>" in (tmp_path / "sub" / "x.html").read_text(encoding="utf-8")
    run(mixed)
    assert (mixed / "report.html").is_file()
    for wrong, match in (((mixed, mixed), "reported alone"), ((mixed, "--judge", tmp_path), "are about comparisons")):
        with pytest.raises(ConfigError, match=match):
            run(*wrong)
    (mixed / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        run(mixed)


def test_settings_section_and_repeat(page):
    assert block(page, "settings", Table, "Settings").rows == (("targets", "[[64, 64], [64, 96]]", "command line"),)
    assert yaml.safe_load(block(page, "settings", Code).text) == {"targets": [[64, 64], [64, 96]]}
    assert any(isinstance(b, Details) for b in section(page, "duplicates").blocks)
