"""Recipes of autoencoders: packaged ones are valid, keys that are not read and settings that cannot work are errors."""

import pytest
from pydantic import ValidationError

from flowgrain.config import dump_yaml, load_config
from flowgrain.train.recipe import find_recipe
from flowgrain.train.vae_recipe import VaeRecipe

PACKAGED = ("tiny-vae", "tiny-vae-f16", "gram-vae")
LEAST = {"name": "a", "data": {"path": "x"}, "budget": {"amount": 1}}
NO_GRAM = {"losses": {"gram": {"weight": 0}}}


def load(name, *overrides):
    given = ["data.path=somewhere", *overrides]
    return load_config(VaeRecipe, find_recipe(name), given)[0]


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_recipe_is_valid(name):
    recipe = load(name)
    assert recipe.name == name
    assert VaeRecipe.model_validate(recipe.model_dump(mode="json")) == recipe  # a run's own recipe.yaml


def test_the_papers_recipe():
    """What the text states (S) and what the authors' earlier code does (C); docs/vae.md says what is guessed."""
    recipe = load("gram-vae")
    assert (recipe.model.doublings, recipe.train, recipe.tuples.batch_size) == (1, "both", 160)
    assert recipe.data.buckets == ((512, 512),)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", 1e-5, 1e-4)
    losses = recipe.losses
    assert (losses.perceptual.weight, losses.adversarial.weight, losses.gram.weight) == (0.1, 0.05, 0.1)
    assert (losses.moments.weight, losses.kl, losses.scale.weight) == (1.0, 0.0, None)
    assert recipe.gram is not None and recipe.gram.grid.shape == "square" and recipe.gram.head.kind == "conv"
    assert recipe.gram.encoder.kind == "dino" and recipe.gram.grid.edge == 32


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "losses.gram.weight is above 0 and needs a reference"),
        ({**NO_GRAM, "data": {"path": "x", "trigger": "fox"}}, "data.trigger is not read"),
        ({**NO_GRAM, "data": {"path": "x", "mask": "alpha"}}, "data.mask is not read"),
        ({"gram": {"encoder": {"model": "mobilenet"}}, "crop": 32}, "set data.cache to false"),
        ({"gram": {"encoder": {"model": "mobilenet"}}, "train": "decoder"}, "losses.gram.weight: acts on the encoder"),
        ({**NO_GRAM, "train": "decoder"}, "losses.moments.weight: acts on the encoder"),
        ({**NO_GRAM, "train": "encoder"}, "losses.adversarial.adaptive is measured at the decoder"),
        ({**NO_GRAM, "validation": {}}, "validation needs held-out pictures"),
    ],
)
def test_what_is_not_read_or_cannot_work_is_an_error(sections, message):
    with pytest.raises(ValidationError, match=message):
        VaeRecipe.model_validate({**LEAST, **sections})


def test_a_weight_of_zero_takes_a_term_of_a_packaged_recipe_away():
    for name in PACKAGED:
        recipe = load(name, "losses.gram.weight=0", "losses.adversarial.weight=0", "losses.perceptual.weight=0")
        assert not recipe.gram_trains


def test_rates_left_out_are_an_autoencoders():
    recipe = VaeRecipe.model_validate({**LEAST, **NO_GRAM, "optimizer": {"betas": [0.5, 0.9]}})
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-5, 1e-4)
    assert recipe.discriminator_optimizer.lr == 1e-5
    prodigy = VaeRecipe.model_validate({**LEAST, **NO_GRAM, "optimizer": {"name": "prodigy"}})
    assert prodigy.optimizer.lr == 1.0


def test_identity_knows_what_changes_the_result():
    def identity(**sections):
        return VaeRecipe.model_validate({**LEAST, **NO_GRAM, **sections}).identity()

    plain = identity()
    memory = {"gradient_checkpointing": True}
    assert plain == identity(name="b", tuples={"micro_batch": 1}, memory=memory, budget={"amount": 9}, save_every=3)
    assert plain == identity(gram={"encoder": {"model": "mobilenet"}})  # of weight 0
    for change in ({"seed": 1}, {"train": "both", "crop": 64}, {"model": {"doublings": 1}}, {"ema": None}):
        assert identity(**change) != plain
    assert "extends" not in dump_yaml(VaeRecipe.model_validate({**LEAST, **NO_GRAM}))
