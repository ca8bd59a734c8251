"""Vector art: boxes agree with what resvg draws, and unsafe or broken files are refused with their place."""

import gzip
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import DataError
from flowgrain.slices.detectors import DetectorContext, View, svg_document, svg_geometry
from flowgrain.slices.detectors.svg import SvgConfig, joined, label_of, matches
from flowgrain.slices.detectors.svg_document import Element, parse
from flowgrain.slices.detectors.svg_geometry import Layout, union
from flowgrain.slices.detectors.svg_path import Arc, Bezier, fill_box, moved, parse_path, times

NS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def painted(text, width, height):
    """Box of the pixels that resvg paints; None for none."""
    resvg_py = pytest.importorskip("resvg_py", reason="needs the extra assets")
    data = bytes(resvg_py.svg_to_bytes(svg_string=text, width=width, height=height, dpi=96, skip_system_fonts=True))
    rows, columns = np.nonzero(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3])
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def laid(text, width, height, strokes=True):
    document = parse(text.encode(), "fox.svg")
    layout = Layout(document, width, height, strokes, "fox.svg")
    return layout.box(document.root, layout.root)


def assert_agree(text, width=400, height=300):
    ours, theirs = laid(text, width, height), painted(text, width, height)
    assert theirs is not None and ours is not None
    assert ours == pytest.approx(theirs, abs=1.0)


SHAPES = {
    "circle": '<circle cx="50" cy="40" r="21.5"/>',
    "ellipse-turned": '<ellipse cx="50" cy="40" rx="30" ry="9" transform="rotate(33 50 40)"/>',
    "rect-rounded": '<rect x="12.5" y="10" width="60" height="33" rx="12" transform="skewX(20) rotate(10)"/>',
    "rect-one-radius": '<rect x="12" y="10" width="60" height="33" ry="40"/>',
    "line-square": '<line x1="20" y1="20" x2="70" y2="50" stroke="red" stroke-width="9" stroke-linecap="square"/>',
    "line-round": '<line x1="20" y1="20" x2="70" y2="50" stroke="red" stroke-width="9" stroke-linecap="round"/>',
    "line-butt": '<line x1="20" y1="20" x2="70" y2="50" stroke="red" stroke-width="9"/>',
    "polyline-miter": '<polyline points="20,60 50,20 60 60" fill="none" stroke="red" stroke-width="7"/>',
    "polyline-bevel": '<polyline points="20,60 50,20 60 60" fill="none" stroke="red" stroke-width="7" '
    'stroke-linejoin="bevel"/>',
    "polyline-limit": '<polyline points="20,60 50,20 54 60" fill="none" stroke="red" stroke-width="7" '
    'stroke-miterlimit="9"/>',
    "polygon-round": '<polygon points="20,60 50,20 60 60" stroke="red" stroke-width="8" stroke-linejoin="round"/>',
    "cubic": '<path d="M10 30 C 10 -40, 90 120, 90 30"/>',
    "smooth": '<path d="m20 40c5-20 15-20 20 0s15 20 20 0t10 5q5-30 10 0T99 50" fill="none" stroke="blue"/>',
    "arcs": '<path d="M30 40a20 10 30 1 0 20-20A15 25-20 0160 60L30 60z"/>',
    "packed-flags": '<path d="M50 30a10 10 0 1110 10z"/>',
    "two-outlines": '<path d="M10 10h10v10h-10zM60 50l10 5-5 8z"/>',
    "error-at-the-end": '<path d="M10 10 L40 50 L50 20 Z L x 99 99"/>',
    "stroked-curve": '<path d="M20 60 C 20 0 70 0 70 60" fill="none" stroke="#000" stroke-width="11" '
    'transform="rotate(40 40 40) scale(1 .7)"/>',
    "short-end": '<path fill="none" stroke="#000" stroke-linejoin="round" stroke-width="9" d="m43 22-15 26-.3-.2"/>',
    "dot": '<path d="M40 40h0" stroke="red" stroke-width="13" stroke-linecap="round"/>',
    "nested-groups": '<g transform="translate(20 10)"><g transform="scale(.5,-.5) translate(10,-60)">'
    '<circle cx="20" cy="20" r="15"/></g></g>',
    "matrix": '<rect width="20" height="30" transform="matrix(.8 .3 -.2 1.1 40 9)"/>',
    "use": '<defs><circle id="c" r="8" stroke="red" stroke-width="3"/></defs>'
    '<use xlink:href="#c" x="30" y="20" transform="rotate(10)"/><use href="#c" x="60" y="50"/>',
    "symbol": '<symbol id="s" viewBox="0 0 10 20"><rect width="10" height="20"/><circle r="50"/></symbol>'
    '<use href="#s" x="20" y="10" width="40" height="40"/>',
    "nested-svg": '<svg x="20" y="15" width="50" height="20" viewBox="0 0 10 10" preserveAspectRatio="xMaxYMid">'
    '<circle cx="5" cy="5" r="4"/></svg>',
    "nested-slice": '<svg x="20" y="15" width="50" height="20" viewBox="0 0 10 10" '
    'preserveAspectRatio="xMidYMid slice">'
    '<circle cx="5" cy="5" r="4"/></svg>',
    "clipped": '<clipPath id="k"><rect x="40" y="30" width="20" height="12"/></clipPath>'
    '<circle cx="45" cy="40" r="30" clip-path="url(#k)"/>',
    "beyond-the-canvas": '<circle cx="95" cy="70" r="30"/>',
    "percent": '<rect x="10%" y="20%" width="50%" height="25%"/>',
    "units": '<rect x="1mm" y="2mm" width="1cm" height="10pt"/>',
    "hidden": '<rect width="5" height="5" display="none"/><g opacity="0"><rect width="9" height="9"/></g>'
    '<rect width="7" height="7" visibility="hidden"/><circle cx="50" cy="40" r="9"/>',
    "no-paint": '<rect width="90" height="70" fill="none"/><circle cx="50" cy="40" r="9"/>',
    "style": "<style>.a{fill:none;stroke:#000;stroke-width:6}#b{stroke-width:12}</style>"
    '<rect class="a" x="20" y="20" width="20" height="20"/>'
    '<rect id="b" class="a" x="50" y="40" width="20" height="9"/>',
    "style-attribute": '<g style="stroke:red;stroke-width:8;fill:none"><path d="M30 30h20v20"/></g>',
}


@pytest.mark.parametrize("name", SHAPES)
def test_boxes_agree_with_a_rasteriser(name):
    assert_agree(f'<svg {NS} viewBox="0 0 100 75">{SHAPES[name]}</svg>')


@pytest.mark.parametrize("size", [(400, 300), (300, 300), (200, 400)])
@pytest.mark.parametrize("view", ["0 0 100 75", "-10 5 60 60", "20 20 10 40"])
def test_view_boxes_lie_in_the_picture_as_svg_says(size, view):
    """A picture of another shape than the view box shows it in its middle."""
    inner = '<rect x="22" y="24" width="5" height="30"/>'
    text = f'<svg {NS} width="{size[0]}" height="{size[1]}" viewBox="{view}">{inner}</svg>'
    assert_agree(text, *size)


def test_without_a_view_box_the_size_counts_and_without_both_it_is_an_error():
    assert laid(f'<svg {NS} width="50" height="25"><rect x="5" y="5" width="10" height="10"/></svg>', 200, 100) == (
        20.0, 20.0, 60.0, 60.0,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"fox\.svg: neither a viewBox nor a size"):
        laid(f"<svg {NS}><rect width='5' height='5'/></svg>", 10, 10)


coordinates = st.floats(5, 95).map(lambda value: round(value, 1))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(coordinates, coordinates), min_size=4, max_size=4), st.integers(0, 359), st.floats(0.4, 1.4))
def test_any_cubic_and_its_stroke(points, angle, squeeze):
    numbers = " ".join(f"{x} {y}" for x, y in points[1:])
    path = f'<path d="M{points[0][0]} {points[0][1]}C{numbers}" fill="none" stroke="#000" stroke-width="5" '
    shape = f'{path} stroke-linecap="round" transform="rotate({angle} 50 50) scale(1 {squeeze:.3f})"/>'
    text = f'<svg {NS} viewBox="-100 -100 300 300">{shape}</svg>'
    ours, theirs = laid(text, 300, 300), painted(text, 300, 300)
    assert ours == pytest.approx(theirs, abs=1.5)  # resvg flattens thin, sharp turns of a stroke


@given(st.lists(st.complex_numbers(max_magnitude=50), min_size=2, max_size=4), st.floats(-3, 3), st.floats(-3, 3))
def test_no_point_of_a_curve_lies_outside_its_box_and_the_box_is_reached(points, shear, scale):
    matrix = (1.0, shear, 0.5, scale, 3.0, -2.0)
    for curve in (Bezier(tuple(points)), Arc(points[0], points[1], points[-1] * 1j, shear, scale + 4)):
        outline = parse_path("M0 0h1")[0].__class__((curve,), False)
        x0, y0, x1, y1 = fill_box([outline], matrix)
        z = moved(matrix, curve.at(np.linspace(0, 1, 3001)))
        inner = (z.real.min(), z.imag.min(), z.real.max(), z.imag.max())
        assert x0 <= inner[0] + 1e-6 and y0 <= inner[1] + 1e-6 and x1 >= inner[2] - 1e-6 and y1 >= inner[3] - 1e-6
        assert (x0, y0, x1, y1) == pytest.approx(inner, abs=0.05)


def test_matrices_multiply_as_transforms_nest():
    first, second = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (0.5, -1.0, 2.0, 1.0, -3.0, 7.0)
    z = np.array([1 + 2j, -3 + 0.5j])
    assert np.allclose(moved(times(first, second), z), moved(first, moved(second, z)))


FOX = f"""<svg {NS} xmlns:inkscape="http://www.inkscape.org/namespaces/inkscape" viewBox="0 0 100 100">
<g id="layer1"><g id="head" inkscape:label="Head of it"><path class="fur" d="M10 10h40v30h-40z"/>
<circle class="eye" cx="20" cy="20" r="4"/><circle class="eye" cx="40" cy="20" r="4"/></g>
<g class="tail-tip"><title>The tail</title><rect x="60" y="50" width="30" height="40"/></g>
<path id="path12" d="M5 60h30v30h-30z"/></g></svg>"""


def detect(folder, text=FOX, size=(200, 200), region=None, **settings):
    if text is not None:
        (folder / "fox.svg").write_text(text)
    detector = SvgConfig(**settings).build(DetectorContext(folder, "micro", 9))
    image = Image.new("RGB", size)
    view = View(image, region or (0.0, 0.0, float(size[0]), float(size[1])), Item(Folder(folder), "fox.png"))
    return detector.detect(view)


def test_outermost_groups_with_labels_and_shares(tmp_path):
    found = detect(tmp_path)
    assert [(part.label, part.box) for part in found] == [
        ("Head of it", (20.0, 20.0, 100.0, 80.0)),
        ("The tail", (120.0, 100.0, 180.0, 180.0)),
        ("part", (10.0, 120.0, 70.0, 180.0)),
    ]
    assert [part.score for part in found] == pytest.approx([0.12, 0.12, 0.09])


def test_selectors(tmp_path):
    def boxes(selectors, **more):
        return [part.box for part in detect(tmp_path, parts=selectors, **more)]

    assert boxes("#head") == [(20.0, 20.0, 100.0, 80.0)]
    assert boxes(".eye", min_fraction=0) == [(32.0, 32.0, 48.0, 48.0), (72.0, 32.0, 88.0, 48.0)]
    assert boxes("[label=Head of it]") == boxes('[label="Head of it"]') == boxes(["#head"])
    assert len(boxes("*", min_fraction=0)) == 5 and len(boxes("circle, rect", min_fraction=0)) == 3
    assert boxes("#gone") == []
    for wrong in ("#", "..a", "[x]", "a b"):
        with pytest.raises(ValidationError, match="is no selector"):
            SvgConfig(parts=wrong)


def test_tiny_parts_join_their_neighbours_and_backgrounds_are_left_out(tmp_path):
    found = detect(tmp_path, parts="*", min_fraction=0.01)
    assert len(found) == 3 and found[0].box == (20.0, 20.0, 100.0, 80.0)
    page = FOX.replace('<g id="layer1">', '<rect id="page" width="100" height="100"/><g id="layer1">')
    assert [part.label for part in detect(tmp_path, page, parts="#page,#head")] == ["Head of it"]
    assert len(detect(tmp_path, page, parts="#page,#head", max_fraction=1)) == 2


def test_what_is_tiny_and_alone_is_left_out():
    large, near, far = (0.0, 0.0, 50.0, 50.0), (52.0, 10.0, 54.0, 12.0), (90.0, 90.0, 92.0, 92.0)
    assert joined([(large, "a"), (near, "b"), (far, "c")], 100.0) == [((0.0, 0.0, 54.0, 50.0), "a")]
    assert joined([], 10.0) == []


boxes_strategy = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 30), st.integers(1, 30)).map(
        lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
    ),
    max_size=8,
)


@given(boxes_strategy, st.integers(0, 400))
def test_joined_parts_are_large_enough_and_cover_the_large_ones(boxes, least):
    result = joined([(box, "x") for box in boxes], float(least))
    for box, _ in result:
        assert (box[2] - box[0]) * (box[3] - box[1]) >= least
    for box in boxes:
        if (box[2] - box[0]) * (box[3] - box[1]) >= least:
            assert any(union([box, other]) == other for other, _ in result)


def test_regions_no_file_and_inputs(tmp_path):
    assert detect(tmp_path, None) == []
    (part,) = detect(tmp_path, region=(0.0, 0.0, 100.0, 100.0), parts="#head")
    assert part.box == (20.0, 20.0, 100.0, 80.0) and part.score == pytest.approx(80 * 60 / 100**2)
    detector = SvgConfig().build(DetectorContext(tmp_path, "micro", 9))
    assert detector.inputs(Item(Folder(tmp_path), "fox.png")) == FOX.encode()
    assert detector.inputs(Item(Folder(tmp_path), "owl.png")) == b""


def test_labels_and_matches():
    assert label_of(Element("g", {"id": "left-ear_tip"})) == "left ear tip"
    for name in ("path123", "g12-3", "Layer_1", "rect77", "3"):
        assert label_of(Element("g", {"id": name})) == "part"
    assert not matches(Element("g", {}), "*") and matches(Element("path", {}), "path")


BILLION = (
    '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>'
    f'<svg {NS} viewBox="0 0 9 9"><text>&b;</text></svg>'
)
EXTERNAL = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg {NS} viewBox="0 0 9 9">&x;</svg>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BILLION.encode(), r"fox\.svg: declares the entity 'a'; entities are refused"),
        (EXTERNAL.encode(), r"declares the entity 'x'"),
        (b"", r"fox\.svg:1: not well-formed SVG \(no element found\)"),
        (b"<svg>\n<g>\n</svg>", r"fox\.svg:3: not well-formed SVG \(mismatched tag\)"),
        (b"<svg>&nbsp;</svg>", r"fox\.svg:1: not well-formed SVG \(undefined entity\)"),
        (b"<html/>", r"not an SVG file \(its root is <html>\)"),
        (b"\x89PNG\r\n", r"not well-formed SVG"),
        (b'<?xml version="1.0" encoding="none-such"?><svg/>', r"not well-formed SVG \(unknown encoding\)"),
        (b"\x1f\x8bnonsense", r"damaged gzip data"),
        (b"<svg>" + b"<g>" * 200 + b"</g>" * 200 + b"</svg>", r"the limits are 100000 elements, 128 deep"),
    ],
)
def test_unsafe_and_broken_files(data, message):
    with pytest.raises(DataError, match=message):
        parse(data, "fox.svg")


def test_size_limits(monkeypatch):
    monkeypatch.setattr(svg_document, "MAX_BYTES", 1000)
    big = f"<svg {NS}>{' ' * 2000}</svg>".encode()
    for data in (big, gzip.compress(big)):
        with pytest.raises(DataError, match=r"bytes of SVG, the limit is 1000"):
            parse(data, "fox.svg")
    small = f'<svg {NS} viewBox="0 0 1 1"/>'.encode()
    assert parse(gzip.compress(small), "fox.svg").root.name == "svg"


def test_files_that_multiply_themselves_end(monkeypatch):
    loop = f'<svg {NS} viewBox="0 0 9 9"><g id="a"><use href="#a"/><rect width="5" height="5"/></g></svg>'
    assert laid(loop, 90, 90) == (0.0, 0.0, 50.0, 50.0)
    monkeypatch.setattr(svg_geometry, "MAX_COPIES", 500)
    levels = "".join(f'<g id="g{k}">' + f'<use href="#g{k + 1}"/>' * 10 + "</g>" for k in range(8))
    bomb = (
        f'<svg {NS} viewBox="0 0 9 9"><defs>{levels}<rect id="g8" width="5" height="5"/></defs><use href="#g0"/></svg>'
    )
    with pytest.raises(DataError, match="'use' multiplies its elements beyond 500"):
        laid(bomb, 90, 90)
