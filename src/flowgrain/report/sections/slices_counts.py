"""How many slices there are: by level, by root, by bucket and by detector."""

from flowgrain.report.figures import bar_figure
from flowgrain.report.page import Block, Figure, FigureRow, Section, Table
from flowgrain.report.slices_figures import histogram_figure
from flowgrain.report.wording import NONE, counted, listed, number, whole_percent
from flowgrain.slices.advice import UPDATE_ROOTS
from flowgrain.slices.finding import WHOLE_IMAGE
from flowgrain.slices.statistics import Statistics

_MOST_CURVES = 6
_MOST_BUCKETS = 60


def counts_section(statistics: Statistics) -> Section:
    """Levels, levels per root, detectors and their scores, buckets."""
    by_level = {level.name: level.slices for level in statistics.levels.values()}
    per_root = {str(k): count for k, count in sorted(statistics.levels_per_root.items())}
    figures = [
        Figure(
            bar_figure("Slices by level", by_level, "level", "number of slices"),
            "Slices by level: " + ", ".join(f"{level} {count}" for level, count in by_level.items()) + ".",
        ),
        Figure(
            bar_figure("Levels per root", per_root, "K, levels that a root has", "number of roots"),
            "Roots by their number of levels: " + ", ".join(f"K={k} {count}" for k, count in per_root.items()) + ".",
        ),
    ]
    scores = _scores(statistics)
    if scores is not None:
        figures.append(scores)
    blocks: tuple[Block, ...] = (
        FigureRow(
            "Slices.",
            "How many slices each level has, how many levels the roots have (a root with all levels counts most in "
            "granularity training), and how sure the detectors were of what became slices.",
            tuple(figures),
        ),
        _detectors(statistics),
        _buckets(statistics),
    )
    complete = statistics.levels_per_root[len(statistics.levels)]
    return Section(
        "counts",
        "Levels, roots and buckets",
        f"{counted(statistics.slices, 'slice')} of {counted(statistics.roots, 'root')}; "
        f"{whole_percent(complete / max(statistics.roots, 1))} of the roots have a slice of every level.",
        blocks,
    )


def _scores(statistics: Statistics) -> Figure | None:
    curves = {
        f"{level.name} {kind}": histogram.bars(5)
        for level in statistics.levels.values()
        for kind, histogram in sorted(level.scores.items())
        if kind != WHOLE_IMAGE
    }
    shown = dict(list(curves.items())[:_MOST_CURVES])
    if not shown:
        return None
    return Figure(
        histogram_figure("Scores of the detectors", shown, "score"),
        f"Histogram of the scores of {listed(list(shown))}; the medians are in the table of detectors.",
    )


def _detectors(statistics: Statistics) -> Table:
    rows = []
    for level in statistics.levels.values():
        config = statistics.config.levels.get(level.name)
        named = [] if config is None else [str(each.kind) for each in config.detectors]
        for kind in dict.fromkeys([*named, *sorted(level.found)]):
            scores = level.scores.get(kind)
            median = NONE if scores is None or kind == WHOLE_IMAGE else number(scores.quantile(0.5), 2)
            made, found = level.detectors[kind], level.found[kind]
            rows.append((level.name, kind or NONE, number(found, 0), number(made, 0), number(found - made, 0), median))
        if not named and not level.found:
            rows.append((level.name, NONE, "0", "0", "0", NONE))
    return Table(
        "Detectors.",
        "Boxes that each found, how many became slices, how many were refused, and the median score of the slices. Of "
        "several detectors of a level the first that finds something in a region counts.",
        ("level", "detector", "boxes", "slices", "refused", "median score"),
        tuple(rows),
        numeric=frozenset({2, 3, 4, 5}),
    )


def _buckets(statistics: Statistics) -> Table:
    levels = list(statistics.levels.values())
    sizes = sorted(statistics.bucket_roots, key=lambda size: (-sum(level.buckets[size] for level in levels), size))
    configured = {size for name in statistics.config.levels for size in statistics.config.sizes(name)}
    rows = []
    for width, height in sizes[:_MOST_BUCKETS]:
        counts = [level.buckets[width, height] for level in levels]
        share = sum(counts) / max(statistics.slices, 1)
        rows.append(
            (
                f"{width}×{height}",
                number(width / height, 2),
                *(number(count, 0) for count in counts),
                number(sum(counts), 0),
                f"{number(100 * share, 1)}\u00a0%",
                number(statistics.bucket_roots[width, height], 0),
            )
        )
    unused = len(configured - set(sizes))
    used = f"All {len(configured)} sizes that the settings allow are used."
    if unused:
        has = "has" if unused == 1 else "have"
        used = f"{unused} of the {len(configured)} sizes that the settings allow {has} no slice."
    more = f" {len(sizes) - _MOST_BUCKETS} rarer sizes are not shown." if len(sizes) > _MOST_BUCKETS else ""
    return Table(
        "Buckets.",
        "Slices of each size by level, their share of all, and how many roots have a slice of the size; with fewer "
        f"than {UPDATE_ROOTS} roots a size never fills an update of that many. {used}{more}",
        ("size", "width / height", *(level.name for level in levels), "all", "share", "roots"),
        tuple(rows),
        numeric=frozenset(range(1, len(levels) + 5)),
    )
