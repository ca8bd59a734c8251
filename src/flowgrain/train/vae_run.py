"""Fine-tune an autoencoder: the loop of fine-tuning with another stage."""

from flowgrain.train.loop import Observer, Outcome, run_stage
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.vae_recipe import VaeRecipe
from flowgrain.train.vae_setup import prepare_vae


def train_vae(recipe: VaeRecipe, resume: bool, observer: Observer, runtime: Runtime = ALONE) -> Outcome:
    """Run a recipe to the end of its budget, or until a signal asks to stop; raises as ``run_stage``.

    CollapseError where the output has become constant: the run folder then holds the last state from before.
    """
    return run_stage(recipe, resume, observer, runtime, lambda: prepare_vae(recipe, observer.stage, runtime))
