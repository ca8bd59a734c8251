"""Whole runs of autoencoder fine-tuning: resume, weight 0, what is saved, collapse, bad numbers."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "vae"))  # the random autoencoders of the losses' tests

from vae_runs import GRAM, LOSSES, PLAIN, assert_same_vae_run, last_state, vae_recipe, write_model, write_pictures
from whole_runs import Listening, StopAfter, log_without_times

from flowgrain.errors import CheckpointError, CollapseError, ConfigError, NonFiniteError
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer
from flowgrain.train.state import complete_checkpoints
from flowgrain.train.vae_run import train_vae
from flowgrain.train.vae_setup import prepare_vae
from flowgrain.vae.losses import generator_losses, roles
from flowgrain.vae.teacher import Teacher


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "vae")


@pytest.fixture
def recipe(pictures, model, tmp_path):
    def build(output="run", **sections):
        return vae_recipe(pictures, model, tmp_path / output, **sections)

    return build


def quiet(_what, _done, _total):
    pass


STARTING = {"adversarial": {**LOSSES["adversarial"], "start": 3, "lead": 1}}
TURNS = {"adversarial": {**LOSSES["adversarial"], "start": 2, "alternate": True}}


@pytest.mark.parametrize(
    ("stop", "terms"), [(2, STARTING), (3, STARTING), (3, TURNS)], ids=["before the start", "at the start", "in turns"]
)
def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(recipe, pictures, model, stop, terms):
    sections = {
        "losses": {**LOSSES, **terms},
        "model": {"path": str(model), "doublings": 1},
        "validation": {"path": str(pictures), "max_roots": 2},
        "previews": {"count": 1, "every": 2},
        "schedule": {"kind": "cosine"},
    }
    whole, parts = recipe("whole", **sections), recipe("parts", **sections)
    assert train_vae(whole, False, Observer()).progress.updates == 6
    assert train_vae(parts, False, StopAfter(stop)).interrupted
    assert not train_vae(parts, True, Observer()).interrupted
    assert_same_vae_run(whole.output, parts.output)


def test_spectral_norms_resume_bitwise(recipe):
    discriminator = {"layers": 1, "width": 4, "spectral_norm": True}
    losses = {**LOSSES, "adversarial": {**LOSSES["adversarial"], "discriminator": discriminator}}
    whole, parts = recipe("whole", losses=losses), recipe("parts", losses=losses)
    train_vae(whole, False, Observer())
    train_vae(parts, False, StopAfter(2))
    train_vae(parts, True, Observer())
    assert any(name.startswith("discriminator_buffer.") for name in last_state(whole.output))
    assert_same_vae_run(whole.output, parts.output)


def test_the_discriminator_enters_when_it_should(recipe):
    config = recipe(losses={**LOSSES, **STARTING})
    train_vae(config, False, Observer())
    lines = [line for line in read_log(config.output) if line["kind"] == "update"]
    assert ["adversarial" in line["watched_by_level"] for line in lines] == [False] * 3 + [True] * 3
    assert ["discriminator hinge" in line["watched_by_level"] for line in lines] == [False] * 2 + [True] * 4
    assert all(line["numbers"]["variation"] > 0.02 for line in lines)


def test_turns_move_one_side_at_a_time(recipe):
    """Of updates 2, 3, 4 (from 0) the discriminator alone learns in 3."""
    config = recipe(losses={**LOSSES, **TURNS}, save_every=1, budget={"amount": 5, "checkpoints": [0.6, 0.8, 1.0]})
    train_vae(config, False, Observer())
    states = {
        int(folder.name.removeprefix("update-")): load_file(folder / "trainable.safetensors")
        for folder in complete_checkpoints(config.output)
    }

    def moved(update, kind):
        before, after = states[update - 1], states[update]
        names = [name for name in after if name.startswith(kind)]
        return any(not torch.equal(before[name], after[name]) for name in names)

    own, critic, average = "parameter.vae.", "parameter.discriminator.", "ema."
    assert [moved(4, kind) for kind in (own, critic, average)] == [False, True, False]
    assert [moved(5, kind) for kind in (own, critic, average)] == [True, False, True]


def test_gram_of_weight_zero_is_bitwise_the_run_without(recipe):
    losses = {**LOSSES, "gram": {"weight": 0.0}}
    train_vae(recipe("zero", losses=losses, gram=GRAM), False, Observer())
    train_vae(recipe("without", losses=losses, gram=None), False, Observer())
    train_vae(recipe("with"), False, Observer())
    zero, without = recipe("zero").output, recipe("without").output
    assert_same_vae_run(zero, without)
    assert not any("gram" in name for name in last_state(zero))
    left, right = last_state(zero), last_state(recipe("with").output)
    assert any(name.startswith("parameter.gram.") for name in right)
    assert any(not torch.equal(left[name], right[name]) for name in left if name.startswith("parameter.vae."))


@pytest.mark.parametrize("doublings", [0, 1])
def test_moments_against_the_strided_teacher_start_at_zero(recipe, model, doublings):
    config = recipe(model={"path": str(model), "doublings": doublings})
    train_vae(config, False, StopAfter(2))
    first, second = (line["watched_by_level"] for line in read_log(config.output) if line["kind"] == "update")
    assert first["moments"]["macro"] == 0.0 < second["moments"]["macro"]
    assert ("scale" in first) == (doublings == 1)
    if doublings:
        assert first["scale"]["macro"] > 0


def test_the_saved_folder_loads_in_diffusers_and_is_the_moving_average(recipe, pictures, model):
    from diffusers import AutoencoderKL

    config = recipe(model={"path": str(model), "doublings": 1})
    train_vae(config, False, Observer())
    stage = prepare_vae(config, quiet)
    folder = complete_checkpoints(config.output)[-1]
    saved = load_file(folder / "trainable.safetensors")
    vae = stage._players.models.vae
    averages = {name.removeprefix("ema.vae."): value for name, value in saved.items() if name.startswith("ema.")}
    images = stage._session.builder.build(stage.plan(0)[0].micro_batches[0], 0).images
    with torch.no_grad():
        vae.load_state_dict(averages)
        expected = vae.decode(vae.encode(images).latent_dist.mode()).sample
        for place in (folder / "vae", config.output / "vae"):
            loaded = AutoencoderKL.from_pretrained(place)
            latents = loaded.encode(images).latent_dist.mode()
            assert latents.shape[-1] == images.shape[-1] // 4  # f2 with one doubling
            assert torch.allclose(loaded.decode(latents).sample, expected, atol=1e-5)
    assert any(not torch.equal(saved[f"parameter.vae.{name}"], value) for name, value in averages.items())


def test_a_half_that_does_not_train_stays(recipe):
    losses = {**LOSSES, "gram": {"weight": 0.0}, "moments": {"weight": 0.0}}
    config = recipe(train="decoder", losses=losses, gram=None, ema=None)
    before = prepare_vae(config, quiet)._players.models.vae.state_dict()
    train_vae(config, False, Observer())
    after = load_file(config.output / "vae" / "diffusion_pytorch_model.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_loss_falls_and_validation_says_so(recipe, pictures):
    config = recipe(losses=PLAIN, gram=None, ema=None, optimizer={"lr": 5e-3}, validation={"path": str(pictures)},
                    budget={"amount": 60, "checkpoints": [1.0]})  # fmt: skip
    train_vae(config, False, Observer())
    first, last = [line for line in read_log(config.output) if line["kind"] == "validation"]
    assert last["loss"] < 0.5 * first["loss"] and last["scores"]["psnr"] > first["scores"]["psnr"] + 3
    assert last["scores"]["nrmse"] < first["scores"]["nrmse"]
    best = json.loads((config.output / "best.json").read_text())
    assert (best["update"], best["loss"]) == (60, last["loss"])


def test_random_crops_are_squares_that_change_with_the_epoch(recipe):
    data = recipe().data.model_dump() | {"cache": False}
    config = recipe(crop=16, data=data, gram={**GRAM, "grid": {"edge": 2}})
    stage = prepare_vae(config, quiet)
    micro = stage.plan(0)[0].micro_batches[0]
    build = stage._session.builder.build
    first, again, other = build(micro, 0), build(micro, 0), build(micro, 1)
    assert first.images.shape[-2:] == (16, 16) and first.features.shape[1] == 4
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert not torch.equal(first.features, other.features)
    with pytest.raises(ConfigError, match="multiple of 2 px"):
        prepare_vae(recipe(crop=15, data=data), quiet)


class Flatten(Observer):
    """Makes the decoder's output constant during an update, as a collapse would."""

    def __init__(self, stage_of, update):
        self._stage_of, self._update, self.notes = stage_of, update, []

    def updated(self, progress, part, result):
        if progress.updates == self._update:
            with torch.no_grad():
                last = self._stage_of()._players.models.vae.decoder.conv_out
                last.weight.zero_()
                last.bias.zero_()


@pytest.fixture
def last_stage(monkeypatch):
    """The stage that a run makes."""
    from flowgrain.train import vae_run

    made = []

    def remembered(*arguments):
        made.append(prepare_vae(*arguments))
        return made[-1]

    monkeypatch.setattr(vae_run, "prepare_vae", remembered)
    return lambda: made[-1]


@pytest.mark.parametrize(
    ("save_every", "patience", "last_good", "raised", "kept"),
    [(None, 2, 3, 6, 2), (1, 2, 3, 6, 2), (4, 3, 4, 8, 4)],
    ids=["from memory", "later checkpoints go", "from a checkpoint"],
)
def test_a_collapse_stops_the_run_and_leaves_the_state_before(
    recipe, last_stage, save_every, patience, last_good, raised, kept
):
    """The output is constant after update ``last_good`` + 1; ``patience`` updates later the run ends."""
    sections = {
        "losses": {**PLAIN, "collapse": {"patience": patience}},
        "gram": None,
        "save_every": save_every,
        "budget": {"amount": 20, "checkpoints": [1.0]},
    }
    config, healthy = recipe("collapsed", **sections), recipe("healthy", **sections)
    train_vae(healthy, False, StopAfter(kept))
    with pytest.raises(CollapseError, match=f"update {raised}: the autoencoder's output is constant") as caught:
        train_vae(config, False, Flatten(last_stage, last_good + 1))
    (last,) = complete_checkpoints(config.output)
    assert str(last) in str(caught.value) and "\n" not in str(caught.value)
    assert last.name == f"update-{kept:06d}"
    left, right = last_state(healthy.output), last_state(config.output)
    assert all(torch.equal(left[name], right[name]) for name in left if isinstance(left[name], torch.Tensor))
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (config.output / weights).read_bytes() == (last / weights).read_bytes()
    assert json.loads((config.output / "run.json").read_text())["status"] == "collapsed"
    outcome = train_vae(config, True, StopAfter(9))
    assert outcome.interrupted and outcome.progress.updates == 9
    assert read_log(config.output)[-1]["numbers"]["variation"] > 0.02


def test_a_loss_that_is_not_finite_stops_before_the_step(recipe, last_stage):
    class Poison(Observer):
        def updated(self, progress, part, result):
            with torch.no_grad():
                last_stage()._players.models.vae.decoder.conv_out.bias.fill_(float("nan"))

    config = recipe(losses=PLAIN, gram=None)
    with pytest.raises(NonFiniteError, match=r"reconstruction = nan.*update 2 is recorded in .*update-000002"):
        train_vae(config, False, Poison())
    update = json.loads((config.output / "nonfinite-update-000002" / "update.json").read_text())
    assert len(update["micro_batches"][0]["slices"]) == 3
    assert json.loads((config.output / "run.json").read_text())["status"] == "non-finite"


def test_ctrl_c_saves_what_was_done(recipe):
    class Twice(Observer):
        def updated(self, progress, part, result):
            if progress.updates == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)

    config = recipe()
    outcome = train_vae(config, False, Twice())
    assert outcome.interrupted and outcome.progress.updates == 2
    (folder,) = complete_checkpoints(config.output)
    assert folder.name == "update-000002" and (folder / "vae" / "config.json").exists()
    assert json.loads((config.output / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(CheckpointError, match="already holds a run: add --resume"):
        train_vae(config, False, Observer())
    with pytest.raises(CheckpointError, match="the recipe changed"):
        train_vae(recipe(losses={**LOSSES, "kl": 1e-3}), True, Observer())


def test_gradient_checkpointing_changes_nothing(recipe):
    train_vae(recipe("plain"), False, Observer())
    train_vae(recipe("recomputed", memory={"gradient_checkpointing": True}), False, Observer())
    assert_same_vae_run(recipe("plain").output, recipe("recomputed").output)


def test_bf16_trains(recipe):
    config = recipe(precision="bf16")
    train_vae(config, False, Observer())
    lines = [line for line in log_without_times(config.output) if line["kind"] == "update"]
    assert all(line["grad_norm"] > 0 and line["numbers"]["weight of gram"] > 0 for line in lines)


def test_the_teacher_of_a_resumed_run_is_the_model_it_started_from(recipe, model):
    config = recipe(model={"path": str(model), "doublings": 1})
    train_vae(config, False, StopAfter(3))
    stage = prepare_vae(config, quiet)
    images = stage._session.builder.build(stage.plan(0)[0].micro_batches[0], 0).images
    fresh = Teacher(prepare_vae(config, quiet)._players.models.vae).moments(images)
    observer = Listening()
    train_vae(config, True, observer)
    assert torch.equal(stage._players.models.teacher.moments(images).mean, fresh.mean)


def test_networks_that_need_larger_pictures_are_told_at_once(recipe):
    losses = {**LOSSES, "adversarial": {**LOSSES["adversarial"], "discriminator": {"architecture": "paella"}}}
    with pytest.raises(ConfigError, match=r"losses\.adversarial\.discriminator needs pictures of 65 px a side"):
        prepare_vae(recipe(losses=losses), quiet)


def test_roles_say_who_feels_whom(recipe):
    """The schedule of the recipe is that of the losses."""
    term = recipe(losses={**LOSSES, **TURNS}).losses.adversarial
    assert [roles(term, update).generator for update in range(6)] == [True, True, True, False, True, False]
    assert generator_losses.__doc__
