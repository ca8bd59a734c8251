"""Whole runs over a random SDXL: path, weighting, captions, text encoders; and which settings do not go together."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from whole_runs import SMALL_PREVIEWS, StopAfter, assert_same_run, final_state, log_without_times

from flowgrain.adapters.low_rank import inject
from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.registry import load_family
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.flow.weightings import Debiased, MinSnr
from flowgrain.train.loop import Observer, train
from flowgrain.train.memory_forecast import MemoryModel, Shape
from flowgrain.train.setup import fine_tuning, prepare

LORA = {"kind": "lora", "rank": 4, "alpha": 2}
ONE_UPDATE = {"amount": 1, "checkpoints": [1.0]}
THREE_UPDATES = {"amount": 2, "checkpoints": [1.0, 1.5]}
TEXT = {"adapter": {**LORA, "text_encoders": {}}, "optimizer": {"lr": 1e-3, "lrs": {"text_encoder*": 1e-4}}}


def with_data(recipe, **changes):
    return {**recipe().data.model_dump(mode="json"), **changes}


def silent(_what, _done, _total):
    """No progress."""


def test_a_huge_gamma_is_no_weighting_and_none_is_the_baseline(unet_recipe):
    assert unet_recipe(weighting={"kind": "none"}).identity() == unet_recipe().identity()
    session = prepare(unet_recipe(), silent)
    path = session.objective.path
    batches = [session.builder.build(micro, 0) for update in session.plan(0) for micro in update.micro_batches]

    def gradients(weighting):
        objective = replace(session.objective, weighting=weighting)
        for batch in batches:
            (batch.weight.float() * objective.per_sample(batch).total).sum().backward()
        found = {name: parameter.grad.clone() for name, parameter in objective.parameters()}
        for _, parameter in objective.parameters():
            parameter.grad = None
        return found

    baseline = gradients(session.objective.weighting)
    huge, paper = gradients(MinSnr(path, (1e9, 1e9, 1e9))), gradients(MinSnr(path, (4.0, 5.0, 7.0)))
    assert all(torch.allclose(huge[name], value, rtol=1e-6, atol=1e-12) for name, value in baseline.items())
    assert not all(torch.allclose(paper[name], value, rtol=1e-3) for name, value in baseline.items())


@pytest.mark.parametrize("text", [False, True])
def test_interrupted_and_resumed_with_varying_captions_is_bitwise_the_uninterrupted_run(unet_recipe, dataset, text):
    varied = with_data(unet_recipe, caption_shuffle=True, keep_tokens=1, tag_dropout=0.2, cache_text=False)
    sections = {
        "data": varied, "noise": {"offset": 0.0357}, "weighting": {"kind": "min_snr"}, "budget": THREE_UPDATES,
        **({"validation": {"path": str(dataset), "max_roots": 1}, **TEXT} if text else {}),
    }  # fmt: skip
    whole, parts = unet_recipe("whole", **sections), unet_recipe("parts", **sections)
    train(whole, False, Observer())
    assert train(parts, False, StopAfter(2)).interrupted
    train(parts, True, Observer())
    assert_same_run(whole.output, parts.output)


def test_varying_captions_do_not_depend_on_the_micro_batch(unet_recipe):
    varied = with_data(unet_recipe, caption_shuffle=True, cache_text=False)
    sections = {"data": varied, "budget": ONE_UPDATE, **TEXT}
    small = unet_recipe("small", tuples={"batch_size": 2, "micro_batch": 1}, **sections)
    large = unet_recipe("large", **sections)
    for config in (small, large):
        train(config, False, Observer())
    for a, b in zip(log_without_times(small.output), log_without_times(large.output), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_text_encoders_move_at_their_own_rate(unet_recipe):
    """Lion steps by its rate whatever the gradient: after one update every weight has moved by exactly that."""
    config = unet_recipe(
        adapter={**LORA, "text_encoders": {}}, budget=ONE_UPDATE, clip=None,
        data=with_data(unet_recipe, cache_text=False),
        optimizer={"name": "lion", "lr": 1e-3, "lrs": {"text_encoder*": 1e-4}, "weight_decay": 0.0},
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in _fresh(config)}
    train(config, False, Observer())
    after = {
        n.removeprefix("parameter."): v for n, v in final_state(config.output).items() if n.startswith("parameter.")
    }
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    rates = {"unet": 1e-3, "text_encoder": 1e-4, "text_encoder_2": 1e-4}
    for component, rate in rates.items():
        steps = [step for name, step in moved.items() if name.split(".")[0] == component and ".lora_B" in name]
        assert steps and max(steps) == pytest.approx(rate, rel=1e-3)


def _fresh(config):
    from flowgrain.train.setup import fresh_adapter, load_backbone

    return fresh_adapter(config, load_backbone(config, torch.device("cpu"))).parameters()


def test_validation_is_without_weights_offset_noise_and_varying_captions(unet_recipe, dataset):
    """Before update 1 all arms measure the same, along the same path."""
    measured = []
    for sections in (
        {},
        {"weighting": {"kind": "min_snr"}, "noise": {"offset": 0.5},
         "data": with_data(unet_recipe, caption_shuffle=True, cache_text=False)},
        {"path": {"prediction": "v_prediction"}},
    ):  # fmt: skip
        session = prepare(unet_recipe(validation={"path": str(dataset), "max_roots": 1}, **sections), silent)
        measured.append(session.validator.measure(session.autocast)["loss"])
    assert measured[0] == measured[1] != measured[2]


def test_a_preview_says_that_it_is_a_whole_picture_of_its_size(unet_recipe, monkeypatch):
    from flowgrain.families import sdxl

    seen = []
    load = sdxl.StableDiffusionXL.load.__func__

    def hooked(cls, *arguments):
        family = load(cls, *arguments)
        family.backbone.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
        )
        return family

    monkeypatch.setattr(sdxl.StableDiffusionXL, "load", classmethod(hooked))
    previews = {**SMALL_PREVIEWS, "sampler": {"steps": 1, "height": 32, "width": 48}}
    config = unet_recipe(previews=previews, budget=ONE_UPDATE)
    train(config, False, Observer())
    drawn = seen[0]
    assert drawn.tolist() == [[32, 48, 0, 0, 32, 48]] * len(drawn)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    from random_unet import random_sdxl_pipeline

    folder = tmp_path_factory.mktemp("model")
    random_sdxl_pipeline().save_pretrained(folder)
    return load_family(str(folder), None, torch.float32, torch.device("cpu"))


def objective_of(recipe, family):
    adapter = inject(family, recipe.adapter, 0)
    try:
        return fine_tuning(recipe, family, adapter)
    finally:
        adapter.remove()


def test_the_recipes_path_and_weighting_are_the_objectives(unet_recipe, sdxl):
    built = objective_of(unet_recipe(weighting={"kind": "min_snr", "gamma": 5}), sdxl)
    assert isinstance(built.path, VariancePreserving) and built.path.prediction == "epsilon"
    assert isinstance(built.weighting, MinSnr) and built.weighting.gammas == (5, 5, 5)
    path = {"prediction": "v_prediction", "zero_terminal_snr": True}
    built = objective_of(unet_recipe(path=path, weighting={"kind": "debiased"}), sdxl)
    assert isinstance(built.path, VariancePreserving) and isinstance(built.weighting, Debiased)
    assert built.path.prediction == "v_prediction" and built.weighting.path is built.path
    assert built.path.snr(torch.tensor([0.9999])).item() == 0


def test_uniform_noise_levels_are_a_diffusion_models_own_law(unet_recipe, sdxl):
    u = torch.tensor([0.1, 0.7])
    one, tokens = torch.zeros(2, dtype=torch.int64), torch.full((2,), 16)
    own = objective_of(unet_recipe(), sdxl).time_law
    assert own.quantile(u, one, tokens).tolist() == pytest.approx([0.1, 0.7])
    normal = objective_of(unet_recipe(time={"kind": "logit_normal", "mean": 1.0}), sdxl).time_law
    assert normal.quantile(torch.tensor([0.5]), one[:1], tokens[:1]).item() == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"time": {"granularity_shift": {"macro": 0.5}}},
            "granularity_shift is not read by .*weighting.gamma",
        ),
        ({"time": {"std": 2.0}}, "time.std is not read by a uniform law"),
        ({"time": {"resolution_shift": "none"}}, "time.resolution_shift is not read"),
        ({"model": {"guidance": 3.0}}, "takes no guidance input"),
        ({"path": {"zero_terminal_snr": True}}, "epsilon does not go with zero terminal SNR"),
        ({"path": {"prediction": "sample"}, "weighting": {"kind": "debiased"}}, "this one predicts x0"),
    ],
)
def test_settings_that_mean_nothing_to_a_diffusion_model(unet_recipe, sdxl, sections, words):
    from flowgrain.train.setup import check_keys

    with pytest.raises(ConfigError, match=words):
        check_keys(unet_recipe(**sections), sdxl)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"weighting": {"kind": "min_snr"}}, "flow-matching model: set it to none .* time.granularity_shift"),
        ({"weighting": {"kind": "debiased"}}, "flow-matching model"),
        ({"path": {"prediction": "epsilon"}}, "path.prediction is epsilon, but this is a flow-matching model"),
        ({"path": {"zero_terminal_snr": False}}, "path.zero_terminal_snr is False, but this is a flow-matching"),
    ],
)
def test_settings_that_mean_nothing_to_a_flow_matching_model(recipe, small_flux, sections, words):
    from flowgrain.train.setup import load_backbone

    with pytest.raises(ConfigError, match=words):
        load_backbone(recipe(**sections), torch.device("cpu"))


V_PREDICTION = {"prediction": "v_prediction", "zero_terminal_snr": True}


def test_previews_and_samples_of_a_run_are_drawn_along_its_path(unet_recipe, tmp_path):
    """The scheduler of pipelines follows the recipe; a sample of the run is its preview, pixel for pixel."""
    from flowgrain.sample.generate import SampleConfig
    from flowgrain.sample.run_folder import choose_checkpoint, read_run
    from flowgrain.sample.session import SamplePlan, draw, load_model
    from flowgrain.train.setup import load_backbone

    config = unet_recipe(path=V_PREDICTION, previews=SMALL_PREVIEWS, budget=ONE_UPDATE)
    scheduler = load_backbone(config, torch.device("cpu")).pipeline().scheduler
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.timestep_spacing == "trailing"
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0, abs=1e-7)
    train(config, False, Observer())
    name, model = read_run(config.output)
    assert (model.prediction, model.zero_terminal_snr) == ("v_prediction", True)
    family = load_model(model, torch.device("cpu"))
    sampler = SampleConfig.model_validate(SMALL_PREVIEWS["sampler"])
    checkpoint, prompts = choose_checkpoint(config.output, None), SMALL_PREVIEWS["prompts"]
    draw(family, SamplePlan(name, model, checkpoint, prompts, [0], sampler, tmp_path / "out"), lambda *_: None)
    (preview,) = (config.output / "previews/update-000001").glob("*.png")
    (sample,) = (tmp_path / "out").rglob("*.png")
    ours, theirs = (np.asarray(Image.open(file), np.int16) for file in (sample, preview))
    assert np.abs(ours - theirs).max() <= 2


def test_a_scheduler_without_zero_terminal_snr_gives_way_to_one_that_has_it():
    from random_unet import random_sd15

    family = random_sd15()
    assert type(family.pipeline().scheduler).__name__ == "PNDMScheduler"
    family.override_path("v_prediction", None)
    assert type(family.pipeline().scheduler).__name__ == "PNDMScheduler"
    family.override_path(None, True)
    path = family.default_path()
    assert isinstance(path, VariancePreserving)
    assert path.prediction == "v_prediction" and path.schedule.zero_terminal_snr


def test_a_flow_matching_model_has_no_path_to_override(small_flux):
    with pytest.raises(ModelError, match="has no table of noise levels"):
        load_family(str(small_flux), None, torch.float32, torch.device("cpu")).override_path("epsilon", None)


def test_check_warns_of_gammas_over_one_granularity_and_counts_kept_captions(unet_recipe, tmp_path):
    from conftest import draw

    from flowgrain.check.inspect import inspect_recipe

    for number in range(3):
        draw(number, (64, 64)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a, b, c, d")
    gammas = {"kind": "min_snr", "gamma": {"macro": 4, "meso": 5, "micro": 7}}
    data = {"path": str(tmp_path), "resolution": 64, "caption_shuffle": True}
    sizes = []
    for kept in ({"caption_variants": 2}, {"cache_text": False}):
        inspection = inspect_recipe(unet_recipe(data={**data, **kept}, weighting=gammas), lambda *_: None)
        found = {finding.kind: finding.message for finding in inspection.findings}
        assert found["one_granularity"].startswith("weighting.gamma differs by granularity, but all slices are macro")
        sizes.append(inspection.storage.embeddings)
    assert sizes[0] > 0 and sizes[1] == 0


def test_a_forecast_says_nothing_of_the_long_caption_that_it_embeds(unet_recipe, caplog, monkeypatch):
    """Longer than CLIP reads, on purpose: diffusers would tell for every slice that it was cut."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [caplog.handler])
    config = unet_recipe(data=with_data(unet_recipe, cache_text=False), **TEXT)
    model = MemoryModel(config, torch.device("cpu"), "fp32")
    assert model.forecast(Shape(2, 32, 32)).total > 0
    assert "truncated" not in caplog.text
