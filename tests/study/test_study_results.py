"""From places to named variants: what people meant is what the results say, and the rules say who counts."""

import csv
import json

import pytest

from flowgrain.errors import DataError
from flowgrain.evaluate.ranking.records import read_rankings
from flowgrain.evaluate.ranking.summary import read_summary
from flowgrain.evaluate.study.assignment import Placement
from flowgrain.evaluate.study.facts import read_facts
from flowgrain.evaluate.study.plan import Key, read_model
from flowgrain.evaluate.study.results import ANSWER_COLUMNS, PARTICIPANT_COLUMNS, compute_results, write_results
from flowgrain.evaluate.study.screening import Given, agreement, passes

ARMS = ("zebra-arm", "quokka-arm", "walrus-arm", "ocelot-arm")
LENIENT = {"min_median_seconds": 0, "max_failed_checks": 9, "min_completed": 0}


def taste(study, order, checks=True):
    """A choice that ranks by ``order`` of the variants' names; ``checks``: whether degraded pictures come last."""
    names = read_model(Key, study.folder / "key.json").variants
    rank = {}
    for item in study.plan.items:
        for number, picture in enumerate(item.pictures):
            rank[f"media/{picture.name}"] = order.index(names[number])
    for check in study.plan.checks:
        for number, picture in enumerate(check.pictures):
            worst = number == check.degraded
            rank[f"media/{picture.name}"] = (99 if checks else -1) if worst else order.index(names[number])

    def choose(item):
        places = range(len(item["pictures"]))
        if item["practice"]:
            return None
        return [[place] for place in sorted(places, key=lambda place: rank[item["pictures"][place]["url"]])]

    return choose


def test_what_people_meant_is_what_is_counted(make_study, client_of, person, tmp_path):
    study = make_study(exclusions=LENIENT)
    client = client_of(study)
    wanted = [ARMS[2], ARMS[0], ARMS[3], ARMS[1]]
    for _ in range(3):
        person(client).finish(taste(study, wanted))
    study.store.close()
    results = compute_results(study)
    assert len(results.rankings) == 3 * (4 + 1)
    assert {ranking.tiers for ranking in results.rankings} == {tuple((name,) for name in wanted)}
    assert {ranking.item for ranking in results.rankings} == {item.key for item in study.plan.items}
    assert len({ranking.shown for ranking in results.rankings}) > 2
    assert sorted(ranking.repeat for ranking in results.rankings) == [0] * 12 + [1] * 3
    assert {name: rate.value for name, rate in results.summary.first_place["overall"].items()} == {
        name: float(name == ARMS[2]) for name in ARMS
    }
    assert results.summary.variants == ARMS and not results.facts.blinded
    write_results(results, tmp_path / "r", "csv")
    assert read_rankings(tmp_path / "r" / "rankings.jsonl") == results.rankings
    assert read_summary(tmp_path / "r" / "summary.json") == results.summary
    assert read_facts(tmp_path / "r" / "facts.json") == results.facts


def test_an_open_study_stays_blind(make_study, client_of, person, tmp_path):
    study = make_study(exclusions=LENIENT)
    person(client_of(study)).finish(taste(study, list(ARMS)))
    results = compute_results(study)
    write_results(results, tmp_path, "json")
    written = b"".join(path.read_bytes() for path in tmp_path.glob("*.*") if path.is_file())
    assert results.facts.blinded and b"variant 1" in written
    assert not any(arm.encode() in written for arm in ARMS)


def test_tables(make_study, client_of, person, tmp_path):
    study = make_study(exclusions=LENIENT)
    person(client_of(study)).finish(lambda item: [[0, 1], [2], [3]])
    study.store.close()
    results = compute_results(study)
    write_results(results, tmp_path, "csv")
    write_results(results, tmp_path, "json")
    with (tmp_path / "answers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == ANSWER_COLUMNS and len(rows) == 6
    assert [row["kind"] for row in rows].count("check") == 1
    for row in rows:
        shown = row["shown"].split(" | ")
        numbered = {name: place for place, name in enumerate(shown)}
        first, second, third = (tier.split(" = ") for tier in row["order"].split(" > "))
        assert {numbered[name] for name in first} == {0, 1} and (second, third) == ([shown[2]], [shown[3]])
        assert row["counted"] == str(row["kind"] != "check")
    with (tmp_path / "participants.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert tuple(row) == PARTICIPANT_COLUMNS
    assert (row["items"], row["completed"], row["checks_answered"], row["counted"]) == ("4", "1.0", "1", "True")
    assert json.loads((tmp_path / "participants.json").read_text())[0]["completion_code"] == row["completion_code"]
    assert len(json.loads((tmp_path / "answers.json").read_text())) == 6


def test_ids_of_the_recruiting_service_are_written_on_demand_only(make_study, client_of, person, tmp_path):
    from flowgrain.evaluate.study.server import ServeConfig

    study = make_study(exclusions=LENIENT)
    client = client_of(study, ServeConfig(entry="external_id", token_rate=1000, address_rate=1000))
    person(client, enter={"external_id": "5f1e77", "session_id": "s"}).finish()
    write_results(compute_results(study), tmp_path / "a", "csv")
    write_results(compute_results(study, external_ids=True), tmp_path / "b", "csv")
    assert "5f1e77" not in "".join(path.read_text() for path in (tmp_path / "a").iterdir())
    assert (tmp_path / "b" / "participants.csv").read_text().splitlines()[0].endswith(",external_id")
    assert "5f1e77" in (tmp_path / "b" / "participants.csv").read_text()


def test_before_the_first_answer(make_study, client_of, person):
    study = make_study()
    with pytest.raises(DataError, match=r"no answers yet \(0 participants have started\)"):
        compute_results(study)
    person(client_of(study)).finish(stop_after=1)  # practice does not count
    with pytest.raises(DataError, match=r"no answers yet \(1 participants have started\)"):
        compute_results(study)


@pytest.mark.parametrize(
    ("rules", "behave", "reasons"),
    [
        ({}, {}, ()),
        ({"max_failed_checks": 0}, {"checks": False}, ("max_failed_checks",)),
        ({"max_failed_checks": 1}, {"checks": False}, ()),
        ({"min_median_seconds": 3600}, {}, ("min_median_seconds",)),
        ({"min_completed": 1.0}, {"stop_after": 3}, ("min_completed",)),
        ({"min_completed": 0.2}, {"stop_after": 3}, ()),
        (
            {"min_median_seconds": 3600, "min_completed": 1.0},
            {"stop_after": 3},
            ("min_median_seconds", "min_completed"),
        ),
    ],
)
def test_exclusions(make_study, client_of, person, rules, behave, reasons):
    study = make_study(exclusions={**LENIENT, **rules})
    client = client_of(study)
    person(client).finish(taste(study, list(ARMS), behave.get("checks", True)), behave.get("stop_after"))
    results = compute_results(study)
    (row,) = results.participants
    assert row["excluded_by"] == " ".join(reasons) and row["counted"] is not bool(reasons)
    assert results.facts.exclusions == dict.fromkeys(reasons, 1)
    assert bool(results.rankings) is not bool(reasons)
    assert {answer["counted"] for answer in results.answers if answer["kind"] != "check"} == {not reasons}
    assert results.facts.counted == (0 if reasons else 1)


def test_whoever_contradicts_himself_is_excluded_where_that_was_the_rule(make_study, client_of, person):
    study = make_study(exclusions={**LENIENT, "min_repeat_agreement": 0.75})
    client = client_of(study)
    person(client).finish(taste(study, list(ARMS)))
    person(client).finish(lambda item: None)  # by place, and the places of a repeated item change
    first, second = compute_results(study).participants
    assert (first["repeat_agreement"], first["excluded_by"]) == (1.0, "")
    assert second["repeat_agreement"] < 0.75 and second["excluded_by"] == "min_repeat_agreement"


def test_a_corrected_answer_counts_as_corrected(make_study, client_of, person):
    study = make_study(exclusions=LENIENT)
    anna = person(client_of(study))
    anna.finish(lambda item: [[0], [1, 2, 3]])
    for position in range(1, 7):
        anna.answer(anna.get(f"/api/items/{position}").json(), [[3], [0, 1, 2]])
    results = compute_results(study)
    assert all(ranking.tiers[0] == (ranking.shown[3],) for ranking in results.rankings)
    assert {row["revisions"] for row in results.answers} == {2}


PLACEMENT = Placement("check", 0, (2, 0, 3, 1))


@pytest.mark.parametrize(
    ("orders", "passed"),
    [
        ([[[0], [1], [2], [3]]], True),
        ([[[0, 1, 2], [3]]], True),
        ([[[0], [1], [2, 3]]], False),
        ([[[0, 1, 2, 3]]], False),
        ([[[3], [0], [1], [2]]], False),
        ([[[0], [1], [3], [2]]], False),
        ([[[0], [1], [2], [3]], [[0], [3], [1], [2]]], True),
        ([[[0], [1], [2], [3]], [[3], [0], [1], [2]]], False),
        ([[[0], [1, 2, 3]]], True),
        ([[[3], [0, 1, 2]]], False),
        ([[[0], [1, 2, 3]], [[3], [0, 1, 2]]], False),
    ],
)
def test_the_degraded_picture_has_to_come_last(orders, passed):
    given = Given({str(n): tiers for n, tiers in enumerate(orders)}, 1, 1.0, 1.0, 0)
    assert passes(1, PLACEMENT, given) is passed


@pytest.mark.parametrize(
    ("first", "again", "kind", "expected"),
    [
        ([[0], [1], [2]], [[0], [1], [2]], "rank", 1.0),
        ([[0], [1], [2]], [[2], [1], [0]], "rank", 0.0),
        ([[0], [1], [2]], [[0], [2], [1]], "rank", 2 / 3),
        ([[0, 1], [2]], [[0], [1], [2]], "rank", 2 / 3),
        ([[0, 1, 2]], [[0, 1, 2]], "rank", 1.0),
        ([[0], [1, 2]], [[0], [1, 2]], "best", 1.0),
        ([[0], [1, 2]], [[1], [0, 2]], "best", 0.0),
    ],
)
def test_agreement_with_oneself(first, again, kind, expected):
    assert agreement({"x": first}, {"x": again}, kind) == pytest.approx(expected)


def test_choices_of_the_best(make_study, client_of, person):
    study = make_study(answer="best", exclusions=LENIENT)
    best = taste(study, list(ARMS))

    def choose(item):
        order = best(item) or [[0], [1], [2], [3]]
        return [order[0], sorted(place for tier in order[1:] for place in tier)]

    person(client_of(study)).finish(choose)
    study.store.close()
    results = compute_results(study)
    assert {ranking.tiers[0] for ranking in results.rankings} == {(ARMS[0],)}
    assert results.participants[0]["checks_failed"] == 0 and results.participants[0]["repeat_agreement"] == 1
