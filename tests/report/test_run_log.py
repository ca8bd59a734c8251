import pytest

from flowgrain.errors import DataError
from flowgrain.report.run_log import parse_log


def update(number, **changed):
    line = {
        "kind": "update",
        "update": number,
        "slices": 12 * number,
        "seconds": 0.5 * number,
        "loss_by_level": {"macro": 0.3, "micro": 0.2},
        "mean_t_by_level": {"macro": 0.6, "micro": 0.4},
        "count_by_level": {"macro": 4, "micro": 8},
    }
    return {**line, **changed}


def validation(number, fraction, loss=0.25):
    return {
        "kind": "validation",
        "update": number,
        "slices": number * 12,
        "budget_fraction": fraction,
        "loss": loss,
        "t": [0.05, 0.95],
        "by_level": {"macro": [0.3, 0.2]},
        "per_root_by_level": {"macro": {"a": 0.25}},
    }


def test_cost_counts_up_to_an_update():
    log = parse_log([update(n) for n in range(1, 11)])
    cost = log.cost(until_update=6)
    assert (cost.updates, cost.slices, cost.macro_passes, cost.seconds) == (6, 72, 24, 3.0)
    assert log.cost(until_update=0).updates == 0


def test_an_update_logged_twice_counts_once_and_order_is_restored():
    log = parse_log([update(2), update(1), update(2, seconds=9.0)])
    assert [(r.update, r.seconds) for r in log.updates] == [(1, 0.5), (2, 9.0)]


def test_validation_is_found_by_budget_fraction():
    log = parse_log([validation(100, 1.0, 0.25), validation(150, 1.5, 0.24)])
    assert log.validation_at(1.5).loss == 0.24
    assert log.validation_at(1.0 + 1e-9).update == 100
    assert log.validation_at(0.5) is None


def test_lines_of_other_kinds_are_left_to_others():
    assert parse_log([{"kind": "note"}]).updates == ()


def test_a_missing_field_is_named_with_its_line():
    broken = update(2)
    del broken["seconds"]
    with pytest.raises(DataError, match="line 2: field 'seconds' is missing"):
        parse_log([update(1), broken])
