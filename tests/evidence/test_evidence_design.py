"""The design of the granularity experiment: what is chosen where, what every arm is given."""

import json
from pathlib import Path

import pytest
from experiment.arms import ARMS, SEEDS, STAGES, cells_of, tuned
from experiment.domains import CHOOSING, CONFIRMING, REPORTED
from experiment.rates import GRIDS, chosen_rates, rate_cells
from experiment.results import append, read, rewrite


def loss_records(cells, loss):
    return {
        cell.key: {"key": cell.key, "validation": [{"by_root": {"macro": [loss(cell)], "micro": [1.0]}}]}
        for cell in cells
    }


def rate_of(cell):
    return float(cell.label.removeprefix("lr"))


def test_domains_for_choosing_are_not_those_of_the_tables():
    assert not set(REPORTED) & (set(CHOOSING) | set(CONFIRMING)) and not set(CHOOSING) & set(CONFIRMING)


def test_every_arm_gets_the_same_grid_of_rates():
    cells = list(rate_cells(tuned(), {}))
    for model, adapter, arm in tuned():
        own = [c for c in cells if (c.model, c.adapter, c.arm) == (model, adapter, arm)]
        assert sorted({rate_of(cell) for cell in own}) == sorted(GRIDS[model])
        assert {cell.domain for cell in own} == set(CHOOSING)


def test_the_grid_grows_until_the_best_is_inside():
    triples = [("flux", "dora", "baseline")]
    known = {}
    for _ in range(6):
        known |= loss_records(rate_cells(triples, known), lambda cell: abs(rate_of(cell) - 5e-3))
    assert chosen_rates(triples, known)["rates"] == {"flux/dora/baseline": 6.4e-3}
    assert max(rate_of(cell) for cell in rate_cells(triples, known)) == 1.3e-2


def test_rates_are_chosen_on_whole_pictures():
    triples = [("flux", "dora", "baseline")]
    known = loss_records(rate_cells(triples, {}), lambda cell: abs(rate_of(cell) - 1.6e-3))
    for record in known.values():
        record["validation"][-1]["by_root"]["micro"] = [-record["validation"][-1]["by_root"]["macro"][0]]
    assert chosen_rates(triples, known)["rates"] == {"flux/dora/baseline": 1.6e-3}


def test_no_table_without_rates_and_seeds_come_last(tmp_path):
    results = tmp_path / "granularity.jsonl"
    assert [c.arm for c in cells_of("table", results) if c.arm != "base"] == []
    rates = {"/".join(triple): 1e-3 for triple in tuned()}
    results.with_name("rates.json").write_text(json.dumps({"rates": rates}))
    for stage in STAGES[1:]:
        cells = list(cells_of(stage, results))
        assert len({cell.key for cell in cells}) == len(cells)
        assert {cell.domain for cell in cells} == set({"vary": CHOOSING, "confirm": CONFIRMING}.get(stage, REPORTED))
        seeds = [cell.seed for cell in cells]
        assert seeds == sorted(seeds) and max(seeds) == SEEDS[stage] - 1


def test_arms_differ_in_what_they_say_alone():
    """Warm-up and averaging are the same in slices, so that large updates are not averaged over more of the budget."""
    for arm in ARMS["flux"].values():
        settings = dict(text.split("=", 1) for text in arm.settings)
        batch = int(settings.get("tuples.batch_size", 8))
        levels = settings["data.levels"].count(",") + 1 if "data.levels" in settings else 3
        slices = batch * levels if arm.recipe in ("slices-tuples", "granularity") else batch
        assert float(settings.get("ema.decay", 0.98)) ** (8 / slices) == pytest.approx(0.98, abs=1e-4)
        assert int(settings.get("schedule.warmup", 20)) * slices == pytest.approx(160, abs=slices / 2)


def test_results_survive_a_torn_line(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, {"key": "a", "value": 1})
    append(path, {"key": "b", "value": 2})
    append(path, {"key": "a", "value": 3})
    with path.open("a") as stream:
        stream.write('{"key": "c", "val')
    assert {key: record["value"] for key, record in read(path).items()} == {"a": 3, "b": 2}
    rewrite(path, read(path).values())
    assert len(path.read_text().splitlines()) == 2


def test_code_version_names_a_commit():
    from experiment.results import ROOT, code_version

    if not (Path(ROOT) / ".git").exists():
        pytest.skip("not a git checkout")
    assert code_version()["commit"].rstrip("+").isalnum()
