"""Autoencoders: any micro-batches and processes give one gradient, adaptive weights included."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "vae"))  # the random autoencoders of the losses' tests

import vae_workers
import workers
from vae_runs import LOSSES, vae_recipe, write_model, write_pictures

from flowgrain.errors import ConfigError
from flowgrain.train.vae_setup import prepare_vae

WEIGHED = {
    **LOSSES,
    "kl": 1e-3,
    "moments": {"weight": 1.0, "adaptive": {"numerator": "reconstruction"}},
    "perceptual": {"weight": 0.1},
}
FLOOR = {"numerator": "perceptual", "rule": "floor", "delta": 1e-8}
SPECTRAL = {"layers": 1, "width": 4, "spectral_norm": True, "gradient_penalty": 1.0}
CASES = {
    "all weighed": WEIGHED,
    "by the perceptual gradient": {**WEIGHED, "adversarial": {**LOSSES["adversarial"], "adaptive": FLOOR}},
    "plain weights": {
        **LOSSES,
        "adversarial": {**LOSSES["adversarial"], "adaptive": None, "discriminator": SPECTRAL},
        "gram": {"weight": 0.1, "adaptive": None},
    },
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    place = tmp_path_factory.mktemp("exact")
    pictures, model = write_pictures(place / "pictures", count=5), write_model(place / "model")

    def recipe(**sections):
        sections = {"model": {"path": str(model), "doublings": 1}, **sections}
        data = {"path": str(pictures), "buckets": [[32, 32]], "flip": True}
        return vae_recipe(pictures, model, place / "run", data=data, **sections)

    return recipe


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_and_processes_give_one_gradient(build, tmp_path, case):
    def cut(micro_batch):
        return build(losses=CASES[case], tuples={"batch_size": 5, "micro_batch": micro_batch, "grouping": "slice"})

    whole = vae_workers.vae_gradient(cut(None))
    assert whole.autoencoder.norm() > 0 and whole.discriminator.norm() > 0
    for micro_batch in (1, 2):
        assert_close(vae_workers.vae_gradient(cut(micro_batch)), whole)
    ended = workers.run_processes(tmp_path, 2, vae_workers.vae_gradient_of_process, cut(2))
    assert [process.exit_code for process in ended] == [0, 0], ended
    for process in ended:
        assert_close(process.value, whole)


def assert_close(found, expected):
    for mine, theirs in ((found.autoencoder, expected.autoencoder), (found.discriminator, expected.discriminator)):
        # the weights are ratios of norms, in float32: some units in the last place more than a plain sum
        assert (mine - theirs).norm() <= 2e-6 * theirs.norm()
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert found.weights[name] == pytest.approx(weight, rel=1e-5), name


def test_two_processes_train_as_one(build, tmp_path):
    """Whole runs, with one resumed by the other number of processes."""
    rate = {"lr": 1e-3, "eps": 1e-4}  # well above rounding, see test_distributed
    budget = {"amount": 2, "checkpoints": [1.0, 2.0]}
    # without a norm: in front of one a bias has no gradient but rounding
    discriminator = {"layers": 1, "width": 4, "normalisation": "none"}
    losses = {**LOSSES, "adversarial": {**LOSSES["adversarial"], "discriminator": discriminator}}
    sections = {"budget": budget, "save_every": 1, "optimizer": rate, "discriminator_optimizer": rate, "losses": losses}
    alone, together = (
        build(**sections).model_copy(update={"output": tmp_path / name}) for name in ("alone", "together")
    )
    first = vae_workers.vae_whole_run(alone)
    ended = workers.run_processes(tmp_path / "logs", 2, vae_workers.vae_whole_run, together, 2)
    assert [process.exit_code for process in ended] == [0, 0], ended
    assert [process.value.interrupted for process in ended] == [True, True]
    second = vae_workers.vae_whole_run(together, None, True)
    assert first.progress.updates == second.progress.updates == 4
    left, right = (vae_workers.last_tensors(config.output) for config in (alone, together))
    for name, value in left.items():
        assert torch.allclose(value.float(), right[name].float(), rtol=1e-5, atol=1e-5), name


def test_batch_norm_is_refused_where_it_would_depend_on_the_cut(build):
    discriminator = {"layers": 1, "width": 4, "normalisation": "batch"}
    losses = {**LOSSES, "adversarial": {**LOSSES["adversarial"], "discriminator": discriminator}}

    def prepared(micro_batch):
        tuples = {"batch_size": 5, "micro_batch": micro_batch, "grouping": "slice"}
        return prepare_vae(build(losses=losses, tuples=tuples), lambda *_: None)

    assert prepared(None).parameters()
    with pytest.raises(ConfigError, match="would depend on how an update is cut"):
        prepared(2)
