"""Recipes: every packaged one is valid, Table 3 is Table 3, keys that are not read are errors."""

from pathlib import Path

import pytest

import flowgrain
from flowgrain.config import load_config
from flowgrain.errors import ConfigError
from flowgrain.flow.time_laws import LinearShift
from flowgrain.train.recipe import Recipe, find_recipe

PACKAGED = sorted(file.stem for file in (Path(flowgrain.__file__).parent / "recipes").glob("*.yaml"))
RECIPES = [name for name in PACKAGED if name.startswith(("flux-dev-", "tiny-flux-"))]


def load(name, *overrides):
    return load_config(Recipe, find_recipe(name), ["data.path=somewhere", *overrides])[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_packaged_recipe_is_valid(name):
    assert load(name).name == name.removeprefix("flux-dev-").removeprefix("tiny-flux-")


def test_table_3():
    recipe = load("flux-dev-granularity")
    assert (recipe.adapter.kind, recipe.adapter.rank, recipe.adapter.alpha) == ("dora", 32, 16)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.tuples.batch_size) == ("adamw", 1e-4, 8)
    assert (recipe.model.path, recipe.model.guidance) == ("black-forest-labs/FLUX.1-dev", 1.0)
    assert recipe.time.granularity_shift == {"macro": 0.5, "meso": 0.0, "micro": -0.5}
    assert recipe.budget.checkpoints == (1.0, 1.5)
    assert load("flux-dev-baseline").data.resolution == 1280


@pytest.mark.parametrize("model", ["flux-dev", "tiny-flux"])
def test_arms_differ_in_nothing_but_the_method(model):
    """Baseline and full method share model, adapter, optimizer, schedule and budget."""
    arms = [
        load(f"{model}-{m}") for m in ("baseline", "slices-random", "slices-tuples", "slices-modulation", "granularity")
    ]
    for section in ("model", "adapter", "optimizer", "schedule", "ema", "clip", "budget", "precision", "seed"):
        assert len({repr(getattr(arm, section)) for arm in arms}) == 1


def test_time_section_builds_the_law():
    law = load("flux-dev-granularity").time.law(LinearShift())
    assert (law.delta, law.shift) == ((0.5, 0.0, -0.5), LinearShift())
    assert load("flux-dev-granularity", "time.resolution_shift=none").time.law(LinearShift()).shift is None
    own = load(
        "flux-dev-granularity", "time.resolution_shift={base_tokens: 16, max_tokens: 64, base_shift: 0, max_shift: 1}"
    )
    assert own.time.law(None).shift == LinearShift(16, 64, 0.0, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.final=0.1"], "schedule.final is not read"),
        (["tuples.grouping=slice", "tuples.reduction=level"], "reduction"),
        (["data.levels=[macro]"], "granularity_shift of meso or micro is not read"),
        (["budget.checkpoints=[1.5, 1.0]"], "positive and increasing"),
        (["optimizer.betas=[0.9, 1.0]"], r"\[0, 1\)"),
        (["time.granularity_shift.mezzo=1"], "mezzo"),
        (["time.resolution_shift={base_tokens: 5, max_tokens: 5}"], "must differ"),
    ],
)
def test_contradictions_and_unread_keys(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load("tiny-flux-granularity", *overrides)


def test_short_forms():
    recipe = Recipe.model_validate({"name": "x", "model": "some/model", "data": {"path": "d"}, "budget": {"amount": 1}})
    assert recipe.model.path == "some/model" and recipe.output == Path("runs/x")


def test_identity_ignores_places_and_names_only():
    recipe = load("tiny-flux-granularity")
    assert recipe.identity() == load("tiny-flux-granularity", "output=elsewhere", "name=other").identity()
    assert recipe.identity() != load("tiny-flux-granularity", "optimizer.lr=1e-5").identity()
