"""Whole runs with alignment terms: resuming, what is saved and logged, what is forecast, what is replayed."""

import json

import pytest
import torch
from aligned_runs import save_encoder, silent, term
from safetensors.torch import load_file
from whole_runs import StopAfter, assert_same_run, final_state, log_without_times

from flowgrain.diagnose.points import find_checkpoints, read_trained
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.train.forecast import forecast
from flowgrain.train.loop import Observer, train
from flowgrain.train.memory_forecast import MemoryModel, Shape, forecast_disk
from flowgrain.train.repro import read_bundle, replay, write_bundle
from flowgrain.train.schedule import Progress
from flowgrain.train.setup import prepare

THREE_UPDATES = {"amount": 2, "checkpoints": [1.0, 1.5]}
HEADS = {"align.gram.conv.weight", "align.gram.conv.bias", "align.repa.layers.0.weight"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "dino")


def sections(encoder):
    mlp = {"kind": "mlp", "hidden": 8}
    return {
        "align": [term(encoder, weight=5.0), term(encoder, "repa", head=mlp, watch=0.5)],
        "optimizer": {"lr": 1e-3, "lrs": {"align.*": 1e-2}},
        "ema": {"decay": 0.5},
        "budget": THREE_UPDATES,
        "interference": {"every": 2},
    }


def test_a_run_resumes_bitwise_with_its_heads_and_saves_none_of_them_for_sampling(recipe, encoder):
    whole, parts = (recipe(name, **sections(encoder)) for name in ("whole", "parts"))
    train(whole, False, Observer())
    assert train(parts, False, StopAfter(2)).interrupted
    train(parts, True, Observer())
    left, state = final_state(parts.output), final_state(whole.output)
    assert left.keys() == state.keys() and all(torch.equal(left[name], state[name]) for name in left)
    assert _log(whole.output) == _log(parts.output)
    assert {f"parameter.{name}" for name in HEADS} | {f"ema.{name}" for name in HEADS} <= state.keys()
    start = prepare(recipe("start", **sections(encoder)), silent)
    for name, parameter in start.objective.parameters():
        if name in HEADS:  # trained, by its own rate
            step = (state[f"parameter.{name}"] - parameter).abs().max().item()
            assert 5e-3 < step < 5e-2
    # nothing at inference
    [adapter] = (find_checkpoints(whole.output)[-1].path / "adapter").glob("*.safetensors")
    plain = recipe("plain", **{key: value for key, value in sections(encoder).items() if key == "budget"})
    train(plain, False, Observer())
    [expected] = (find_checkpoints(plain.output)[-1].path / "adapter").glob("*.safetensors")
    assert load_file(adapter).keys() == load_file(expected).keys()
    # and a diagnosis loads the adapter's parameters alone
    trained = read_trained(find_checkpoints(whole.output)[-1])
    assert trained.keys() == {name for name, _ in start.adapter.parameters()}
    _assert_logged(whole.output)


def _log(output):
    return [{key: value for key, value in line.items() if key != "measure_seconds"}
            for line in log_without_times(output)]  # fmt: skip


def _assert_logged(output):
    lines = _log(output)
    updates = [line["watched_by_level"] for line in lines if line["kind"] == "update"]
    assert len(updates) == 3
    for line in updates:
        assert {"gram", "repa", "gram.similarity"} <= line.keys()
        assert all(0 <= value <= 2 for value in line["gram"].values())
        assert all(-1 <= value <= 1 for value in (*line["repa"].values(), *line["gram.similarity"].values()))
        assert line["gram"].keys() == line["gram.similarity"].keys() >= {"macro"}
    assert any("repa.similarity" not in line or line["repa.similarity"].keys() != line["repa"].keys()
               for line in updates)  # fmt: skip
    assert [line["update"] for line in lines if line["kind"] == "interference"] == [2]


def test_weight_zero_trains_the_baseline_bitwise(recipe):
    plain, switched = recipe("plain"), recipe("off", align=[term("dino:nowhere", weight=0)])
    for config in (plain, switched):
        train(config, False, Observer())
    assert_same_run(plain.output, switched.output)
    assert log_without_times(plain.output) == log_without_times(switched.output)


def test_a_recorded_update_is_replayed_without_encoder_and_data(recipe, encoder, tmp_path):
    session = prepare(recipe(**sections(encoder)), silent)
    for _, parameter in session.objective.parameters():
        parameter.data.add_(0.01)
    update = session.plan(0)[0]
    write_bundle(tmp_path / "bundle", session, Progress(), update, "test")
    text = (tmp_path / "bundle" / "recipe.yaml").read_text()
    (tmp_path / "bundle" / "recipe.yaml").write_text(text.replace(encoder, "dino:gone"))
    bundle = read_bundle(tmp_path / "bundle", [])
    with pytest.raises(ConfigError, match=r"align.gram: the micro-batch has no tokens of dino:gone on a grid of 4 x"):
        replay(bundle)
    (tmp_path / "bundle" / "recipe.yaml").write_text(text)
    bundle = read_bundle(tmp_path / "bundle", [])
    reports = replay(bundle)
    for report, micro in zip(reports, update.micro_batches, strict=True):
        losses = session.objective.per_sample(session.builder.build(micro, update.epoch))
        for k, item in enumerate(report.slices):
            assert item.parts.keys() == {"flow", "gram", "repa"}
            assert item.parts["gram"] == losses.parts["gram"][k].item()
            assert item.total == losses.total[k].item()
    info = json.loads((tmp_path / "bundle" / "update.json").read_text())
    assert info["terms"]["gram"] == {"width": 64, "cells": 2, "reference_width": 24, "grid_multiple": 1}
    other = bundle.recipe.model_copy(update={"align": (bundle.recipe.align[0].model_copy(update={"name": "new"}),)})
    with pytest.raises(CheckpointError, match=r"align.new: the recorded update has no such term; its terms: gram, re"):
        replay(type(bundle)(other, bundle.info, bundle.parameters, bundle.batches))


def test_the_forecast_counts_heads_and_tokens(recipe, encoder):
    aligned, plain = recipe(**sections(encoder)), recipe(**{k: v for k, v in sections(encoder).items() if k == "ema"})
    shape = Shape(4, 64, 64)
    cpu = torch.device("cpu")
    with_terms, without = (MemoryModel(config, cpu, "fp32").parts(shape) for config in (aligned, plain))
    heads = {name: p for name, p in prepare(aligned, silent).objective.parameters() if name.startswith("align.")}
    size = 4 * sum(parameter.numel() for parameter in heads.values())
    assert with_terms["heads of alignment terms"] == size
    assert with_terms["adapter"] == without["adapter"]
    activations = "activations kept for the backward pass"
    assert with_terms[activations] >= without[activations] + 4 * (16 * 24 * 4)  # the gradient that the Gram loss keeps
    for part, copies in (("gradients", 1), ("moving average", 1), ("optimizer state (adamw)", 2)):
        assert with_terms[part] == without[part] + copies * size
    assert forecast_disk(aligned).checkpoint > forecast_disk(plain).checkpoint
    live = recipe(**sections(encoder), data={**recipe().data.model_dump(mode="json"), "cache": False})
    parts = MemoryModel(live, cpu, "fp32").parts(shape)
    assert parts["reference encoders (data.cache is off)"] > 0
    text = forecast(aligned)
    assert "align: gram, weight 5: transformer_blocks.0 (64 channels) through 13,848 parameters to DINOv2" in text
    slices = len(prepare(aligned, silent).dataset)
    assert "on grids of " in text and f"({slices} slices x 2 mirror states)" in text
    assert "align: reference tokens are " in text and "MiB in the cache" in text
    assert "encoded in every update (data.cache)" in forecast(live)
