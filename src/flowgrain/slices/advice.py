"""Warnings: where a choice wastes data, with the numbers, examples and what to do.

Each check looks at the statistics of a finished data set and says nothing where all is well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flowgrain.data.tuples import TupleConfig
from flowgrain.slices.duplicates import NEAR_BITS, NearGroups
from flowgrain.slices.finding import WHOLE_IMAGE
from flowgrain.slices.statistics import CUT_AWAY, EXAMPLES, Example, LevelStatistics, RootView, Statistics

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
MANY_REGIONLESS = 0.05
THIN_BUCKETS = 0.05
"""Part of the slices that lie in buckets of fewer roots than an update takes."""
UPDATE_ROOTS = TupleConfig().batch_size
_TOO_SMALL = ("max_upscale", "lanczos_max", "min_side")


@dataclass(frozen=True)
class Advice:
    """One warning."""

    code: str
    """Short stable name of the kind of warning."""
    title: str
    numbers: str
    remedy: str
    examples: tuple[Example, ...] = ()


def advise(
    statistics: Statistics, groups: NearGroups, twins: tuple[RootView, ...] = (), factor: float = 1.0
) -> tuple[Advice, ...]:
    """Every warning, the gravest kind first.

    ``groups`` are the near-duplicates across images, ``twins`` roots of the largest one. ``factor``: how many times
    more images there are than were looked at, where they are a sample.
    """
    return tuple(
        [
            *_unused_images(statistics),
            *_near_duplicates(statistics, groups, twins),
            *_no_region(statistics),
            *_uncaptioned(statistics),
            *(found for level in statistics.levels.values() for found in _of_level(statistics, level)),
            *_thin_buckets(statistics, factor),
        ]
    )


def _of_level(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
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


def _unused_images(statistics: Statistics) -> Iterator[Advice]:
    count = statistics.faults.total() + statistics.empty
    if not count:
        return
    kinds = [f"{_count(number)} {code}" for code, number in statistics.faults.most_common()]
    if statistics.empty:
        kinds.append(f"{_count(statistics.empty)} of which no box could be used")
    names = ", ".join(f"{unused.image} ({unused.reason})" for unused in statistics.unused[:3])
    yield Advice(
        "unused_images",
        f"{_count(count)} of {_count(statistics.images)} images gave no slice",
        f"{', '.join(kinds)}. For example: {names}.",
        "Look at the list under “Not used”: it names each with its reason and what to do.",
    )


def _near_duplicates(statistics: Statistics, groups: NearGroups, twins: tuple[RootView, ...]) -> Iterator[Advice]:
    if not groups.count:
        return
    examples = tuple(Example(view, view.slices[0], "") for view in twins[:EXAMPLES])
    yield Advice(
        "near_duplicates",
        f"{_count(groups.pictures)} pictures look like another one",
        f"They form {_count(groups.count)} groups (perceptual hashes that differ in at most {NEAR_BITS} of 64 bits); "
        f"a motif that is there {groups.groups[0].size} times counts {groups.groups[0].size} times in training. "
        f"One of each group kept, {_count(groups.surplus)} of {_count(statistics.roots)} roots would go.",
        "Look at the groups under “Near-duplicates” and remove all but the best of those that show the same.",
        examples,
    )


def _no_region(statistics: Statistics) -> Iterator[Advice]:
    count, usable = statistics.regionless, statistics.images - statistics.faults.total()
    if count <= MANY_REGIONLESS * usable:
        return
    kept = statistics.config.no_region == WHOLE_IMAGE
    level = statistics.first_level
    examples = [e for e in level.examples_of("least sharp") if e.record and e.record.detector == WHOLE_IMAGE]
    yield Advice(
        "no_region",
        f"no region was found in {_share(count, usable)} of the images",
        f"{_count(count)} of {_count(usable)} images "
        + ("became a root as a whole, beside roots that are cut-outs." if kept else "were left out (no_region: skip)."),
        f"Try another detector for level {level.name}, lower its min_score, or "
        + ("leave such images out with no_region=skip." if kept else "keep them whole with no_region=whole_image."),
        tuple(replace(example, note="") for example in examples[:EXAMPLES]),
    )


def _uncaptioned(statistics: Statistics) -> Iterator[Advice]:
    missing = {level.name: level.uncaptioned for level in statistics.levels.values() if level.uncaptioned}
    count = sum(missing.values())
    if not count:
        return
    first = statistics.levels[next(iter(missing))]
    yield Advice(
        "uncaptioned",
        f"{_share(count, statistics.slices)} of the slices have no caption",
        f"{_count(count)} of {_count(statistics.slices)}: "
        + ", ".join(f"{name} {_count(number)}" for name, number in missing.items())
        + ".",
        "Write captions beside the images (fox.txt beside fox.png), set a trigger word, or let a model write them "
        "(docs/slices.md, Captions).",
        first.examples_of("uncaptioned"),
    )


def _few_slices(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.roots >= THIN_LEVEL * statistics.roots and level.slices:
        return
    reasons = ", ".join(f"{code} {_count(number)}" for code, number in level.rejects.most_common(4))
    found = f"Its detectors found {_count(level.found.total())} boxes"
    has = "no slice" if not level.slices else f"slices in {_share(level.roots, statistics.roots)} of the roots only"
    code = level.rejects.most_common(1)[0][0] if level.rejects else ""
    yield Advice(
        "few_slices" if level.slices else "no_slices",
        f"level {level.name} has {has}",
        f"{_count(level.slices)} slices of {_count(level.roots)} roots. {found}"
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
    reasons = ", ".join(f"{code} {_count(number)}" for code, number in counts.items())
    yield Advice(
        "too_small",
        f"{_share(small, small + level.slices)} of the boxes of level {level.name} are too small",
        f"{_count(small)} boxes were refused ({reasons}), {_count(level.slices)} became slices.",
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
    remedy = "Drop them with dedupe_against_macro=finer."
    if statistics.config.dedupe_against_macro == "finer":
        remedy = "Lower iou_threshold, or let the level's boxes be smaller (expand, fraction)."
    yield Advice(
        "near_macro",
        f"{_share(level.near_macro, level.slices)} of the slices of level {level.name} repeat the whole",
        f"{_count(level.near_macro_by_box)} of {_count(level.slices)} boxes overlap the root's coarsest one by an IoU "
        f"above {threshold:g}, {_count(by_look)} others look like it. The same is trained on twice under two names.",
        remedy,
        level.examples_of("near macro"),
    )


def _repeats(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.repeats <= MANY_REPEATS * level.slices:
        return
    yield Advice(
        "repeats",
        f"{_share(level.repeats, level.slices)} of the slices of level {level.name} look like another of their root",
        f"{_count(level.repeats)} of {_count(level.slices)} slices differ from an earlier one of the same root in at "
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
        f"{_share(gone, gone + level.slices)} of the boxes of level {level.name} gave way to finer ones",
        f"{_count(gone)} boxes were suppressed, {_count(level.slices)} became slices: this level and a finer one often "
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
        f"{_share(gone, gone + level.slices)} of the boxes of level {level.name} are beyond max_instances",
        f"{_count(gone)} boxes were found and not used, {_count(level.slices)} became slices.",
        f"Raise levels.{level.name}.max_instances if the boxes are good; raise min_score if they are not.",
        level.examples_of("reject max_instances"),
    )


def _cut_away(level: LevelStatistics) -> Iterator[Advice]:
    if level.cut_away <= MANY_CUT_AWAY * level.slices:
        return
    yield Advice(
        "cut_away",
        f"framing cuts much of {_share(level.cut_away, level.slices)} of the boxes of level {level.name}",
        f"{_count(level.cut_away)} of {_count(level.slices)} slices show less than {1 - CUT_AWAY:.0%} of their boxes: "
        "no bucket has their shape, or they are cropped at native scale.",
        "Allow more shapes (targets.max_aspect, a smaller targets.step, or a list of sizes), or lower max_downscale.",
        level.examples_of("cut away"),
    )


def _enlarged(level: LevelStatistics) -> Iterator[Advice]:
    count = level.enlargements.total - level.enlargements.below(ENLARGED)
    if count <= MANY_ENLARGED * level.slices:
        return
    by = ", ".join(f"{name or 'unknown'} {_count(number)}" for name, number in level.upscalers.most_common())
    yield Advice(
        "enlarged",
        f"{_share(count, level.slices)} of the slices of level {level.name} are enlarged",
        f"{_count(count)} of {_count(level.slices)} by more than ×{ENLARGED:g}, "
        f"×{level.enlargements.quantile(0.5):.2f} in the median and ×{level.enlargements.greatest:.2f} at most (by {by}). Enlarged pictures teach blur.",
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
        f"{_share(count, level.slices)} of the slices of level {level.name} are blurred or empty",
        f"{_count(count)} of {_count(level.slices)} have less than a quarter of the level's median sharpness "
        f"({level.sharpness.quantile(0.5):.1f}).",
        "Look at the least sharp under “Sizes and sharpness”: remove blurred sources; where the slices show empty "
        "ground, choose another detector or a higher min_score.",
        level.examples_of("least sharp")[:EXAMPLES],
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
                f"level {level.name} falls back on its second choice in {_share(others, level.slices)} of its slices",
                f"Detector {kinds[0]} found {_count(level.detectors[kinds[0]])} of {_count(level.slices)}; the rest: "
                + ", ".join(f"{kind} {_count(level.detectors[kind])}" for kind in kinds[1:])
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
            f"{_count(statistics.images)} images were looked at; "
            + (f"the level's {_count(level.slices)} slices are by other detectors." if level.slices else "no box."),
            "Check its model, labels or phrases on one image (flowgrain overlay --rejects), or remove it.",
        )


def _captions(statistics: Statistics, level: LevelStatistics) -> Iterator[Advice]:
    if level.slices >= FEW_FOR_CAPTIONS and level.uncaptioned < level.slices:
        text, count = next((text, count) for text, count in level.captions.most_common(2) if text)
        if count > ONE_CAPTION * level.slices:
            yield Advice(
                "one_caption",
                f"{_share(count, level.slices)} of the slices of level {level.name} have the same caption",
                f"{_count(count)} of {_count(level.slices)}: “{text}”. Nothing tells them apart in training.",
                "Caption each image by itself; a trigger word belongs beside that, not in its place.",
            )
    if level.same_caption > MANY_SAME_CAPTION * level.slices:
        name = level.name
        yield Advice(
            "same_caption",
            f"{_share(level.same_caption, level.slices)} of the slices of level {name} are captioned like the whole",
            f"{_count(level.same_caption)} of {_count(level.slices)} have exactly the caption of their root's coarsest "
            "slice: what does not say that it is a close-up teaches close-ups of everything.",
            f"Use a template such as levels.{name}.caption='close-up of {{caption}}', write captions of their own "
            f"(fox.{name}.txt), or let a model write them.",
            level.examples_of("same caption"),
        )


def _thin_buckets(statistics: Statistics, factor: float) -> Iterator[Advice]:
    thin = {size for size, roots in statistics.bucket_roots.items() if roots * factor < UPDATE_ROOTS}
    inside = sum(level.buckets[size] for level in statistics.levels.values() for size in thin)
    if statistics.roots * factor < UPDATE_ROOTS or inside <= THIN_BUCKETS * statistics.slices:
        return
    sizes = sorted(thin, key=lambda size: (statistics.bucket_roots[size], size))
    some = ", ".join(f"{w}×{h} ({statistics.bucket_roots[w, h]})" for w, h in sizes[:6])
    yield Advice(
        "thin_buckets",
        f"{_count(len(thin))} of {_count(len(statistics.bucket_roots))} buckets have fewer roots than one update takes",
        f"They hold {_share(inside, statistics.slices)} of the slices; an update takes {UPDATE_ROOTS} roots by default."
        f" Sizes with their number of roots: {some}{', …' if len(sizes) > 6 else ''}. Slices of rare sizes run in small "
        "batches, which is slow.",
        "Use fewer sizes (a greater targets.step, a smaller targets.max_aspect, or a short list), or train with "
        "tuples.packing=fill.",
    )


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u2009")


def _share(part: int, whole: int) -> str:
    """Per cent, never rounded to none or all."""
    if not whole or part in (0, whole):
        return f"{100 * part // max(whole, 1)}\u00a0%"
    percent = 100 * part / whole
    return "less than 1\u00a0%" if percent < 1 else f"{min(round(percent), 99)}\u00a0%"
