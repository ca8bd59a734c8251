"""A preview of noise levels and loss weights in words: JSON for programs, sentences and cells of tables."""

import json
from dataclasses import asdict, fields

from flowgrain.report.wording import HARD_SPACE, MINUS, NONE, listed, number
from flowgrain.train.time_preview import LevelTimes, Setting, SizeTimes, TimePreview
from flowgrain.train.weighted_laws import LawSummary

WITHOUT = "without modulation"
TIME_COLUMNS = ("level", "size", "tokens", "mu", "Delta", "mean t", "5 %", "50 %", "95 %", "t < .5", "t > .9")
WEIGHT_COLUMNS = (
    "level", "slices", "lambda", "planned share", "mean weight", "(without)", "loss share", "(without)", "falls above",
)  # fmt: skip


def as_json(preview: TimePreview) -> str:
    """All numbers."""
    laws = {"modulated", "unmodulated"}
    facts = {field.name: getattr(preview, field.name) for field in fields(preview) if field.name not in laws}
    facts["levels"] = [asdict(level) for level in preview.levels]
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def modulations(preview: TimePreview) -> list[str]:
    """What differs by granularity, each with its setting; empty where nothing does."""
    values: dict[Setting, tuple[str, list[str]]] = {
        "time.granularity_shift": ("noise levels", [_signed(level.granularity_shift) for level in preview.levels]),
        "weighting.gamma": (
            "the weight of the loss over noise levels",
            ["none" if level.gamma is None else f"{level.gamma:g}" for level in preview.levels],
        ),
        "tuples.lambdas": ("the weight of whole levels", [f"{level.weight.lambda_k:g}" for level in preview.levels]),
    }
    found = []
    for setting in preview.modulates:
        what, cells = values[setting]
        named = ", ".join(f"{level.granularity} {cell}" for level, cell in zip(preview.levels, cells, strict=True))
        found.append(f"{what}, by {setting} ({named})")
    return found


def headline(preview: TimePreview) -> str:
    """What granularity changes in training, or plainly that it changes nothing."""
    found = modulations(preview)
    if found:
        return f"Granularity modulates {listed(found)}."
    law = (
        "noise levels are uniform"
        if preview.law == "uniform"
        else "one law of noise levels serves all (time.granularity_shift is 0)"
    )
    weight = {
        "none": "every noise level weighs 1 (weighting.kind none)",
        "min_snr": "one gamma serves all (weighting.gamma)",
        "debiased": "weighting.kind debiased is the same for all",
    }[preview.weighting]
    return f"Nothing is modulated: {law}, {weight}."


def remarks(preview: TimePreview) -> list[str]:
    """What else a reader should see in the numbers, one sentence each."""
    return [*_order(preview), *_resolution(preview), *_weights(preview), *_measured(preview)]


def time_rows(preview: TimePreview) -> list[tuple[str, ...]]:
    """Cells under TIME_COLUMNS: each level at its commonest size, then at the smallest and largest if they differ.

    Where granularity shifts the law, the row under it is the law without modulation.
    """
    rows = []
    for level in preview.levels:
        for name, size in named_sizes(level):
            shift = NONE if size.resolution_shift is None else number(size.resolution_shift, 2)
            place = (name, pixels(size), str(size.tokens), shift)
            if level.granularity_shift:
                rows.append((*place, _signed(level.granularity_shift), *_law_cells(size.modulated)))
            rows.append((*place, NONE if preview.law == "uniform" else "0", *_law_cells(size.unmodulated)))
    return rows


def weight_rows(preview: TimePreview) -> list[tuple[str, ...]]:
    """Cells under WEIGHT_COLUMNS, a row for each level."""
    rows = []
    for level in preview.levels:
        weight = level.weight
        falls = NONE
        if weight.falls_above_snr is not None and weight.falls_below_t is not None:
            falls = f"SNR {weight.falls_above_snr:g} (t < {number(weight.falls_below_t, 3)})"
        rows.append(
            (
                level.granularity, NONE if level.slices is None else str(level.slices), f"{weight.lambda_k:g}",
                percent_of(weight.planned_share), number(weight.mean_weight, 3),
                number(weight.mean_weight_unmodulated, 3), percent_of(weight.loss_share),
                percent_of(weight.loss_share_unmodulated), falls,
            )
        )  # fmt: skip
    return rows


def any_shift(preview: TimePreview) -> bool:
    """Whether granularity moves the law of noise levels."""
    return "time.granularity_shift" in preview.modulates


def _measured(preview: TimePreview) -> list[str]:
    if not preview.measured:
        return []
    return [
        "These are the laws and weights of the start: modulation.kind is measured, and training moves them by what it "
        "measures (docs/modulation.md)."
    ]


def _order(preview: TimePreview) -> list[str]:
    if len(preview.levels) < 2:
        return []
    ends = sorted((preview.levels[0], preview.levels[-1]), key=lambda level: -level.commonest.modulated.mean)
    (noisier, cleaner), (high, low) = ends, [level.commonest.modulated.mean for level in ends]
    if high - low < 0.001:
        return []
    plain = [number(level.commonest.unmodulated.mean, 3) for level in ends]
    without = f"; {WITHOUT} {plain[0]} and {plain[1]}" if any_shift(preview) else ""
    cause = "" if any_shift(preview) else ", by their sizes alone (time.resolution_shift)"
    return [
        f"{noisier.granularity} slices are trained at noisier levels than {cleaner.granularity} slices{cause}: mean t "
        f"{number(high, 3)} against {number(low, 3)}{without}."
    ]


def _resolution(preview: TimePreview) -> list[str]:
    found = []
    shifts = [abs(level.commonest.resolution_shift or 0.0) for level in preview.levels]
    largest = max(abs(level.granularity_shift) for level in preview.levels)
    if largest and min(shifts) > largest:
        last = preview.levels[-1]
        found.append(
            f"The resolution shift (mu {number(min(shifts), 2)} or more) outweighs the granularity shift (at most "
            f"{largest:g}): {last.granularity} slices too have a median t of "
            f"{number(last.commonest.modulated.median, 2)}."
        )
    for level in preview.levels:
        if level.other_sizes:
            sizes = sorted((level.commonest, *level.other_sizes), key=lambda size: size.tokens)
            small, large = sizes[0], sizes[-1]
            found.append(
                f"{level.granularity}: the size matters too: mean t {number(small.modulated.mean, 3)} at "
                f"{pixels(small)}, {number(large.modulated.mean, 3)} at {pixels(large)}."
            )
    return found


def _weights(preview: TimePreview) -> list[str]:
    if preview.weighting == "none":
        return []
    means = ", ".join(f"{level.granularity} {number(level.weight.mean_weight, 3)}" for level in preview.levels)
    return [f"Mean weight of the loss over the noise levels drawn: {means}."]


def named_sizes(level: LevelTimes) -> list[tuple[str, SizeTimes]]:
    """The commonest size under the level's name, then the smallest and the largest where they have rows."""
    named: list[tuple[str, SizeTimes]] = [(level.granularity, level.commonest)]
    for size in level.other_sizes:
        named.append(("smallest" if size.tokens < level.commonest.tokens else "largest", size))
    return named


def _law_cells(law: LawSummary) -> tuple[str, ...]:
    quantiles = (number(value, 3) for value in (law.mean, law.low, law.median, law.high))
    return (*quantiles, percent_of(law.below_half), percent_of(law.above_nine_tenths))


def pixels(size: SizeTimes) -> str:
    """``1024x768``."""
    return f"{size.size[0]}x{size.size[1]}"


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", MINUS) if value else "0"


def percent_of(part: float) -> str:
    """A share of 0 to 1 as percent with one decimal."""
    return f"{number(100 * part, 1)}{HARD_SPACE}%"
