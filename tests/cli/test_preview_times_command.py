"""``flowgrain preview-times``: tables, JSON and page say the same, and mistakes are one clear line."""

import json
import re

import pytest
from typer.testing import CliRunner

from flowgrain.cli.main import app
from flowgrain.report.page import FigureRow, Table
from flowgrain.report.preview_times import headline, remarks, time_rows, weight_rows
from flowgrain.report.preview_times_page import preview_page
from flowgrain.train.recipe import find_recipe
from flowgrain.train.time_preview import preview_times, read_recipe

FLUX_LINE = "time.resolution_shift={base_tokens: 256}"


def preview(name, *overrides, size=None):
    return preview_times(read_recipe(find_recipe(name), list(overrides)), size)


def blocks(page, kind):
    return [block for section in page.sections for block in section.blocks if isinstance(block, kind)]


def test_text_json_and_page_hold_the_same_numbers(command, tmp_path):
    out = tmp_path / "times.html"
    arguments = ("preview-times", "tiny-flux-granularity", FLUX_LINE, "--size", "1280x1280")
    text, numbers = command(*arguments, "--out", out), command(*arguments, "--format", "json")
    assert (text.code, numbers.code) == (0, 0)
    levels = {level["granularity"]: level for level in json.loads(numbers.out)["levels"]}
    assert levels["micro"]["commonest"]["modulated"]["median"] == pytest.approx(0.738850, abs=6e-7)  # spec e.2
    html = out.read_text(encoding="utf-8")
    for words in ("0.849", "0.704", "0.784", "1.54", "outweighs the granularity shift", "assumed: 1280x1280"):
        assert words in text.out and words in html
    assert "://" not in re.sub(r'src(set)?="data:[^"]*"', "", html)  # the page needs nothing else
    assert f"preview-times: {out}" in text.err


def test_the_data_set_decides_where_it_is_there(command, photos):
    done = command("preview-times", "tiny-flux-baseline", f"data.path={photos}", "data.resolution=64")
    assert done.code == 0 and str(photos) in done.out and "assumed" not in done.out
    assert "Nothing is modulated" in done.out and "meso" not in done.out


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("tiny-sdxl-baseline", [], ["Nothing is modulated", "uniform", "every noise level weighs 1"]),
        ("tiny-flux-baseline", [], ["Nothing is modulated", "granularity_shift is 0"]),
        ("tiny-sdxl-baseline", ["weighting={kind: min_snr, gamma: 7}"], ["Nothing is modulated", "one gamma"]),
        ("tiny-sdxl-baseline", ["weighting.kind=debiased"], ["Nothing is modulated", "debiased"]),
        ("tiny-sdxl-granularity", [], ["modulates the weight of the loss", "macro 4, meso 5, micro 7"]),
        ("tiny-flux-granularity", ["tuples.lambdas.micro=2"],
         ["macro +0.5, meso 0, micro −0.5) and the weight of whole levels", "micro 2"]),
    ],
)  # fmt: skip
def test_the_headline_says_what_granularity_changes(name, overrides, words):
    found = preview(name, *overrides)
    assert all(word in headline(found) for word in words), headline(found)
    page = preview_page(found)
    assert headline(found) in page.render()
    together = len(blocks(page, FigureRow)[-1].figures)
    assert together == (1 if "Nothing" in words[0] else 2)


def test_rows_of_the_tables():
    found = preview("tiny-flux-granularity")
    assert [row[0] for row in time_rows(found)] == ["macro", "macro", "meso", "micro", "micro"]
    assert [row[4] for row in time_rows(found)] == ["+0.5", "0", "0", "−0.5", "0"]
    (macro, *_) = weight_rows(preview("tiny-sdxl-granularity"))
    assert macro[0] == "macro" and macro[-1] == "SNR 4 (t < 0.170)" and macro[4:6] == ("0.902", "0.917")
    (alike, *_) = time_rows(preview("tiny-sdxl-granularity"))
    assert alike[3:6] == ("–", "–", "0.500")


def test_sizes_that_move_the_law_get_rows_and_a_panel(tmp_path):
    from PIL import Image

    for name, size, count in (("large", (512, 512), 2), ("middle", (256, 256), 3), ("small", (64, 64), 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", size, (number, 9, 9)).save(tmp_path / name / f"{name}{number}.png")
    sizes = ((512, "large"), (256, "middle"), (64, "small"))
    named = ", ".join(f"{{path: {tmp_path / name}, resolution: {side}}}" for side, name in sizes)
    found = preview("tiny-flux-baseline", f"data.sources=[{named}]", "data.resolution=null", "time.std=0.8")
    assert [row[:2] for row in time_rows(found)] == [
        ("macro", "256x256"), ("smallest", "64x64"), ("largest", "512x512"),
    ]  # fmt: skip
    assert "mean t" in remarks(found)[0] and "at 64x64" in remarks(found)[0] and "at 512x512" in remarks(found)[0]
    titles = [row.title for row in blocks(preview_page(found), FigureRow)]
    assert titles == ["Density of t.", "Density of t by size.", "Density of t times the weight of the loss."]


def test_levels_of_other_sizes_get_a_panel_each_and_say_why_they_differ(tmp_path):
    from PIL import Image

    for name, side in (("whole", 512), ("close", 64)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side), (9, 9, 9)).save(tmp_path / name / f"{name}.png")
    named = (
        f"{{path: {tmp_path / 'whole'}, resolution: 512}}, "
        f"{{path: {tmp_path / 'close'}, resolution: 64, granularity: micro}}"
    )
    found = preview("tiny-flux-baseline", f"data.sources=[{named}]", "data.resolution=null")
    assert "macro slices are trained at noisier levels than micro slices, by their sizes alone" in remarks(found)[0]
    assert len(blocks(preview_page(found), FigureRow)[0].figures) == 2


@pytest.mark.parametrize(
    ("name", "overrides", "words", "falls"),
    [
        ("tiny-sdxl-granularity", [], "a larger gamma keeps more of the clean end", True),
        ("tiny-sdxl-granularity", ["path.prediction=v_prediction"], "falls to both ends", True),
        ("tiny-sdxl-granularity", ["path.prediction=sample"], "capped at the level&#39;s gamma", False),
        ("tiny-sdxl-baseline", ["weighting.kind=debiased"], "weighs noisy levels up", False),
    ],
)
def test_the_page_reads_each_weighting(name, overrides, words, falls):
    page = preview_page(preview(name, *overrides))
    assert "loss-weights" in [section.anchor for section in page.sections] and words in page.render()
    assert all((row[-1] != "–") == falls for row in blocks(page, Table)[-1].rows)


def test_uniform_laws_draw_no_densities():
    page = preview_page(preview("tiny-sdxl-baseline"))
    assert [section.anchor for section in page.sections] == ["overview", "noise-levels", "objective"]
    assert len(blocks(page, FigureRow)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny-flux-granularty"], "did you mean 'tiny-flux-granularity'"),
        (["missing.yaml"], "no such file"),
        (["tiny-flux-granularity", "time.granularity_shif.macro=1"], "did you mean 'granularity_shift'"),
        (["tiny-flux-granularity", "--size", "1280"], "expected WIDTHxHEIGHT"),
        (["tiny-flux-granularity", "--size", "100x100"], "no multiple of the model's 16 px"),
        (["tiny-flux-granularity", "--out", "numbers.json"], "name it FILE.html"),
        (["flux-dev-granularity"], "black-forest-labs/FLUX.1-dev: neither a folder nor a hub model"),
        (["tiny-flux-granularity", "time.kind=uniform"], "granularity_shift is not read"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(command, arguments, words):
    done = command("preview-times", *arguments)
    assert done.code == 2 and words in done.err and len(done.err.strip().splitlines()) == 1


def test_help_has_an_example():
    done = CliRunner().invoke(app, ["preview-times", "--help"])
    assert done.exit_code == 0 and "flowgrain preview-times tiny-flux" in done.stdout.split("Example", 1)[1]
