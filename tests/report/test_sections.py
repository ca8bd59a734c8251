from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flowgrain.errors import DataError
from flowgrain.evaluate.table import MetricTable
from flowgrain.flow.time_laws import LinearShift, LogitNormal
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.flow.weightings import MinSnr, Uniform
from flowgrain.report.arms import Arm, arm_styles, describe_data
from flowgrain.report.comparison import comparison_page
from flowgrain.report.page import FigureRow, Paragraph, PictureGrid, Table
from flowgrain.report.pictures import picture_tile
from flowgrain.report.sections.cost import cost_section, differing_settings
from flowgrain.report.sections.measures import measures_section
from flowgrain.report.sections.pictures import pictures_section
from flowgrain.report.sections.summary import summary_section
from flowgrain.report.sections.training import LossWeights, TimeLaws, time_section, weight_section
from flowgrain.report.sections.validation import validation_section


def block(section, kind, title):
    return next(b for b in section.blocks if isinstance(b, kind) and b.title.startswith(title))


def test_page_has_the_headline_first_and_every_section(page):
    assert [section.anchor for section in page.sections] == [
        "summary",
        "pictures",
        "measures",
        "validation",
        "loss",
        "noise-levels",
        "data",
        "cost",
    ]


def test_sections_without_data_are_left_out():
    page = comparison_page("t", "s", [Arm("base", None)], None, MetricTable())
    assert [section.anchor for section in page.sections] == ["cost"]


def test_grids_line_up_prompts_across_arms(arms):
    section = pictures_section(arms, rows_per_grid=10)
    whole, close = (b for b in section.blocks if isinstance(b, PictureGrid))
    assert whole.columns == ("reference", "base", "whole 1x", "slices 1x", "whole 1.5x", "slices 1.5x")
    assert close.columns == whole.columns[1:]
    for row in whole.rows:
        assert all(tile is not None and row.label in tile.alt for tile in row.tiles)


def test_a_missing_picture_leaves_its_cell_empty_and_rows_are_spread(arms):
    first, *others = arms
    thinner = [first, replace(others[0], pictures=others[0].pictures[1:]), *others[1:]]
    grid = pictures_section(thinner, rows_per_grid=2).blocks[0]
    assert [row.label for row in grid.rows] == [first.pictures[0].prompt, first.pictures[2].prompt]
    assert grid.rows[0].tiles[2] is None and grid.rows[1].tiles[2] is not None
    assert "2 of 4 pictures" in grid.reading


def test_summary_counts_what_the_differences_say(metrics):
    section = summary_section(metrics, runs_per_arm=1)
    assert "slices 1.5x is ahead on 3 of 5 measures, whole 1.5x on 2." in section.blocks[0].items[1]
    table = block(section, Table, "Who is ahead")
    assert table.rows[3][1].splitlines()[0] == "no difference"
    assert table.rows[3][2].splitlines() == ["whole 1.5x", "+5.5", "+1.5 to +9.5"]
    assert "one training run" in section.blocks[-1].text


def test_measures_say_each_warning_once_and_deny_fid(page):
    section = page.sections[2]
    warnings = [b.text for b in section.blocks if isinstance(b, Paragraph) and b.tone == "warning"]
    assert len(warnings) == 1 and "whole images" in warnings[0] and "close-ups" in warnings[0]
    assert "It is not an FID" in page.render()


def test_measures_refuse_a_table_of_other_arms(metrics, arms):
    with pytest.raises(DataError, match=r"names arm 'slices 1\.5x'.*arms are: base, whole 1x"):
        measures_section(metrics, arm_styles(arms[:-1]))


def test_validation_is_also_shown_as_change_against_the_base(arms):
    change = block(validation_section(arms), FigureRow, "Change against base")
    assert len(change.figures) == 3
    # 0.010 of a mean base loss of 0.21625 at 1.5 x, a little more where the loss is small
    assert "whole 1.5x −4.7" in change.figures[0].alt
    without_base = validation_section(arms[1:])
    assert len(without_base.blocks) == 1


def test_mean_noise_levels_come_from_law_and_log(arms, laws):
    table = block(time_section(laws, arms), Table, "Mean noise level")
    assert table.columns[-2:] == ("drawn in whole", "drawn in slices")
    assert [row[:3] for row in table.rows] == [
        ("macro", "0.500", "0.602"),
        ("meso", "0.500", "0.500"),
        ("micro", "0.500", "0.398"),
    ]
    assert table.rows[1][3] == "–"


def test_unequal_token_counts_get_a_panel_each():
    law = LogitNormal(shift=LinearShift())
    laws = TimeLaws(law, law, {"macro": 256, "micro": 64})
    densities = block(time_section(laws, []), FigureRow, "Density")
    assert len(densities.figures) == 2


def test_mean_loss_weights_are_those_of_min_snr_on_the_schedule():
    path = VariancePreserving(NoiseSchedule())
    section = weight_section(LossWeights(Uniform(), MinSnr(path)))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    means = [np.minimum(1, gamma * (1 - abar) / abar).mean() for gamma in (4, 5, 7)]
    assert [row for row in block(section, Table, "Mean weight").rows] == [
        (level, f"{mean:.3f}") for level, mean in zip(("macro", "meso", "micro"), means, strict=True)
    ]
    assert means == sorted(means)
    page = comparison_page(
        "t", "s", [Arm("base", None)], None, MetricTable(), weights=LossWeights(Uniform(), Uniform())
    )
    assert [section.anchor for section in page.sections] == ["loss-weights", "cost"]


def test_cost_counts_whole_image_passes(arms):
    table = block(cost_section(arms, {}, {}), Table, "Cost by arm")
    by_arm = {row[0]: row for row in table.rows}
    assert by_arm["base"][2:7] == ("–",) * 5
    assert by_arm["whole 1x"][2:5] == ("100", "1\u2009200", "1\u2009200")
    assert by_arm["slices 1x"][2:5] == ("100", "1\u2009200", "400")


def test_only_settings_that_differ_are_listed(arms):
    table = differing_settings(arms)
    assert table.columns == ("setting", "whole", "slices")
    assert {row[0] for row in table.rows} == {
        "data.levels",
        "time.granularity_shift.macro",
        "time.granularity_shift.meso",
        "time.granularity_shift.micro",
    }
    macro = next(row for row in table.rows if row[0].endswith("macro"))
    assert macro[1:] == ("–", "0.5")
    assert differing_settings([arms[0], arms[1], arms[3]]) is None


def test_looks_follow_run_and_checkpoint(arms):
    styles = arm_styles(arms)
    assert styles["base"].colour is None
    assert styles["whole 1x"].colour == styles["whole 1.5x"].colour != styles["slices 1x"].colour
    assert styles["whole 1x"].dash == styles["slices 1x"].dash != styles["slices 1.5x"].dash


def test_data_counts_come_from_the_manifest(data, tmp_path):
    assert data.roots == 20
    assert data.slices_by_level == {"macro": 20, "meso": 13, "micro": 6}
    assert data.slices_per_root == {1: 7, 2: 7, 3: 6}
    assert len(data.sheet) == 12
    assert describe_data("empty", [], tmp_path).roots == 0


def test_large_pictures_are_scaled_down_and_small_ones_kept(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (600, 300), "red").save(path)
    tile = picture_tile(path, "wide", max_side=200)
    assert (tile.width, tile.height) == (200, 100)
    kept = picture_tile(path, "wide", max_side=600)
    assert (kept.width, kept.height) == (600, 300)
    with pytest.raises(DataError, match="no such file"):
        picture_tile(tmp_path / "absent.png", "absent")
