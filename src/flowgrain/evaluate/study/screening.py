"""Who counts: a participant's answers held against the rules that were sealed before the first one."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from flowgrain.evaluate.study.assignment import Assigner, Placement
from flowgrain.evaluate.study.conduct import Tiers
from flowgrain.evaluate.study.config import Exclusions, StudyConfig
from flowgrain.evaluate.study.plan import Plan
from flowgrain.evaluate.study.store import Collected


@dataclass(frozen=True)
class Given:
    """The latest answer to one position, and the times of all revisions."""

    tiers: Tiers
    revisions: int
    first_seconds: float
    """From the first showing to the first answer, on the server's clock."""
    active_seconds: float
    """As the page measured it, all revisions together; never more than the server's clock allows."""
    received_at: int


@dataclass(frozen=True)
class Sitting:
    """One participant who agreed and did not withdraw."""

    name: str
    number: int
    external_id: str | None
    consented_at: int
    finished_at: int | None
    completion_code: str
    placements: tuple[Placement, ...]
    given: dict[int, Given]
    """By position; 0 is the practice item."""

    def of_kind(self, kind: str) -> list[tuple[Placement, Given]]:
        """Answered positions of one kind, in order."""
        return [(self.placements[p], self.given[p]) for p in sorted(self.given) if self.placements[p].kind == kind]


@dataclass(frozen=True)
class Screening:
    """What the rules look at, and which of them exclude the participant."""

    checks_answered: int
    checks_failed: int
    repeat_agreement: float | None
    """Share of pairs (or of best pictures) judged the same way both times; None without a repeated item."""
    median_seconds: float | None
    completed: float
    """Share of the counted items that were answered."""
    reasons: tuple[str, ...]
    """Names of the rules, empty for a participant who counts."""


def sittings(plan: Plan, collected: Collected) -> tuple[Sitting, ...]:
    """Participants in the order of their numbers, with the latest revision of each answer."""
    assigner = Assigner(plan.design)
    answered: dict[int, dict[int, list[Any]]] = {}
    for row in collected.answers:
        answered.setdefault(row.participant, {}).setdefault(row.position, []).append(row)
    found = [
        Sitting(
            name=row.name,
            number=row.number,
            external_id=row.external_id,
            consented_at=row.consented_at,
            finished_at=row.finished_at,
            completion_code=row.completion_code,
            placements=assigner.sitting(row.number),
            given={position: _given(revisions) for position, revisions in answered.get(row.id, {}).items()},
        )
        for row in collected.participants
        if row.number is not None and row.withdrawn_at is None
    ]
    return tuple(sorted(found, key=lambda sitting: sitting.number))


def screen(sitting: Sitting, plan: Plan, config: StudyConfig) -> Screening:
    """Hold a participant against the rules."""
    checks = sitting.of_kind("check")
    failed = sum(not passes(plan.checks[placement.index].degraded, placement, given) for placement, given in checks)
    agreement = _repeat_agreement(sitting, config.answer)
    items = sitting.of_kind("item")
    median = statistics.median(given.first_seconds for _, given in items) if items else None
    completed = len(items) / plan.per_participant
    reasons = _reasons(config.exclusions, failed, median, completed, agreement)
    return Screening(len(checks), failed, agreement, median, completed, reasons)


def passes(degraded: int, placement: Placement, given: Given) -> bool:
    """Whether the degraded picture came out worst.

    A ranking passes where it is alone in the last place on at least one dimension and among the best on none; a choice
    of the best passes where it was never chosen.
    """
    place = placement.places.index(degraded)
    orders = given.tiers.values()
    if any(place in tiers[0] for tiers in orders):
        return False
    choices = all(len(tiers) == 2 and len(tiers[0]) == 1 for tiers in orders)
    return choices or any(tiers[-1] == [place] for tiers in orders)


def agreement(first: Tiers, again: Tiers, answer: str) -> float:
    """Share of the pairs of variants that both rankings order alike (ties included), or of equal best choices.

    Both must name variants, not places.
    """
    scores = []
    for dimension, tiers in first.items():
        if answer == "best":
            scores.append(float(tiers[0] == again[dimension][0]))
            continue
        a, b = _ranks(tiers), _ranks(again[dimension])
        pairs = list(combinations(sorted(a), 2))
        scores.append(statistics.fmean(_sign(a[i] - a[j]) == _sign(b[i] - b[j]) for i, j in pairs))
    return statistics.fmean(scores)


def variants_of(placement: Placement, tiers: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Tiers of places as tiers of variants, each tier sorted."""
    return tuple(tuple(sorted(placement.places[place] for place in tier)) for tier in tiers)


def _given(revisions: list[Any]) -> Given:
    first, last = revisions[0], revisions[-1]
    return Given(
        tiers=json.loads(last.content),
        revisions=len(revisions),
        first_seconds=first.elapsed_ms / 1000,
        active_seconds=sum(row.active_ms for row in revisions) / 1000,
        received_at=last.received_at,
    )


def _repeat_agreement(sitting: Sitting, answer: str) -> float | None:
    originals = {placement.index: (placement, given) for placement, given in sitting.of_kind("item")}
    found = [
        agreement(_by_variant(*originals[placement.index]), _by_variant(placement, given), answer)
        for placement, given in sitting.of_kind("repeat")
    ]
    return statistics.fmean(found) if found else None


def _by_variant(placement: Placement, given: Given) -> Tiers:
    return {
        dimension: [list(tier) for tier in variants_of(placement, tiers)] for dimension, tiers in given.tiers.items()
    }


def _reasons(
    rules: Exclusions, failed: int, median: float | None, completed: float, repeated: float | None
) -> tuple[str, ...]:
    reasons = []
    if failed > rules.max_failed_checks:
        reasons.append("max_failed_checks")
    if median is not None and median < rules.min_median_seconds:
        reasons.append("min_median_seconds")
    if completed < rules.min_completed:
        reasons.append("min_completed")
    if repeated is not None and repeated < rules.min_repeat_agreement:
        reasons.append("min_repeat_agreement")
    return tuple(reasons)


def _ranks(tiers: Sequence[Sequence[int]]) -> dict[int, int]:
    return {variant: rank for rank, tier in enumerate(tiers) for variant in tier}


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
