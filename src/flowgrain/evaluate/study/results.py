"""Results of a study: rankings, tables and statistics in ``STUDY/results/``; variants have their names after the close.

While the study is open the variants stay numbered and the key is not read: looking at results must not decide when to
stop. Tables hold no id of a recruiting service unless it is asked for.
"""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from flowgrain.errors import DataError
from flowgrain.evaluate.ranking.records import Ranking, write_rankings
from flowgrain.evaluate.ranking.summary import RankingSummary, write_summary
from flowgrain.evaluate.study.conduct import iso_time
from flowgrain.evaluate.study.config import Exclusions
from flowgrain.evaluate.study.facts import FACTS_NAME, RANKINGS_NAME, SUMMARY_NAME, StudyFacts
from flowgrain.evaluate.study.folder import Study
from flowgrain.evaluate.study.plan import KEY_NAME, Key, read_model
from flowgrain.evaluate.study.screening import Screening, Sitting, screen, sittings, variants_of
from flowgrain.evaluate.study.seal import verify
from flowgrain.evaluate.study.store import Collected
from flowgrain.files import atomic_write_text

ANSWER_COLUMNS = (
    "participant", "position", "kind", "item", "dataset", "prompt", "seed", "dimension", "order", "shown", "revisions",
    "seconds", "active_seconds", "received_at", "counted",
)  # fmt: skip
PARTICIPANT_COLUMNS = (
    "participant", "number", "consented_at", "finished_at", "items", "completed", "checks_answered", "checks_failed",
    "repeat_agreement", "median_seconds", "minutes", "completion_code", "counted", "excluded_by",
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What variants are called: by the key after the close, else numbered."""

    by_number: tuple[str, ...]
    order: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] | None
    blinded: bool


@dataclass(frozen=True)
class Results:
    """Everything that is written."""

    rankings: tuple[Ranking, ...]
    answers: tuple[dict[str, Any], ...]
    participants: tuple[dict[str, Any], ...]
    summary: RankingSummary
    facts: StudyFacts


def compute_results(study: Study, external_ids: bool = False) -> Results:
    """Screen participants, translate places to variants and summarise.

    Raises DataError before the first answer to an item, or where the study is closed and its key is not there.
    """
    from flowgrain.evaluate.ranking.summarise import summarise

    collected = study.store.collected()
    people = sittings(study.plan, collected)
    if not any(sitting.of_kind("item") for sitting in people):
        raise DataError(f"{study.folder}: no answers yet ({len(people)} participants have started)")
    names = _names(study, collected.closed_at is not None)
    screened = [(sitting, screen(sitting, study.plan, study.config)) for sitting in people]
    rankings = tuple(
        ranking for sitting, found in screened if not found.reasons for ranking in _rankings(study, sitting, names)
    )
    summary = summarise(
        rankings,
        source="study",
        dimensions=[dimension.name for dimension in study.config.dimensions],
        variants=names.order,
        pairs=names.pairs,
    )
    return Results(
        rankings,
        tuple(row for sitting, found in screened for row in _answer_rows(study, sitting, found, names)),
        tuple(_participant_row(sitting, found, external_ids) for sitting, found in screened),
        summary,
        _facts(study, collected, screened, names),
    )


def write_results(results: Results, out: Path, tables: Literal["csv", "json"]) -> None:
    """Write every file whole; ``tables`` is the format of answers and participants."""
    write_rankings(out / RANKINGS_NAME, results.rankings)
    for name, columns, rows in (
        ("answers", ANSWER_COLUMNS, results.answers),
        ("participants", PARTICIPANT_COLUMNS, results.participants),
    ):
        text = _csv(columns, rows) if tables == "csv" else json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        atomic_write_text(out / f"{name}.{tables}", text)
    write_summary(out / SUMMARY_NAME, results.summary)
    atomic_write_text(out / FACTS_NAME, results.facts.model_dump_json(indent=2) + "\n")


def _names(study: Study, closed: bool) -> Names:
    numbered = tuple(f"variant {number + 1}" for number in range(study.plan.variants))
    if not closed:
        return Names(numbered, numbered, None, True)
    verify(study.folder, key=True)
    key = read_model(Key, study.folder / KEY_NAME)
    return Names(key.variants, key.order, key.pairs, False)


def _rankings(study: Study, sitting: Sitting, names: Names) -> list[Ranking]:
    """The counted answers of one participant; a repeated item counts as the second time it was seen."""
    rankings = []
    for repeat, kind in enumerate(("item", "repeat")):
        for placement, given in sitting.of_kind(kind):
            item = study.plan.items[placement.index]
            rankings += [
                Ranking(
                    item=item.key,
                    dataset=item.dataset,
                    prompt=item.prompt,
                    seed=item.seed,
                    dimension=dimension,
                    rater=sitting.name,
                    repeat=repeat,
                    tiers=tuple(tuple(names.by_number[v] for v in tier) for tier in variants_of(placement, tiers)),
                    shown=tuple(names.by_number[v] for v in placement.places),
                )
                for dimension, tiers in given.tiers.items()
            ]
    return rankings


def _answer_rows(study: Study, sitting: Sitting, found: Screening, names: Names) -> list[dict[str, Any]]:
    return [
        _answer_row(study, sitting, position, dimension, names, not found.reasons)
        for position in sorted(sitting.given)
        if sitting.placements[position].kind != "practice"
        for dimension in sorted(sitting.given[position].tiers)
    ]


def _answer_row(
    study: Study, sitting: Sitting, position: int, dimension: str, names: Names, counted: bool
) -> dict[str, Any]:
    placement, given = sitting.placements[position], sitting.given[position]
    check = placement.kind == "check"
    item = study.plan.items[study.plan.checks[placement.index].item if check else placement.index]
    tiers = variants_of(placement, given.tiers[dimension])
    values = (
        sitting.name,
        position,
        placement.kind,
        item.key,
        item.dataset,
        item.prompt,
        item.seed,
        dimension,
        " > ".join(" = ".join(names.by_number[v] for v in tier) for tier in tiers),
        " | ".join(names.by_number[v] for v in placement.places),
        given.revisions,
        round(given.first_seconds, 3),
        round(given.active_seconds, 3),
        iso_time(given.received_at),
        counted and not check,
    )
    return dict(zip(ANSWER_COLUMNS, values, strict=True))


def _participant_row(sitting: Sitting, found: Screening, external_ids: bool) -> dict[str, Any]:
    finished = sitting.finished_at
    values = (
        sitting.name,
        sitting.number,
        iso_time(sitting.consented_at),
        None if finished is None else iso_time(finished),
        len(sitting.of_kind("item")),
        round(found.completed, 4),
        found.checks_answered,
        found.checks_failed,
        None if found.repeat_agreement is None else round(found.repeat_agreement, 4),
        None if found.median_seconds is None else round(found.median_seconds, 3),
        None if finished is None else round((finished - sitting.consented_at) / 60_000, 2),
        sitting.completion_code,
        not found.reasons,
        " ".join(found.reasons),
    )
    row: dict[str, Any] = dict(zip(PARTICIPANT_COLUMNS, values, strict=True))
    if external_ids:
        row["external_id"] = sitting.external_id
    return row


def _facts(study: Study, collected: Collected, screened: list[tuple[Sitting, Screening]], names: Names) -> StudyFacts:
    reasons = Counter(reason for _, found in screened for reason in found.reasons)
    minutes = [
        (sitting.finished_at - sitting.consented_at) / 60_000
        for sitting, _ in screened
        if sitting.finished_at is not None
    ]
    return StudyFacts(
        title=study.config.title,
        seal=study.seal,
        blinded=names.blinded,
        opened_at=iso_time(collected.opened_at),
        closed_at=None if collected.closed_at is None else iso_time(collected.closed_at),
        answer=study.config.answer,
        dimensions=study.config.dimensions,
        participants=len(screened),
        finished=len(minutes),
        counted=sum(not found.reasons for _, found in screened),
        withdrawn=sum(row.withdrawn_at is not None for row in collected.participants),
        exclusions={rule: reasons[rule] for rule in Exclusions.model_fields if reasons[rule]},
        rules=study.config.exclusions,
        median_minutes=round(median(minutes), 2) if minutes else None,
    )


def _csv(columns: tuple[str, ...], rows: tuple[dict[str, Any], ...]) -> str:
    present = tuple(rows[0]) if rows else columns  # external ids, where they were asked for, come last
    stream = io.StringIO()
    writer = csv.DictWriter(stream, present, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
