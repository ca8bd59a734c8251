"""The headline: who is ahead on what, said by the data."""

from collections.abc import Sequence

from flowgrain.evaluate.results import MetricDifference, MetricTable
from flowgrain.report.page import Bullets, Paragraph, Section, Table
from flowgrain.report.wording import NO_DIFFERENCE, NONE, decimals_for, interval, measure_name, number, percent


def summary_section(metrics: MetricTable, runs_per_arm: int) -> Section | None:
    """Every compared pair of arms in one sentence, then all verdicts in one table."""
    if not metrics.differences:
        return None
    pairs = list(dict.fromkeys((d.first, d.second) for d in metrics.differences))
    level = metrics.differences[0].level
    return Section(
        "summary",
        "What came out",
        "Each line compares two arms on the same prompts and held-out pictures, whichever of them is ahead.",
        (
            Bullets(tuple(pair_sentence([d for d in metrics.differences if (d.first, d.second) == p]) for p in pairs)),
            _verdicts(metrics.differences, pairs),
            Paragraph(_caution(len(metrics.differences), level, runs_per_arm), "note"),
        ),
    )


def pair_sentence(differences: Sequence[MetricDifference]) -> str:
    """What all measures together say about one pair of arms."""
    first, second = differences[0].first, differences[0].second
    total = f"{len(differences)} measure{'s' if len(differences) > 1 else ''}"
    undecided = sum(d.ahead is None for d in differences)
    if undecided == len(differences):
        return f"Between {second} and {first}: {NO_DIFFERENCE}, on any of {total}."
    won = {arm: sum(d.ahead == arm for d in differences) for arm in (second, first)}
    leader = max(won, key=lambda arm: won[arm])
    other = first if leader == second else second
    if won[leader] == won[other]:
        parts = [f"{second} and {first} are each ahead on {won[leader]} of {total}"]
    else:
        parts = [f"{leader} is ahead on {won[leader]} of {total}"]
        if won[other]:
            parts.append(f"{other} on {won[other]}")
    if undecided:
        parts.append(f"{NO_DIFFERENCE} on {undecided}")
    return f"Between {second} and {first}: {', '.join(parts)}."


def _verdicts(differences: Sequence[MetricDifference], pairs: Sequence[tuple[str, str]]) -> Table:
    found = {(measure_name(d), d.first, d.second): d for d in differences}
    rows = []
    for measure in dict.fromkeys(measure_name(d) for d in differences):
        cells = [found.get((measure, *pair)) for pair in pairs]
        rows.append((measure, *(NONE if d is None else _cell(d) for d in cells)))
    return Table(
        "Who is ahead.",
        "A cell names the better arm, then the difference of its column (first named minus second, on the same prompts "
        f"or roots) and its {percent(differences[0].level)} interval; “no difference” stands where the interval holds "
        "zero.",
        ("measure", *(f"{second} − {first}" for first, second in pairs)),
        tuple(rows),
        numeric=frozenset(range(1, len(pairs) + 1)),
    )


def _cell(difference: MetricDifference) -> str:
    value = number(difference.value, decimals_for(difference.low, difference.high), sign=True)
    limits = interval(difference.low, difference.high, sign=True)
    return f"{difference.ahead or 'no difference'}\n{value}\n{limits}"


def _caution(comparisons: int, level: float, runs_per_arm: int) -> str:
    chance = comparisons * (1 - level)
    runs = "one training run" if runs_per_arm == 1 else f"{runs_per_arm} training runs"
    return (
        f"Intervals are {percent(level)} bootstrap intervals over prompts or held-out pictures. They say how much the "
        f"result hangs on which of these were tested; each arm is {runs}, so they do not cover the luck of training. "
        f"Of {comparisons} comparisons about {number(chance, 1)} would exclude zero by chance alone if no arm differed."
    )
