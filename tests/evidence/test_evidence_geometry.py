"""Tables of the geometry of the experiment, from values that are known."""

import pytest
from experiment.arms import LOGGED, STEERED
from experiment.geometry_report import PAIRS, _gradients, _logged, _moved, less, over_seeds


def test_differences_are_paired_by_domain_and_seed():
    first = {"a": {0: 1.0, 1: 5.0}, "b": {0: 2.0, 1: 3.0}}
    second = {"a": {0: 1.5, 1: 5.5, 2: 9.0}, "b": {0: 2.5, 1: 3.5}}
    found = less(second, first)
    assert found.value == pytest.approx(0.5) and found.error == pytest.approx(0, abs=1e-12)
    assert over_seeds(first).value == pytest.approx(2.75)


def test_cosines_of_expected_gradients_come_from_the_unbiased_products():
    own = {"gram_unbiased": [[4.0, 1.0, 0.0], [1.0, 1.0, -0.5], [0.0, -0.5, 1.0]],
           "conflict_rate": [0.0, 2 / 3], "cross_share": [0.2, 0.4]}  # fmt: skip
    unknown = {**own, "gram_unbiased": [[-1.0, 1, 1], [1, 1.0, 1], [1, 1, 1.0]]}
    gradients = {"openmoji": {"slices-large/seed0": own, "slices-large/seed1": own, "tuples/seed0": unknown}}
    rows = _gradients(gradients).splitlines()
    assert all(pair in rows[0] for pair in PAIRS)
    assert rows[2] == "| slices-large | .500 | .000 | -.500 | .333 | .300 |"
    assert rows[3].startswith("| tuples |  |  | 1.000 (+1.500")


def test_first_short_windows_do_not_count():
    def line(updates, cosine):
        oscillation = {"updates": updates, "mean_cosine": cosine, "straightness": 0.5, "random_straightness": 0.25,
                       "variance_ratio": 1.0, "high_frequency_share": 0.5}  # fmt: skip
        return {"oscillation": oscillation, "conflict_rate": 0.5, "cross_share": 0.1}

    runs = {
        f"{domain}{seed}": {
            "cell": {"stage": "table", "arm": "tuples", "domain": domain, "seed": seed},
            "interference": [line(3, 9.0), line(16, 0.2), line(16, 0.4)],
        }
        for domain in ("a", "b")
        for seed in range(2)
    }
    table = _logged(runs)
    assert "| tuples | .300 [.300, .300] | .500" in table and len(table.splitlines()) == 3
    assert set(LOGGED) >= {"tuples"}


def test_where_measured_modulation_ended():
    runs = {
        str(seed): {
            "cell": {"stage": "steered", "arm": "measured", "domain": "a", "seed": seed},
            "modulation": [
                {"granularity_shift": {"macro": 9.0, "meso": 9.0, "micro": 9.0}},
                {"granularity_shift": {"macro": 0.1 * seed, "meso": 0.0, "micro": -0.2}},
            ],
        }
        for seed in range(3)
    }
    found = _moved(runs)
    assert "| shift of noise levels, 3 runs | .10 (.00 to .20) | .00 (.00 to .00) | -.20 (-.20 to -.20) |" in found
    assert "factor" not in found and "measured" in STEERED
