"""How far the rankings can be trusted: places, repeats, agreement of raters, of judge and people, and exclusions."""

from collections.abc import Mapping
from typing import Literal

from flowgrain.evaluate.ranking.summary import Agreement, Consistency, Estimate, GroupAgreement, PositionBias
from flowgrain.report.evaluation import Ballot, Participation
from flowgrain.report.page import Block, Bullets, Paragraph, Section, Table
from flowgrain.report.rank_figures import ordinal
from flowgrain.report.wording import (
    NONE,
    counted,
    decimal,
    listed,
    number,
    p_equals,
    p_value,
    percent,
    share,
    whole_percent,
)

AGREEMENT_WORDS = ((0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"))
"""Upper limits of chance-corrected agreement and their names (Landis and Koch 1977)."""
GROUP_CAUTIONS = {
    "none": "it is not shown that the judge agrees with people. Do not let it stand for people here.",
    "variants": "they agree on which variants are better, but on single questions they share favourites no more often "
    "than that alone explains. The judge may stand for people in averages over many questions, not for one picture.",
}


def trust_section(ballots: tuple[Ballot, ...], agreement: Mapping[str, GroupAgreement]) -> Section | None:
    """Everything in sentences with cautions first, and the numbers as a table."""
    if not ballots:
        return None
    cautions = [Paragraph(text, "warning") for text in cautions_of(ballots, agreement)]
    sentences = [sentence for ballot in ballots for sentence in _sentences(ballot)]
    sentences += [_group_sentence(title, found) for title, found in agreement.items()]
    blocks: list[Block] = [*cautions, Bullets(tuple(sentences)), *_places(ballots)]
    blocks += [_exclusions(b.participation) for b in ballots if b.participation and b.participation.exclusions]
    return Section(
        "trust",
        "How far to trust these answers",
        "Whether places mattered, whether raters agree with themselves, with each other, and the judge with people.",
        tuple(blocks),
    )


def cautions_of(ballots: tuple[Ballot, ...], agreement: Mapping[str, GroupAgreement]) -> list[str]:
    """One sentence for each reason to be careful: places that mattered, little agreement."""
    cautions = []
    for ballot in ballots:
        bias = ballot.summary.position_bias.get(ballot.main)
        if bias is not None and bias.found:
            place = _favoured(bias)
            cautions.append(
                f"{ballot.title} prefers a place: the {ordinal(place)} picture from the left came first in "
                f"{share(bias.rates[place - 1])} of the answers, {whole_percent(bias.expected[place - 1])} expected. "
                "Orders are shuffled, so this adds noise to every variant alike and hides differences."
            )
        found = ballot.summary.agreement.get(ballot.main)
        if found is not None and found.alpha_ranks is not None and found.alpha_ranks.value < AGREEMENT_WORDS[0][0]:
            cautions.append(
                f"{ballot.title}: raters hardly agree (Krippendorff's alpha {decimal(found.alpha_ranks)}; 1 is full "
                "agreement, 0 is chance). Either the variants are nearly equal or the question is unclear."
            )
    cautions += [
        f"{title}: {GROUP_CAUTIONS[level_of(found)]}"
        for title, found in agreement.items()
        if level_of(found) in GROUP_CAUTIONS
    ]
    return cautions


def level_of(found: GroupAgreement) -> Literal["none", "variants", "questions"]:
    """Whether judge and people agree on single questions, at least on the variants, or not at all.

    On questions: they share favourites more often than favourites matched at random. On variants: their mean ranks
    agree beyond chance (an interval of tau above 0), which a common liking for the same variants already explains.
    """
    first, chance, tau = found.same_first, found.same_first_by_chance, found.kendall_tau
    if first is not None and chance is not None and first.low is not None and first.low > chance:
        return "questions"
    return "variants" if tau is not None and tau.low is not None and tau.low > 0 else "none"


def _favoured(bias: PositionBias) -> int:
    excess = [rate.value - expected for rate, expected in zip(bias.rates, bias.expected, strict=True)]
    return excess.index(max(excess)) + 1


def _sentences(ballot: Ballot) -> list[str]:
    summary, sentences = ballot.summary, []
    if ballot.participation is not None:
        sentences.append(_participation_sentence(ballot.participation))
    if ballot.answers.get("answered", 0) < sum(ballot.answers.values()):
        sentences.append(_unanswered_sentence(ballot))
    bias = summary.position_bias.get(ballot.main)
    if bias is not None:
        verdict = "an influence of the place is found" if bias.found else "no influence of the place is found"
        sentences.append(f"{ballot.title}: {verdict} (permutation test, {p_equals(bias.p_value)}).")
    repeats = summary.repeats.get(ballot.main)
    if repeats is not None:
        for where, found in (("other", repeats.changed_order), ("the same", repeats.same_order)):
            if found is not None:
                sentences.append(_repeat_sentence(ballot, where, found))
    agreement = summary.agreement.get(ballot.main)
    if agreement is not None:
        sentences.append(_agreement_sentence(ballot, agreement))
    return sentences


def _unanswered_sentence(ballot: Ballot) -> str:
    others = [f"{count} {status}" for status, count in ballot.answers.items() if count and status != "answered"]
    total = sum(ballot.answers.values())
    return f"{ballot.title}: {ballot.answers.get('answered', 0)} of {total} questions answered; {listed(others)}."


def _repeat_sentence(ballot: Ballot, where: str, found: Consistency) -> str:
    return (
        f"{ballot.title}: asked again with the pictures in {where} places, the first place stayed the same in "
        f"{share(found.same_first)} of {counted(found.same_first.n, 'pair')} of answers."
    )


def _agreement_sentence(ballot: Ballot, found: Agreement) -> str:
    raters = counted(found.raters, "participant" if ballot.people else "judge model")
    parts = [f"{ballot.title}: on {counted(found.questions, 'question')} that at least two of {raters} answered"]
    if found.alpha_ranks is not None:
        parts.append(
            f"agreement is {agreement_word(found.alpha_ranks)} (Krippendorff's alpha of the ranks "
            f"{decimal(found.alpha_ranks)}; 1 is full agreement, 0 is chance)"
        )
    if found.kendalls_w is not None:
        chance = "" if found.kendalls_w_by_chance is None else f", by chance {number(found.kendalls_w_by_chance, 2)}"
        parts.append(f"Kendall's W {decimal(found.kendalls_w)}{chance}")
    if found.fleiss_kappa is not None:
        parts.append(f"Fleiss' kappa of the first place {decimal(found.fleiss_kappa)}")
    if len(parts) == 1:
        parts.append("agreement is not defined")
    return f"{', '.join(parts)}."


def agreement_word(estimate: Estimate) -> str:
    """How a chance-corrected agreement is called."""
    if estimate.value <= 0:
        return "absent"
    return next((word for limit, word in AGREEMENT_WORDS if estimate.value < limit), "almost complete")


def _group_sentence(title: str, found: GroupAgreement) -> str:
    parts = [f"{title}: on {counted(found.items, 'question')} that judge and people both answered"]
    if found.same_first is not None:
        chance = found.same_first_by_chance
        by_chance = "" if chance is None else f", {whole_percent(chance)} by chance"
        parts.append(f"they share a favourite in {share(found.same_first)} of them{by_chance}")
    if found.kendall_tau is not None:
        parts.append(f"their mean ranks agree with tau {decimal(found.kendall_tau)} (-1 to 1, 0 is chance)")
    if found.strength_correlation is not None:
        parts.append(f"the variants' strengths correlate with {decimal(found.strength_correlation)}")
    if len(parts) == 1:
        parts.append("nothing can be compared")
    return f"{', '.join(parts)}."


def _places(ballots: tuple[Ballot, ...]) -> list[Block]:
    biases = [
        (ballot, ballot.summary.position_bias[ballot.main])
        for ballot in ballots
        if ballot.main in ballot.summary.position_bias
    ]
    if not biases:
        return []
    most = max(len(bias.rates) for _, bias in biases)
    rows = []
    for ballot, bias in biases:
        shares = [
            f"{share(rate).replace(' (', chr(10) + '(')}\nexpected {whole_percent(expected)}"
            for rate, expected in zip(bias.rates, bias.expected, strict=True)
        ]
        rows.append((ballot.title, *shares, *([NONE] * (most - len(shares))), p_value(bias.p_value)))
    columns = ("evaluator", *(f"{ordinal(place)} place" for place in range(1, most + 1)), "p")
    return [
        Table(
            "First places by where a picture stood.",
            "Places count from the left. Without an influence of the place, each rate lies near what is expected; p is "
            f"that of a permutation test ({listed([b.dimension_title(b.main) for b, _ in biases[:1]])}, "
            f"{percent(biases[0][0].summary.level)} intervals).",
            columns,
            tuple(rows),
            numeric=frozenset(range(1, len(columns))),
        )
    ]


def _participation_sentence(found: Participation) -> str:
    minutes = "" if found.median_minutes is None else f", in {number(found.median_minutes, 1)} minutes (median)"
    return (
        f"People: {counted(found.participants, 'participant')}, {found.finished} finished{minutes}; the answers of "
        f"{found.counted} count, {found.withdrawn} withdrew."
    )


def _exclusions(found: Participation) -> Table:
    return Table(
        "Participants that do not count.",
        "By rules that were set and sealed before the first answer; one participant may break several.",
        ("reason", "participants"),
        tuple((reason, str(count)) for reason, count in found.exclusions),
        numeric=frozenset({1}),
    )
