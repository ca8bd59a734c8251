"""Whole runs that train several components, or all weights of one: rates, resuming, sampling."""

import pytest
import torch
from safetensors.torch import load_file
from whole_runs import StopAfter

from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.run_folder import ModelChoice, choose_checkpoint
from flowgrain.sample.session import SamplePlan, draw
from flowgrain.train.loop import Observer, train
from flowgrain.train.setup import prepare
from flowgrain.train.state import complete_checkpoints

BUDGET = {"amount": 4, "checkpoints": [1.0]}
TABLE_5 = {
    "adapter": {"kind": "lora", "rank": 2, "alpha": 1, "conv_rank": 2, "conv_alpha": 1, "text_encoders": {}},
    "optimizer": {"name": "lion", "lr": 3e-5, "lrs": {"text_encoder*": 3e-6}, "weight_decay": 0},
}
"""The paper's SDXL settings in small: LoCon, both text encoders at their own rate, Lion."""


@pytest.fixture
def sdxl_recipe(recipe, small_sdxl, dataset):
    def build(output="run", **sections):
        data = {"path": str(dataset), "flip": True, "cache_text": False}
        sections = {"data": data, "model": {"path": str(small_sdxl)}, "time": {}, "budget": BUDGET, **sections}
        return recipe(output, **sections)

    return build


def files(output):
    """All tensors of the last checkpoint, by file."""
    folder = complete_checkpoints(output)[-1]
    tensors = {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}
    return {f"{path}:{name}": value for path, found in tensors.items() for name, value in found.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupted_is_uninterrupted(build, **sections):
    whole, stopped = build("whole", **sections), build("stopped", **sections)
    train(whole, False, Observer())
    assert train(stopped, False, StopAfter(2)).interrupted
    train(stopped, True, Observer())
    assert same(files(whole.output), files(stopped.output))
    return whole


def draws_its_pictures(run, folder):
    model = ModelChoice(str(run.model.path), None, "float32")
    pictures = []
    for checkpoint in (choose_checkpoint(run.output, None), None):
        family = load_family(model.path, None, torch.float32, torch.device("cpu"))
        out = folder / ("trained" if checkpoint else "base")
        plan = SamplePlan("x", model, checkpoint, ["a drawing"], [0], SampleConfig(steps=2, height=64, width=64), out)
        assert draw(family, plan, lambda _done, _total: None).drawn == 1
        pictures.append(next(out.glob("**/*.png")).read_bytes())
    assert pictures[0] != pictures[1]


def test_no_layer_of_an_adapter_stays_at_its_start(sdxl_recipe):
    """What the model does not read (the last layer of SDXL's first text encoder) gets no adapter."""
    run = sdxl_recipe(**TABLE_5, budget={"amount": 1, "checkpoints": [1.0]})
    train(run, False, Observer())
    (checkpoint,) = complete_checkpoints(run.output)
    ups = {
        name: tensor
        for name, tensor in load_file(checkpoint / "adapter" / "pytorch_lora_weights.safetensors").items()
        if ".lora_B." in name
    }
    assert {name.split(".")[0] for name in ups} == {"unet", "text_encoder", "text_encoder_2"}
    assert [name for name, tensor in ups.items() if not tensor.any()] == []
    layers = {name.split("encoder.layers.")[1].split(".")[0] for name in ups if name.startswith("text_encoder.")}
    assert layers == {"0"}  # of two


def test_text_encoders_train_at_their_own_rate_and_resume_bit_for_bit(sdxl_recipe, tmp_path):
    run = interrupted_is_uninterrupted(sdxl_recipe, **TABLE_5)
    one = sdxl_recipe("one", **TABLE_5, budget={"amount": 1, "checkpoints": [1.0]})
    train(one, False, Observer())
    # B starts at zero, and Lion's first step is the rate where there is a gradient
    moved = {name: value for name, value in files(one.output).items() if "lora_B" in name and "adapter" in name}
    sizes = {
        component: {
            float(size) for name, value in moved.items() if f":{component}." in name for size in value.abs().unique()
        }
        for component in ("unet", "text_encoder", "text_encoder_2")
    }
    slow, fast = (float(torch.tensor(rate)) for rate in (3e-6, 3e-5))
    assert sizes["unet"] - {0.0} == {fast}
    assert sizes["text_encoder"] - {0.0} == sizes["text_encoder_2"] - {0.0} == {slow}
    draws_its_pictures(run, tmp_path)


@pytest.mark.parametrize("text_encoders", [None, {}], ids=["unet", "with text encoders"])
def test_all_weights_resume_bit_for_bit_and_are_drawn_with(sdxl_recipe, tmp_path, text_encoders):
    adapter = {"kind": "full", "text_encoders": text_encoders}
    run = interrupted_is_uninterrupted(sdxl_recipe, adapter=adapter, optimizer={"lr": 1e-3}, ema={"decay": 0.5})
    names = {name.partition(":")[0] for name in files(run.output)}
    weights = {"adapter/unet/diffusion_pytorch_model.safetensors", "trainable.safetensors"}
    text = {f"adapter/{name}/model.safetensors" for name in ("text_encoder", "text_encoder_2")}
    assert names == weights | (set() if text_encoders is None else text)
    draws_its_pictures(run, tmp_path)


def test_all_weights_of_flux_fit_one_batch(recipe):
    """Not only of U-Nets; the loss on one fixed batch falls."""
    session = prepare(recipe(adapter={"kind": "full"}, budget=BUDGET), lambda *_: None)
    batch = session.builder.build(session.plan(0)[0].micro_batches[0], 0)
    losses = []
    for _ in range(6):
        loss = session.objective.per_sample(batch).total.mean()
        losses.append(loss.item())
        session.optimizer.zero_grad()
        loss.backward()
        session.optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    with session.adapter.enabled(False), torch.no_grad():
        assert session.objective.per_sample(batch).total.mean().item() == pytest.approx(losses[0], rel=1e-4)
    assert session.family.condition(ConditionInputs(["a"], None, 1.0)).tensors
