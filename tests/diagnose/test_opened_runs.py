"""Opening runs: the weights of each state, the data as it was trained on, and clear refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.opened import open_run
from flowgrain.diagnose.points import PRIOR, choose_points, find_checkpoints
from flowgrain.errors import CheckpointError, ConfigError, DataError
from flowgrain.families.registry import load_family
from flowgrain.train.loop import Observer, train


def copied(run, place):
    shutil.copytree(run, place)
    return place


def trained_values(checkpoint):
    tensors = load_file(checkpoint.path / "trainable.safetensors")
    return {
        kind: {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("parameter.", "ema.")
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_state_is_what_pictures_are_drawn_with_or_what_the_optimizer_was_at(opened):
    first, last = opened.points[1], opened.points[2]
    assert [point.name for point in opened.points] == ["without adapter", "update 2", "update 4"]
    values = trained_values(last.checkpoint)
    assert not same(values["parameter."], values["ema."])
    with opened.at(last):
        assert same(opened.adapter.state_dict(), values["ema."])
    with opened.at(last, trained=True):
        assert same(opened.adapter.state_dict(), values["parameter."])
    with opened.at(first):
        assert same(opened.adapter.state_dict(), trained_values(first.checkpoint)["ema."])


def test_without_adapter_the_model_is_the_base_model(opened, small_flux):
    x = torch.randn(2, *opened.spaces[0].shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9])
    inputs = opened.inputs(opened.train, [0, 1])
    with opened.at(PRIOR):
        prior = opened.predict(x, t, inputs)
    base = load_family(str(small_flux), None, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        expected = base.predict(x, t.double().view(-1, 1), base.condition(inputs)).prediction
    assert torch.allclose(prior, expected, atol=1e-5)
    with opened.at(opened.points[-1]):
        assert not torch.allclose(opened.predict(x, t, inputs), prior, atol=1e-4)


def test_the_run_is_not_written_to(run_folder, open_short):
    before = {path: path.read_bytes() for path in sorted(run_folder.rglob("*")) if path.is_file()}
    opened = open_short()
    with opened.at(opened.points[-1]):
        opened.predict(torch.zeros(1, *opened.spaces[0].shape), torch.tensor([0.5]), opened.inputs(opened.train, [0]))
    assert {path: path.read_bytes() for path in sorted(run_folder.rglob("*")) if path.is_file()} == before


def test_checkpoints_that_only_kept_their_adapter_can_be_measured(run_folder, open_short, tmp_path):
    run = copied(run_folder, tmp_path / "run")
    for path in run.glob("checkpoints/*/trainable.safetensors"):
        path.unlink()
    for path in run.glob("checkpoints/*/optimizer.pt"):
        path.unlink()
    opened = open_short(run=run)
    last = opened.points[-1]
    assert not opened.has_trained(last)
    with opened.at(last):
        assert same(opened.adapter.state_dict(), trained_values(find_checkpoints(run_folder)[-1])["ema."])
    with pytest.raises(CheckpointError, match="was deleted; only what pictures are drawn with"), opened.at(last, True):
        pass


def test_latents_are_one_draw_of_each_slice_and_of_its_mirror_image(opened):
    (space,) = opened.spaces
    assert len(space) == 2 * len(opened.train.dataset) == 48 and sum(space.mirrored) == 24
    rows = space.latents.read(0, len(space))
    place = {(index, side): row for row, (index, side) in enumerate(zip(space.index, space.mirrored, strict=True))}
    for index in (0, 7):
        for side in (False, True):
            mean = opened.family.latents(opened.train.posteriors.get(index, side), torch.zeros(1, *space.shape))[0]
            deviation = (rows[place[index, side]] - mean).square().mean().sqrt()
            other = (rows[place[index, side]] - rows[place[(index + 1) % 24, side]]).square().mean().sqrt()
            assert 0 < deviation < other / 2


def test_latents_that_do_not_fit_in_memory_go_to_a_file_and_are_the_same(opened, open_short):
    spilled = open_short(memory_mib=0)  # not a legal setting: nothing fits
    (kept,), (read) = opened.spaces, spilled.spaces
    assert torch.equal(read[0].latents.read(3, 40), kept.latents.read(3, 40))
    assert read[0].latents._array is None and kept.latents._file is None


def test_slices_beyond_the_most_are_left_out_by_whole_roots(open_short):
    opened = open_short(max_slices=10)
    roots = [item.root for item in opened.train.dataset.slices]
    assert opened.slices_in_run == 24 and len(roots) == 9
    assert all(roots.count(root) == 3 for root in roots)
    assert [item.slice_id for item in open_short(max_slices=10).train.dataset.slices] == [
        item.slice_id for item in opened.train.dataset.slices
    ]
    assert len(opened.plan(0)) == 2


def test_held_out_slices_have_a_validator(opened):
    with opened.at(opened.points[-1]):
        measured = opened.held_out.validator.measure(opened.autocast)
    logged = [line for line in opened.log if line["kind"] == "validation"][-1]
    assert measured["loss"] == pytest.approx(logged["loss"], rel=1e-6)


def test_what_moved_is_asked_for(run_folder, slices, open_short, tmp_path):
    moved = shutil.copytree(slices, tmp_path / "moved")
    with pytest.raises(DataError, match=r"if the data moved, say where: data\.path=FOLDER"):
        open_short(f"data.path={tmp_path / 'nowhere'}")
    assert len(open_short(f"data.path={moved}").train.dataset) == 24
    manifest = moved / "manifest.jsonl"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("red drawing", "red painting"))
    with pytest.raises(DataError, match="not the data that the run was trained on"):
        open_short(f"data.path={moved}")
    with pytest.raises(ConfigError, match="only these may change"):
        open_short("optimizer.lr=1")


def test_no_run_and_no_checkpoint_are_told_apart(run_folder, tmp_path, small_config):
    def opening(run):
        open_run(run, small_config, [], tmp_path / "cache", lambda _what, _done, _total: None)

    with pytest.raises(CheckpointError, match=r"no recipe\.yaml here"):
        opening(tmp_path)
    run = copied(run_folder, tmp_path / "run")
    for path in run.glob("checkpoints/*/COMPLETE"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint; wait for the first one"):
        opening(run)


def test_points_are_evenly_spaced_with_both_ends(run_folder, tmp_path):
    run = copied(run_folder, tmp_path / "run")
    last = run / "checkpoints" / "update-000004"
    for update in range(5, 16):
        place = shutil.copytree(last, last.with_name(f"update-{update:06d}"))
        state = json.loads((place / "state.json").read_text())
        (place / "state.json").write_text(json.dumps({**state, "update": update}))
    found = find_checkpoints(run)
    updates = [point.update for point in choose_points(found, None, 4)]
    assert updates[0] == 0 and updates[1] == 2 and updates[-1] == 15 and len(updates) == 5
    assert np.ptp(np.diff(updates[1:])) <= 2
    assert [point.update for point in choose_points(found, (4, 15), 1)] == [0, 4, 15]
    assert [point.update for point in choose_points(found, None, 1)] == [0, 15]
    with pytest.raises(CheckpointError, match=r"after update 3; there are: 2, 4, 5"):
        choose_points(found, (3,), 1)


def test_a_run_of_whole_weights_has_its_states(slices, short_recipe, tmp_path):
    recipe = short_recipe(slices, tmp_path / "full", adapter={"kind": "full"}, ema=None)
    train(recipe, False, Observer())
    opened = open_run(recipe.output, DiagnoseConfig(), [], tmp_path / "cache", lambda _what, _done, _total: None)
    x, inputs = torch.zeros(1, *opened.spaces[0].shape), opened.inputs(opened.train, [0])
    found = []
    for point in (*opened.points, opened.points[0], opened.points[2]):
        with opened.at(point):
            found.append(opened.predict(x, torch.tensor([0.5]), inputs))
    assert torch.equal(found[0], found[3]) and torch.equal(found[2], found[4])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[1], found[2])
