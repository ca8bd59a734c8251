"""Warnings: where a choice wastes data, with the numbers, examples and what to do."""

from collections.abc import Iterator
from dataclasses import replace

from flowgrain.data.tuples import TupleConfig
from flowgrain.slices.advising import Advice, amount, share
from flowgrain.slices.duplicates import NEAR_BITS, NearGroups
from flowgrain.slices.finding import WHOLE_IMAGE
from flowgrain.slices.level_advice import advise_level
from flowgrain.slices.statistics import EXAMPLES, Example, RootView, Statistics

MANY_REGIONLESS = 0.05
THIN_BUCKETS = 0.05
"""Part of the slices that lie in buckets of fewer roots than an update takes."""
UPDATE_ROOTS = TupleConfig().batch_size


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
            *(found for level in statistics.levels.values() for found in advise_level(statistics, level)),
            *_thin_buckets(statistics, factor),
        ]
    )


def _unused_images(statistics: Statistics) -> Iterator[Advice]:
    count = statistics.faults.total() + statistics.empty
    if not count:
        return
    kinds = [f"{amount(number)} {code}" for code, number in statistics.faults.most_common()]
    if statistics.empty:
        kinds.append(f"{amount(statistics.empty)} of which no box could be used")
    names = ", ".join(f"{unused.image} ({unused.reason})" for unused in statistics.unused[:3])
    yield Advice(
        "unused_images",
        f"{amount(count)} of {amount(statistics.images + statistics.unlisted)} images gave no slice",
        f"{', '.join(kinds)}. For example: {names}.",
        "Look at the list under “Not used”: it names each with its reason and what to do.",
    )


def _near_duplicates(statistics: Statistics, groups: NearGroups, twins: tuple[RootView, ...]) -> Iterator[Advice]:
    if not groups.count:
        return
    groups_text = f"{amount(groups.count)} group{'s' if groups.count > 1 else ''}"
    examples = tuple(Example(view, view.slices[0], "") for view in twins[:EXAMPLES])
    yield Advice(
        "near_duplicates",
        f"{amount(groups.pictures)} pictures look like another one",
        f"They form {groups_text} (perceptual hashes that differ in at most {NEAR_BITS} of 64 bits); "
        f"a motif that is there {groups.groups[0].size} times counts {groups.groups[0].size} times in training. "
        f"One of each group kept, {amount(groups.surplus)} of {amount(statistics.roots)} roots would go.",
        "Look at the groups under “Near-duplicates” and remove all but the best of those that show the same.",
        examples,
    )


def _no_region(statistics: Statistics) -> Iterator[Advice]:
    count, usable = statistics.regionless, statistics.images - statistics.faults.total() + statistics.unlisted
    if count <= MANY_REGIONLESS * usable:
        return
    kept = statistics.config.no_region == WHOLE_IMAGE
    level = statistics.first_level
    examples = [e for e in level.examples_of("least sharp") if e.record and e.record.detector == WHOLE_IMAGE]
    yield Advice(
        "no_region",
        f"no region was found in {share(count, usable)} of the images",
        f"{amount(count)} of {amount(usable)} images "
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
        f"{share(count, statistics.slices)} of the slices have no caption",
        f"{amount(count)} of {amount(statistics.slices)}: "
        + ", ".join(f"{name} {amount(number)}" for name, number in missing.items())
        + ".",
        "Write captions beside the images (fox.txt beside fox.png), set a trigger word, or let a model write them "
        "(docs/slices.md, Captions).",
        first.examples_of("uncaptioned"),
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
        f"{amount(len(thin))} of {amount(len(statistics.bucket_roots))} buckets have fewer roots than one update takes",
        f"They hold {share(inside, statistics.slices)} of the slices; an update has {UPDATE_ROOTS} roots by default. "
        f"Sizes with their number of roots: {some}{', …' if len(sizes) > 6 else ''}. Slices of rare sizes run in small "
        "batches, which is slow.",
        "Use fewer sizes (a greater targets.step, a smaller targets.max_aspect, or a short list), or train with "
        "tuples.packing=fill.",
    )
