import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.report.canvas import DARK, LIGHT, Style
from flowgrain.report.figures import (
    Curve,
    IntervalRow,
    bar_figure,
    interval_figure,
    loss_figure,
    modulation_figure,
    moving_average,
    noise_level_figure,
)

CURVES = [Curve(f"arm {i}", [0, 1, 2], [0.3 + i, 0.2, 0.1], Style(i, i)) for i in range(3)]
ODD = "50 % of $x_1 < \\frac & <b>"


def svg(uri):
    head, data = uri.split(",", 1)
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode()


def draw_all():
    rows = [IntervalRow("a − b", 0.1, -0.1, 0.3, Style(None), True), IntervalRow(ODD, 2.0, 1.0, 3.0, Style(1), False)]
    return [
        loss_figure(ODD, CURVES),
        modulation_figure("densities", CURVES[0], CURVES[1:], "density", filled=True),
        modulation_figure("weights", CURVES[0], CURVES[1:], "weight"),
        noise_level_figure("levels", CURVES, "loss", zero="base"),
        interval_figure("differences", rows, "difference"),
        bar_figure("counts", {ODD: 3, "b": 1}, "level", "slices"),
    ]


@pytest.fixture(scope="module")
def drawings():
    return draw_all()


def test_drawings_are_valid_svg_for_both_themes(drawings):
    for drawing in drawings:
        for uri, theme in ((drawing.light, LIGHT), (drawing.dark, DARK)):
            text = svg(uri)
            assert ElementTree.fromstring(text).tag.endswith("svg")
            assert theme.paper in text and theme.ink in text
        assert drawing.width > 0 and drawing.height > 0


def test_the_same_data_give_the_same_bytes(drawings):
    assert drawings == draw_all()


def test_a_run_keeps_its_colour_and_an_untrained_arm_is_grey(drawings):
    for colour in LIGHT.colours[:3]:
        assert colour.lower() in svg(drawings[0].light)
    assert Style(None).shade(LIGHT) == LIGHT.soft
    assert Style(0, 0).shade(LIGHT) == Style(0, 1).shade(LIGHT) != Style(1, 0).shade(LIGHT)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_lines_and_text_stand_out_from_the_paper(theme):
    # WCAG 2.1: 3:1 for graphics, 4.5:1 for text
    def contrast(colour):
        high, low = sorted((luminance(colour), luminance(theme.paper)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(colour) for colour in theme.colours) >= 3.0
    assert min(contrast(theme.ink), contrast(theme.soft)) >= 4.5


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(0, 20))
def test_moving_average_equals_the_mean_of_its_window(values, window):
    values = np.array(values)
    half = max(window, 1) // 2
    expected = [values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))]
    np.testing.assert_allclose(moving_average(values, window), expected, atol=1e-8)
