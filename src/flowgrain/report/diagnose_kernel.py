"""The local neural tangent kernel on the page of a diagnosis: from the data's interference to that of gradients."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from flowgrain.report.canvas import Style, Theme, render
from flowgrain.report.diagnose_figures import LevelCurve, MatrixColumn, level_figure, matrix_figure
from flowgrain.report.diagnose_values import NO_WEIGHT, Values, curve, estimate, matrix, share
from flowgrain.report.figures import MARKERS
from flowgrain.report.page import Block, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.pictures import Drawing
from flowgrain.report.wording import NONE, counted, listed, number, whole_percent


def sections(values: Values) -> tuple[Section, ...]:
    """The part of the page that comes of the section ``kernel``."""
    blocks: tuple[Block, ...] = (
        *(Paragraph(text) for text in finding(values)),
        _matrices(values),
        _signs(values),
        _numbers(values),
        *_spectra(values),
        _how(values),
    )
    lead = (
        "How the network turns the groups' errors at a point into changes of the adapter, and whether it keeps signs."
    )
    return (Section("kernel", "The local kernel", lead, blocks),)


def finding(values: Values) -> list[str]:
    """Whether data interference tells the interaction of gradients, within the interval."""
    last = values["points"][-1]
    told, at_chance = [], []
    for row in last["levels"]:
        found = _one(row["sign_agreement_all"])
        above = found["low"] is not None and found["low"] > 0.5
        (told if above else at_chance).append(f"t = {row['t']:g}: {share(found)}")
    lines = []
    if told:
        lines.append(
            f"Data interference and gradient interaction of {last['point']} have one sign more often than chance "
            f"(1/2) at {listed(told)}."
        )
    if at_chance:
        lines.append(f"No more often than chance, as far as the interval says, at {listed(at_chance)}.")
    return [" ".join(lines)]


def _one(found: Values) -> dict[str, float | None]:
    return {key: found[key] if found[key] is None else found[key][0] for key in ("mean", "low", "high")}


def _columns(rows: Sequence[Values]) -> list[MatrixColumn]:
    """A column a noise level, with what the cross terms of Eq. 45 are beside the diagonal ones, weights included."""
    columns = []
    for row in rows:
        size = range(len(row["weighted"]))
        own = sum(row["weighted"][i][i] for i in size)
        cross = sum(row["weighted"][i][j] for i in size for j in size if i != j) / own if own else 0.0
        faint = abs(cross) < NO_WEIGHT
        columns.append(
            MatrixColumn(f"t = {row['t']:g}", "none in loss" if faint else f"cross {number(cross, 2, True)}", faint)
        )
    return columns


def _matrices(values: Values) -> FigureRow:
    points, levels = values["points"], values["level_names"]
    names, matrices = [], []
    for point in points:
        names += [f"{point['point']} data", f"{point['point']} gradients"]
        for key in ("omega_cosine", "theta_cosine"):
            matrices.append([matrix(row[key], 1.0) for row in point["levels"]])
    columns = _columns(points[-1]["levels"])
    drawing = matrix_figure(
        "Cosines of residuals and of the gradients they cause",
        levels,
        columns,
        names,
        matrices,
        ("opposite", "same way"),
    )
    told = "; ".join(finding(values))
    return FigureRow(
        "From the data's matrix to the gradients'.",
        "At the same points: the cosine of two levels' residuals (rows 'data') and of the changes of the adapter that "
        "these residuals ask for (rows 'gradients', Delta_a' Theta Delta_b of Eq. 45 over its diagonal). If the kernel "
        "did nothing but scale, the rows would be alike. Blue: the same way; orange: opposite. A number stands only "
        "where its 95 % interval by picture excludes 0. Above each column: all cross terms over all diagonal ones with "
        "the weights alpha_a alpha_b, at the last checkpoint; faint where they are nothing, so that the interaction "
        "is no part of the loss.",
        (Figure(drawing, f"Heat maps of cosines by noise level and checkpoint. {told}"),),
    )


def _signs(values: Values) -> FigureRow:
    last = values["points"][-1]
    rows = last["levels"]
    levels = [row["t"] for row in rows]
    names = values["level_names"]
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    curves = [
        curve(f"{names[i]}-{names[j]}", [_entry(row["sign_agreement"], i, j) for row in rows], Style(place, place))
        for place, (i, j) in enumerate(pairs)
    ]
    every = curve("all pairs", [_one(row["sign_agreement_all"]) for row in rows], Style(None, len(pairs)))
    speed = [
        curve(name, [_element(row["rayleigh"], place) for row in rows], Style(3 + place, place))
        for place, name in enumerate(names)
    ]
    half = LevelCurve("chance", [0.5] * len(levels), [None] * len(levels), [None] * len(levels), Style(None, 5))
    return FigureRow(
        "Does the kernel keep signs?",
        "Left: share of points at which residuals and gradients of a pair interact with the same sign; 1/2 is "
        "chance, 1 "
        "is what 'data interference governs gradients' would need. A kernel keeps no signs in general. Right: how fast "
        "the network moves along each level's residual (Rayleigh quotient), which the paper's E.5 expects to rise at "
        "noise levels matched to a level. Upright lines: 95 % intervals by picture.",
        (
            Figure(
                level_figure("Same sign", levels, [*curves, every, half], "share of points"),
                "Share of points with the same sign by noise level: "
                + ", ".join(f"t = {row['t']:g}: {share(_one(row['sign_agreement_all']))}" for row in rows),
            ),
            Figure(
                level_figure("Speed along the residual", levels, speed, "Delta' Theta Delta / |Delta|²"),
                "Rayleigh quotient of each level's residual by noise level.",
            ),
        ),
    )


def _entry(found: Values, i: int, j: int) -> dict[str, float | None]:
    return {key: None if found[key][i][j] is None else found[key][i][j] for key in ("mean", "low", "high")}


def _element(found: Values, i: int) -> dict[str, float | None]:
    return {key: found[key][i] for key in ("mean", "low", "high")}


def _numbers(values: Values) -> Table:
    rows = []
    for point in values["points"]:
        for row in point["levels"]:
            least = min((value for value in row["dominance"] if value is not None), default=None)
            rows.append(
                (
                    f"{point['point']}, t = {row['t']:g}",
                    NONE if least is None else number(least, 2),
                    _short(row["condition"]),
                    _short(row["condition_angles"]),
                    estimate(_one(row["sign_agreement_all"])),
                )
            )
    return Table(
        "The level-by-level matrix in numbers.",
        f"Of the mean of Delta_a' Theta Delta_b over {counted(values['queries_by_level'], 'point')} a noise level. "
        "Least diagonal dominance: above 1 every level's own term outweighs its cross terms. Condition number: of the "
        "matrix (sizes and angles) and of its cosines (angles alone); 1 is best, infinite where two levels are one. "
        "That either predicts faster training is a heuristic of the paper (E.5).",
        ("state", "least dominance", "condition", "of angles", "same sign"),
        tuple(rows),
        numeric=frozenset({1, 2, 3}),
    )


def _short(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _spectra(values: Values) -> tuple[Block, ...]:
    found = [(point["point"], point["spectrum"]) for point in values["points"] if point["spectrum"] is not None]
    if not found:
        why = values["points"][-1].get("why", "it was not measured")
        return (Paragraph(f"No spectrum: {why}.", "note"),)
    last = found[-1][1]
    worst = max(value for _, spectrum in found for value in spectrum["residuals"])
    rows = tuple(
        (
            f"{name}, {entry['level']}",
            whole_percent(entry["share_in_leading"]),
            f"{spectrum['trace']:.3g} ± {spectrum['trace_error']:.1g}",
            number(spectrum["effective_rank"], 1),
        )
        for name, spectrum in found
        for entry in spectrum["inputs"]
    )
    return (
        FigureRow(
            "Leading eigenvalues.",
            f"Of the kernel over {counted(len(last['inputs']), 'input')} at t = {last['t']:g}, one of each level "
            f"({last['size']} outputs). What lies along the first directions is learned first, in proportion to the "
            "eigenvalue; a steep fall means that few directions are. Differences of two checkpoints are how far the "
            "kernel moved: it is not constant while training. These inputs are few; another choice gives other values.",
            (Figure(_spectrum_figure(found), _spectrum_alt(found)),),
        ),
        Table(
            "What the leading directions hold.",
            f"Share of each input's training error along the {last['asked']} leading directions (by chance it would be "
            f"{100 * last['chance_share']:.2g} %), the kernel's trace (with its standard error), and trace over "
            "largest "
            "eigenvalue: how many directions of full speed the kernel is worth. Largest relative residual of an "
            f"eigenvalue: {worst:.1e}.",
            ("state and input", "share of the error", "trace", "directions"),
            rows,
            numeric=frozenset({1, 2, 3}),
        ),
    )


def _spectrum_figure(found: Sequence[tuple[str, Values]]) -> Drawing:
    def draw(axes: Axes, theme: Theme) -> None:
        for place, (name, spectrum) in enumerate(found):
            ranks = range(1, len(spectrum["values"]) + 1)
            colour = Style(place).shade(theme)
            axes.plot(ranks, spectrum["values"], color=colour, marker=MARKERS[place], label=name)
        axes.set(xlabel="rank", ylabel="eigenvalue", yscale="log")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks(range(1, max(len(spectrum["values"]) for _, spectrum in found) + 1))
        axes.legend(frameon=False)

    return render("Leading eigenvalues", draw)


def _spectrum_alt(found: Sequence[tuple[str, Values]]) -> str:
    parts = [f"{name}: {', '.join(f'{value:.3g}' for value in spectrum['values'])}" for name, spectrum in found]
    return f"Leading eigenvalues of the kernel. {'; '.join(parts)}."


def _how(values: Values) -> Details:
    shape = "x".join(map(str, values["shape"]))
    text = (
        f"In the space of the {number(values['parameters'], 0)} adapter parameters, without autocast and without a "
        f"caption. Level matrix: {counted(values['queries_by_level'], 'training latent')} of size {shape}, noised to "
        f"each level; the levels' fields there come from {counted(values['latents'], 'latent')}. One forward pass "
        "and one "
        "backward pass a level each. Spectrum: Lanczos with products J (J' w), a backward and a forward-mode pass; the "
        "trace by random signs. Row lengths of DoRA count as constants, as in training. Only the largest size of "
        "latents is looked at."
    )
    return Details("How it was measured", (Paragraph(text, "note"),))
