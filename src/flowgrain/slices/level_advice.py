"""Warnings about one level: too few slices, too small boxes, repetition, blur, silent detectors, poor captions.

Each check says nothing where all is well.
"""

from collections.abc import Iterator

from flowgrain.slices.advising import Advice, amount, share
from flowgrain.slices.duplicates import NEAR_BITS
from flowgrain.slices.finding import WHOLE_IMAGE
from flowgrain.slices.statistics import CUT_AWAY, EXAMPLES, LevelStatistics, Statistics

THIN_LEVEL = 0.25
"""A level is called thin where fewer of the roots have a slice of it."""
MANY_DISCARDED = 0.2
"""Part of a level's boxes that are too small beyond which a warning is due."""
MANY_SUPPRESSED = 0.25
MANY_LEFT_OUT = 0.5
"""Part of a level's boxes beyond max_instances."""
MANY_NEAR_MACRO = 0.05
MANY_REPEATS = 0.05
MANY_CUT_AWAY = 0.2
MANY_ENLARGED = 0.3
ENLARGED = 1.1
"""Scale beyond which a slice counts as enlarged here: less is not seen."""
MANY_BLURRED = 0.05
BLURRED = 0.25
"""A slice is called blurred where its sharpness is below this part of its level's median."""
MANY_SAME_CAPTION = 0.05
ONE_CAPTION = 0.5
"""Part of a level's slices that share one caption."""
FEW_FOR_CAPTIONS = 8
"""Slices below which a shared caption means nothing."""
MANY_FELL_BACK = 0.5
_TOO_SMALL = ("max_upscale", "lanczos_max", "min_side")


def advise_level(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    """The warnings about a level, the gravest kind first."""
    yield from _few_slices(statistics, level)
    yield from _too_small(level)
    yield from _near_macro(statistics, level)
    yield from _repeats(statistics, level)
    yield from _suppressed(level)
    yield from _left_out(level)
    yield from _cut_away(level)
    yield from _enlarged(level)
    yield from _blurred(level)
    yield from _detectors(statistics, level)
    yield from _captions(statistics, level)


def _few_slices(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.roots >= THIN_LEVEL * statistics.roots and level.slices:
        return
    reasons = ", ".join(f"{code} {amount(number)}" for code, number in level.rejects.most_common(4))
    found = f"Its detectors found {amount(level.found.total())} boxes"
    has = "no slice" if not level.slices else f"slices in {share(level.roots, statistics.roots)} of the roots only"
    code = level.rejects.most_common(1)[0][0] if level.rejects else ""
    yield Advice(
        "few_slices" if level.slices else "no_slices",
        f"level {level.name} has {has}",
        f"{amount(level.slices)} slices of {amount(level.roots)} roots. {found}"
        + (f", of which were refused: {reasons}." if reasons else "."),
        _few_remedy(level, code),
        level.examples_of(f"reject {code}"),
    )


def _few_remedy(level: LevelStatistics, code: str) -> str:
    if not level.rejects:
        return (
            f"Try another detector for the level, or name one to fall back on: "
            f"levels.{level.name}.detector=[FIRST, saliency]."
        )
    if code in _TOO_SMALL:
        return _small_remedy(level)
    if code == "min_score":
        return f"Lower levels.{level.name}.min_score, or try another detector."
    return "See what the codes mean under “Not used”."


def _too_small(level: LevelStatistics) -> Iterator[Advice]:
    counts = {code: level.rejects[code] for code in _TOO_SMALL if level.rejects[code]}
    small = sum(counts.values())
    if not level.slices or small <= MANY_DISCARDED * (small + level.slices):
        return
    reasons = ", ".join(f"{code} {amount(number)}" for code, number in counts.items())
    yield Advice(
        "too_small",
        f"{share(small, small + level.slices)} of the boxes of level {level.name} are too small",
        f"{amount(small)} boxes were refused ({reasons}), {amount(level.slices)} became slices.",
        _small_remedy(level),
        level.examples_of(f"reject {max(counts, key=lambda code: counts[code])}"),
    )


def _small_remedy(level: LevelStatistics) -> str:
    if level.rejects["min_side"] > level.rejects["max_upscale"] + level.rejects["lanczos_max"]:
        return f"Use larger sources, or lower levels.{level.name}.min_side if parts so small are worth showing."
    text = f"Give the level smaller sizes (levels.{level.name}.targets.resolution) or larger sources"
    if level.rejects["lanczos_max"]:
        return f"{text}; an upscaler enlarges further than interpolation may (docs/slices.md, Enlarging)."
    return f"{text}, or raise levels.{level.name}.max_upscale where an upscaler makes up the pixels."


def _near_macro(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.near_macro <= MANY_NEAR_MACRO * level.slices:
        return
    threshold = statistics.config.iou_threshold
    by_look = level.near_macro - level.near_macro_by_box
    alike = f", {amount(by_look)} more look like it" if by_look else ""
    remedy = "Drop them with dedupe_against_macro=finer."
    if statistics.config.dedupe_against_macro == "finer":
        remedy = "Lower iou_threshold, or let the level's boxes be smaller (expand, fraction)."
    yield Advice(
        "near_macro",
        f"{share(level.near_macro, level.slices)} of the slices of level {level.name} repeat the whole",
        f"{amount(level.near_macro_by_box)} of {amount(level.slices)} boxes overlap the root's coarsest one by an IoU "
        f"above {threshold:g}{alike}. The same is trained on twice under two names.",
        remedy,
        level.examples_of("near macro"),
    )


def _repeats(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.repeats <= MANY_REPEATS * level.slices:
        return
    yield Advice(
        "repeats",
        f"{share(level.repeats, level.slices)} of the slices of level {level.name} look like another of their root",
        f"{amount(level.repeats)} of {amount(level.slices)} slices differ from an earlier one of the same root in at "
        f"most {NEAR_BITS} of the 64 bits of their perceptual hashes.",
        f"Lower iou_threshold ({statistics.config.iou_threshold:g}), or let the levels' boxes differ more in size.",
        level.examples_of("repeats"),
    )


def _suppressed(level: LevelStatistics) -> Iterator[Advice]:
    gone = level.rejects["suppressed"]
    if gone <= MANY_SUPPRESSED * (gone + level.slices):
        return
    yield Advice(
        "suppressed",
        f"{share(gone, gone + level.slices)} of the boxes of level {level.name} gave way to finer ones",
        f"{amount(gone)} boxes were suppressed, {amount(level.slices)} became slices: this level and a finer one often "
        "show the same.",
        f"Make the boxes of {level.name} larger (expand, fraction) or those of the finer level smaller.",
        level.examples_of("reject suppressed"),
    )


def _left_out(level: LevelStatistics) -> Iterator[Advice]:
    gone = level.rejects["max_instances"]
    if gone <= MANY_LEFT_OUT * (gone + level.slices):
        return
    yield Advice(
        "left_out",
        f"{share(gone, gone + level.slices)} of the boxes of level {level.name} are beyond max_instances",
        f"{amount(gone)} boxes were found and not used, {amount(level.slices)} became slices.",
        f"Raise levels.{level.name}.max_instances if the boxes are good; raise min_score if they are not.",
        level.examples_of("reject max_instances"),
    )


def _cut_away(level: LevelStatistics) -> Iterator[Advice]:
    if level.cut_away <= MANY_CUT_AWAY * level.slices:
        return
    yield Advice(
        "cut_away",
        f"framing cuts much of {share(level.cut_away, level.slices)} of the boxes of level {level.name}",
        f"{amount(level.cut_away)} of {amount(level.slices)} slices show less than {1 - CUT_AWAY:.0%} of their boxes: "
        "no bucket has their shape, or they are cropped at native scale.",
        "Allow more shapes (targets.max_aspect, a smaller targets.step, or a list of sizes), or lower max_downscale.",
        level.examples_of("cut away"),
    )


def _enlarged(level: LevelStatistics) -> Iterator[Advice]:
    count = level.enlargements.total - level.enlargements.below(ENLARGED)
    if count <= MANY_ENLARGED * level.slices:
        return
    by = ", ".join(f"{name or 'unknown'} {amount(number)}" for name, number in level.upscalers.most_common())
    yield Advice(
        "enlarged",
        f"{share(count, level.slices)} of the slices of level {level.name} are enlarged",
        f"{amount(count)} of {amount(level.slices)} by more than ×{ENLARGED:g}, "
        f"×{level.enlargements.quantile(0.5):.2f} in the median and ×{level.enlargements.greatest:.2f} at most (by "
        f"{by}). Enlarged pictures teach blur.",
        f"Give the level smaller sizes (levels.{level.name}.targets.resolution), use larger sources or an upscaler, or "
        f"refuse more of them with levels.{level.name}.max_upscale.",
        level.examples_of("upscaled"),
    )


def blurred(level: LevelStatistics) -> int:
    """Slices whose sharpness is below :data:`BLURRED` of their level's median."""
    return level.sharpness.below(BLURRED * level.sharpness.quantile(0.5)) if level.sharpness.total else 0


def _blurred(level: LevelStatistics) -> Iterator[Advice]:
    count = blurred(level)
    if count <= MANY_BLURRED * level.slices:
        return
    yield Advice(
        "blurred",
        f"{share(count, level.slices)} of the slices of level {level.name} are blurred or empty",
        f"{amount(count)} of {amount(level.slices)} have less than a quarter of the level's median sharpness "
        f"({level.sharpness.quantile(0.5):.1f}).",
        "Look at the least sharp under “Sizes and sharpness”: remove blurred sources; where the slices show empty "
        "ground, choose another detector or a higher min_score.",
        level.examples_of("least sharp")[: min(EXAMPLES, count)],
    )


def _detectors(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    config = statistics.config.levels.get(level.name)
    kinds = [] if config is None else list(dict.fromkeys(str(each.kind) for each in config.detectors))
    silent = [kind for kind in kinds if not level.found[kind]]
    if len(kinds) > 1 and kinds[0] not in silent and level.slices:
        others = level.slices - level.detectors[kinds[0]] - level.detectors[WHOLE_IMAGE]
        if others > MANY_FELL_BACK * level.slices:
            yield Advice(
                "fell_back",
                f"level {level.name} falls back on its second choice in {share(others, level.slices)} of its slices",
                f"Detector {kinds[0]} found {amount(level.detectors[kinds[0]])} of {amount(level.slices)}; the rest: "
                + ", ".join(f"{kind} {amount(level.detectors[kind])}" for kind in kinds[1:])
                + ".",
                f"If the pictures hold what {kinds[0]} looks for, lower its threshold or use another model.",
            )
    if not silent or statistics.images == statistics.faults.total():
        return
    # of several detectors, one after the first that finds everything is never asked
    asked = [kind for kind in silent if kind == kinds[0] or not level.slices]
    if asked:
        yield Advice(
            "silent_detector",
            f"detector {', '.join(asked)} of level {level.name} found nothing in any image",
            f"{amount(statistics.images)} images were looked at; "
            + (f"the level's {amount(level.slices)} slices are by other detectors." if level.slices else "no box."),
            "Check its model, labels or phrases on one image (flowgrain overlay --rejects), or remove it.",
        )


def _captions(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.slices >= FEW_FOR_CAPTIONS and level.uncaptioned < level.slices:
        text, count = next((text, count) for text, count in level.captions.most_common(2) if text)
        if count > ONE_CAPTION * level.slices:
            yield Advice(
                "one_caption",
                f"{share(count, level.slices)} of the slices of level {level.name} have the same caption",
                f"{amount(count)} of {amount(level.slices)}: “{text}”. Nothing tells them apart in training.",
                "Caption each image by itself; a trigger word belongs beside that, not in its place.",
            )
    if level.same_caption > MANY_SAME_CAPTION * level.slices:
        name = level.name
        yield Advice(
            "same_caption",
            f"{share(level.same_caption, level.slices)} of the slices of level {name} are captioned like the whole",
            f"{amount(level.same_caption)} of {amount(level.slices)} have exactly the caption of their root's coarsest "
            "slice: what does not say that it is a close-up teaches close-ups of everything.",
            f"Use a template such as levels.{name}.caption='close-up of {{caption}}', write captions of their own "
            f"(fox.{name}.txt), or let a model write them.",
            level.examples_of("same caption"),
        )
