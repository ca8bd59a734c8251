"""One matrix: every family x every kind of adapter x baseline and granularity, from a recipe file to other programs.

``tiny-flux`` and SDXL have all of their cells in the ordinary suite, every other family one; the rest is marked slow.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from matrix_cells import (
    HEIGHT,
    PROMPTS,
    WIDTH,
    Cell,
    all_cells,
    cut,
    drawn,
    load_by_peft,
    predict,
    write_pictures,
    write_recipe,
)
from matrix_models import MODELS
from PIL import Image
from whole_runs import StopAfter, assert_same_run

from flowgrain.adapters.source import LayerUpdate, read_adapter
from flowgrain.cli.export import export, import_adapter
from flowgrain.errors import FlowgrainError
from flowgrain.export.updates import folded
from flowgrain.families.base import Family
from flowgrain.families.loading import unload_adapter
from flowgrain.families.registry import load_family, resolve_model
from flowgrain.sample.generate import SampleConfig, generate
from flowgrain.sample.run_folder import Checkpoint, choose_checkpoint, read_run
from flowgrain.sample.session import SamplePlan, draw
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe
from flowgrain.train.setup import prepare
from flowgrain.train.step import run_update

CPU = torch.device("cpu")
CELLS = [pytest.param(cell, id=str(cell), marks=() if cell.is_ordinary else pytest.mark.slow) for cell in all_cells()]
SAMPLER = SampleConfig(steps=2, guidance=3.0, height=HEIGHT, width=WIDTH)
ROUNDING, MOVED = 2e-5, 1e-3
"""What two ways of computing the same may differ by, and what training must have changed at least (:func:`apart`)."""


def silent(_done, _total):
    """No progress."""


@dataclass(frozen=True)
class Run:
    """A trained cell, and what its model does with the adapter live in it."""

    cell: Cell
    recipe: Recipe
    checkpoint: Checkpoint
    losses: list[float]
    """Of a fresh adapter on one batch, before each of the updates on it."""
    prediction: torch.Tensor
    latents: torch.Tensor
    picture: Image.Image
    family: Family
    """The model, afterwards, with the adapter merged where it was live."""

    @property
    def output(self) -> Path:
        return self.recipe.output

    @property
    def model(self) -> str:
        return self.recipe.model.path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(pictures, the same pictures cut in slices)."""
    folder = tmp_path_factory.mktemp("data")
    pictures = write_pictures(folder / "pictures")
    return pictures, cut(pictures, folder / "slices")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Name in the table -> an embedded model's name, or a folder of random weights."""
    made = {}

    def find(name):
        source = MODELS[name].source
        if isinstance(source, str):
            return source
        if name not in made:
            made[name] = tmp_path_factory.mktemp("models") / name
            source().save_pretrained(made[name])
        return str(made[name])

    return find


@pytest.fixture(scope="module", params=CELLS)
def run(request, data, model_of, tmp_path_factory):
    cell, (pictures, slices) = request.param, data
    recipe = write_recipe(cell, model_of(cell.name), pictures, slices, tmp_path_factory.mktemp(str(cell)))
    train(recipe, False, Observer())
    checkpoint = choose_checkpoint(recipe.output, None)
    session = prepare(recipe, lambda *_: None)
    losses = losses_on_one_batch(session)
    family, adapter = session.family, session.adapter
    adapter.load(checkpoint.adapter)
    adapter.train(False)
    prediction, latents = predict(family), drawn(family, family.pipeline())
    (_, _, picture), *_ = generate(family, None, PROMPTS[:1], [0], SAMPLER, silent)
    with adapter.enabled(False):
        assert apart(predict(family), prediction) > MOVED
        assert apart(drawn(family, family.pipeline()), latents) > MOVED
    adapter.merge()
    return Run(cell, recipe, checkpoint, losses, prediction, latents, picture, family)


def losses_on_one_batch(session):
    """The loss before each of three updates on the first batch, with its noise and noise levels."""
    batches = [session.builder.build(micro, 0) for micro in session.plan(0)[0].micro_batches]
    clip = session.recipe.clip
    return [
        run_update(session.objective, iter(batches), session.optimizer, clip, session.autocast).loss for _ in range(3)
    ]


def test_the_loss_on_one_batch_falls(run):
    assert run.losses == sorted(run.losses, reverse=True)
    assert run.losses[-1] < 0.998 * run.losses[0]


def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(run, tmp_path):
    parts = run.recipe.model_copy(update={"output": tmp_path / "run"})
    assert train(parts, False, StopAfter(1)).interrupted
    train(parts, True, Observer())
    assert_same_run(run.output, parts.output)


def test_merged_it_predicts_as_the_live_adapter(run, tmp_path):
    assert apart(predict(run.family), run.prediction) < ROUNDING
    export(run.output, "merged", out=tmp_path / "merged")
    family = load_family(str(tmp_path / "merged"), None, torch.float32, CPU)
    assert apart(predict(family), run.prediction) < ROUNDING


@pytest.mark.parametrize("target", ["diffusers", "kohya", "comfyui"])
def test_exported_and_imported_it_is_the_same_adapter(run, target, tmp_path):
    file, refusal = tmp_path / "adapter.safetensors", run.cell.refusal(target)
    if refusal is not None:
        with pytest.raises(FlowgrainError, match=refusal):
            export(run.output, target, out=file)
        return
    export(run.output, target, out=file)
    import_adapter(file, run.model, tmp_path / "back")
    ours, theirs = read_adapter(run.checkpoint.adapter).components, read_adapter(tmp_path / "back").components
    assert ours.keys() == theirs.keys()
    for component, updates in ours.items():
        assert updates.keys() == theirs[component].keys()
        for layer, update in updates.items():
            back = theirs[component][layer]
            assert_same_update(update, back)
            if target != "diffusers":  # whose files know no alpha: it is in B
                assert (back.rank, back.alpha) == (update.rank, update.alpha)


def test_the_ordinary_pipeline_draws_what_the_live_adapter_draws(run, tmp_path):
    file, merged = tmp_path / "adapter.safetensors", tmp_path / "merged"
    if run.cell.kind == "full":
        export(run.output, "merged", out=merged)
        pipeline = DiffusionPipeline.from_pretrained(merged, dtype=torch.float32)
    else:
        export(run.output, "diffusers", out=file)
        pipeline = DiffusionPipeline.from_pretrained(resolve_model(run.model), dtype=torch.float32)
        if run.cell.model.lora_loader:
            pipeline.load_lora_weights(str(file))
        else:
            load_by_peft(pipeline, file)
    assert apart(drawn(run.family, pipeline), run.latents) < ROUNDING


def test_flowgrain_samples_what_the_live_adapter_draws(run, tmp_path):
    name, model = read_run(run.output)
    family = load_family(model.path, model.family, torch.float32, CPU)
    pipeline = family.pipeline(run.checkpoint.adapter)
    assert apart(drawn(family, pipeline), run.latents) < ROUNDING
    unload_adapter(pipeline)
    plan = SamplePlan(name, model, run.checkpoint, PROMPTS[:1], [0], SAMPLER, tmp_path)
    assert draw(family, plan, silent).drawn == 1
    (file,) = tmp_path.glob("*.png")
    ours, theirs = (np.asarray(image, np.int16) for image in (Image.open(file), run.picture))
    assert np.abs(ours - theirs).max() <= 1


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The greatest difference, as a part of the greatest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def assert_same_update(ours: LayerUpdate, theirs: LayerUpdate) -> None:
    """The same matrices; the scale may have moved into B, which rounds it once."""
    before, after = folded(ours), folded(theirs)
    assert torch.equal(before.down, after.down)
    torch.testing.assert_close(after.up, before.up, rtol=1e-6, atol=0.0)
    lengths = [update.magnitude for update in (before, after) if update.magnitude is not None]
    assert len(lengths) in (0, 2)
    assert all(torch.equal(length, lengths[0]) for length in lengths)
