"""The headline: what came out, in a few sentences made of the numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence

from flowgrain.evaluate.ranking.summary import GroupAgreement
from flowgrain.evaluate.results import MetricTable
from flowgrain.report.evaluation import Ballot, Evaluation
from flowgrain.report.page import Bullets, Section
from flowgrain.report.sections.missing import Gap
from flowgrain.report.sections.preferences import gain
from flowgrain.report.sections.trust import level_of
from flowgrain.report.wording import counted, listed, number, percent, points, share, whole_percent

NAMED_DIFFERENCES = 3
AGREEMENT_VERDICTS = {
    "none": "it is not shown that they agree",
    "variants": "they agree on the variants; on single questions it is not shown that they do",
    "questions": "more often than by chance",
}


def headline_section(evaluation: Evaluation, gaps: Sequence[Gap]) -> Section:
    """Two to six sentences: what was compared, judge, people, whether they agree, metrics, what is missing."""
    sentences = [_scope(evaluation)]
    sentences += [ballot_sentence(ballot) for ballot in evaluation.ballots]
    if evaluation.agreement:
        sentences.append(agreement_sentence(evaluation.agreement))
    if evaluation.metrics.results:
        sentences.append(metrics_sentence(evaluation.metrics))
    if gaps:
        sentences.append(f"Not measured: {'; '.join(gap.what for gap in gaps)}.")
    return Section(
        "summary",
        "What came out",
        "A difference is named only where the data support it; every number stands below with its count.",
        (Bullets(tuple(sentences)),),
    )


def _scope(evaluation: Evaluation) -> str:
    comparison = evaluation.comparison
    items = comparison.items()
    prompts = len({(item.dataset, item.prompt) for item in items})
    names = comparison.variants
    where = f" of {counted(len(comparison.datasets), 'data set')}" if len(comparison.datasets) > 1 else ""
    return (
        f"Compared: {counted(len(names), 'variant')} ({listed(names)}) on {counted(prompts, 'prompt')}{where}, "
        f"{counted(len(items), 'picture')} of each, drawn from the same noise seeds."
    )


def ballot_sentence(ballot: Ballot) -> str:
    """Who came first most often by one source of rankings, and which differences it supports."""
    summary, main = ballot.summary, ballot.main
    found = summary.first_place[main]
    order = sorted(ballot.variants_on(main), key=lambda name: -found[name].value)
    source = f"{ballot.title}, {ballot.dimension_title(main).lower()}, {counted(summary.counts.rankings, 'answer')}"
    if ballot.people:
        source += f" of {counted(summary.counts.raters, 'participant')}"
    differences = summary.first_place_differences.get(main, ())
    supported = [d for d in differences if d.ahead is not None]
    if not differences:
        verdict = "differences of pairs were not tested"
    elif not supported:
        verdict = f"none of {counted(len(differences), 'difference')} between variants is supported, so none leads"
    else:
        texts = [
            f"{d.ahead} over {d.first if d.ahead == d.second else d.second}, {points(gain(d))}"
            for d in supported[:NAMED_DIFFERENCES]
        ]
        more = len(supported) - len(texts)
        named = "; ".join(texts) + (f"; and {more} more" if more else "")
        verdict = f"{len(supported)} of {counted(len(differences), 'difference')} supported: {named}"
    return (
        f"{source}: {order[0]} came first most often, in {share(found[order[0]])}, {order[-1]} least often, in "
        f"{share(found[order[-1]])}; {verdict}."
    )


def agreement_sentence(agreement: Mapping[str, GroupAgreement]) -> str:
    """Whether the judge's favourites are people's."""
    found = next(iter(agreement.values()))
    if found.same_first is None:
        return f"Judge and people answered {counted(found.items, 'same question')}, but share no order to compare."
    chance = found.same_first_by_chance
    by_chance = "" if chance is None else f" ({whole_percent(chance)} by chance)"
    return (
        f"Judge and people share a favourite in {share(found.same_first)} of "
        f"{counted(found.items, 'question')}{by_chance}: {AGREEMENT_VERDICTS[level_of(found)]}."
    )


def metrics_sentence(table: MetricTable) -> str:
    """How many paired differences of metrics are supported, and for whom."""
    measures = len({(r.name, r.subset) for r in table.results})
    compared = [d for d in table.differences if d.higher_is_better is not None]
    if not compared:
        return f"Metrics: {counted(measures, 'measure')}, no two variants were compared in pairs."
    ahead = Counter(d.ahead for d in compared if d.ahead is not None)
    chance = number(len(compared) * (1 - compared[0].level), 1)
    scope = f"{counted(measures, 'measure')}, {counted(len(compared), 'paired difference')}"
    if not ahead:
        return (
            f"Metrics ({scope}): no {percent(compared[0].level)} interval excludes zero, so none supports a difference."
        )
    who = listed([f"{name} is ahead in {count}" for name, count in ahead.most_common()])
    return (
        f"Metrics ({scope}): the {percent(compared[0].level)} interval excludes zero in {ahead.total()}, {who}; in "
        f"about {chance} it would by chance if no variant differed."
    )
