"""SimpleTuner's options: every value, every difference, nothing dropped."""

import json
import math

import pytest

from flowgrain.config import load_config
from flowgrain.convert.simpletuner import convert_simpletuner
from flowgrain.errors import ConfigError
from flowgrain.train.recipe import Recipe

CONFIG = {
    "--model_family": "flux",
    "model_type": "lora",
    "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "lora_rank": 8,
    "learning_rate": 1e-4,
    "lr_scheduler": "constant",
    "max_train_steps": 1000,
    "num_train_epochs": 0,
    "optimizer": "adamw_bf16",
    "output_dir": "output/fox",
    "flow_schedule_shift": 3,
    "base_model_precision": "int8-quanto",
    "gradient_checkpointing": True,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "checkpointing_steps": 250,
    "report_to": "tensorboard",
    "use_ema": True,
    "ema_decay": 0.99,
    "seed": 42,
    "validation_prompt": "a fox",
    "validation_resolution": "1024x768",
    "validation_steps": 50,
}
BACKENDS = [
    {
        "id": "close",
        "type": "local",
        "instance_data_dir": "close",
        "resolution": 512,
        "caption_strategy": "textfile",
        "timestep_sampling_offset": -0.5,
    },
    {
        "id": "mid",
        "type": "local",
        "instance_data_dir": "mid",
        "resolution": 512,
        "caption_strategy": "textfile",
        "repeats": 9,
    },
    {
        "id": "full",
        "type": "local",
        "instance_data_dir": "full",
        "resolution": 1.0,
        "resolution_type": "area",
        "caption_strategy": "instanceprompt",
        "instance_prompt": "sks",
        "timestep_sampling_offset": 0.5,
    },
    {"id": "text", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": "cache"},
    {"id": "off", "disabled": True, "type": "local", "instance_data_dir": "off"},
]


def converted(tmp_path, config=None, backends=None):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (tmp_path / "backends.json").write_text(json.dumps(BACKENDS if backends is None else backends))
    return convert_simpletuner(tmp_path / "config.json", tmp_path / "backends.json")


def outcomes(draft):
    return {entry.option: entry.outcome for entry in draft.entries}


def test_a_common_training_becomes_a_valid_recipe(tmp_path):
    draft = converted(tmp_path)
    recipe = draft.validated()
    assert (recipe.name, recipe.seed, recipe.budget.amount) == ("fox", 42, 1000)
    assert (recipe.tuples.grouping, recipe.tuples.batch_size, recipe.tuples.micro_batch) == ("slice", 8, 2)
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (8, 8.0, 0.1)
    assert recipe.adapter.targets is not None and len(recipe.adapter.targets) == 11
    assert (recipe.memory.quantize, recipe.memory.gradient_checkpointing) == ("int8", True)
    assert recipe.time.mean == pytest.approx(math.log(3), abs=1e-6) and recipe.time.resolution_shift == "none"
    assert recipe.time.granularity_shift == {"macro": 0.5, "meso": 0.0, "micro": -0.5}
    assert recipe.ema is not None and recipe.ema.decay == 0.99 and recipe.log.wandb is None
    assert recipe.data.sources is not None
    assert [(s.name, s.granularity, s.repeats, s.resolution) for s in recipe.data.sources] == [
        ("close", "micro", 1, 512),
        ("mid", "meso", 10, 512),
        ("full", "macro", 1, 1024),
    ]


def test_the_written_file_is_the_recipe(tmp_path):
    draft = converted(tmp_path, {"validation_prompt": "a 'fox': #1, \u00fc \U0001f98a\nnew line"})
    (tmp_path / "recipe.yaml").write_text(draft.yaml(), encoding="utf-8")
    assert load_config(Recipe, tmp_path / "recipe.yaml", [])[0] == draft.validated()


def test_every_option_of_the_files_is_in_the_report(tmp_path):
    backends = [BACKENDS[0] | {"crop_stlye": "center", "caption_shuffle": {"enable": False}, "minimum_image_size": 512}]
    draft = converted(tmp_path, {"lora_rnak": 4, "snr_gamma": 5, "vae_batch_size": 4, "push_to_hub": False}, backends)
    found = outcomes(draft)
    for name in {key.removeprefix("--") for key in CONFIG}:
        assert name in found, name
    for key in set(backends[0]) - {"type", "id"}:
        assert f"close.{key}" in found, key
    assert found["lora_rnak"] == found["close.crop_stlye"] == "unknown" and "'lora_rank'" in draft.report()
    assert found["snr_gamma"] == found["close.minimum_image_size"] == "not supported"
    assert found["vae_batch_size"] == found["push_to_hub"] == found["close.caption_shuffle"] == "not needed"


def test_shuffled_captions_are_kept_in_as_many_forms(tmp_path):
    shuffle = {"enable": True, "count": 3, "position_start": 1, "split_on": "comma", "seed": 4}
    draft = converted(tmp_path, backends=[BACKENDS[1] | {"caption_shuffle": shuffle}])
    data, found = draft.validated().data, outcomes(draft)
    assert data.sources is not None
    assert (data.caption_shuffle, data.caption_variants, data.cache_text) == (True, 3, True)
    assert data.sources[0].keep_tokens == 1
    assert found["mid.caption_shuffle"] == "converted" and found["mid.caption_shuffle.seed"] == "not needed"
    words = BACKENDS[1] | {"caption_shuffle": {"enable": True, "split_on": "space"}}
    draft = converted(tmp_path, backends=[words])
    assert not draft.validated().data.caption_shuffle and outcomes(draft)["mid.caption_shuffle"] == "not supported"


def test_automatic_shift_is_flux_own_line(tmp_path):
    shift = converted(tmp_path, {"flow_schedule_auto_shift": True}).validated().time.resolution_shift
    assert not isinstance(shift, str) and (shift.base_shift, shift.max_shift, shift.max_tokens) == (0.5, 1.15, 4096)


def test_the_rate_is_scaled_as_lr_scale_does(tmp_path):
    assert converted(tmp_path, {"lr_scale": True}).validated().optimizer.lr == pytest.approx(8e-4)
    assert converted(tmp_path, {"lr_scale": True, "lr_scale_sqrt": True}).validated().optimizer.lr == pytest.approx(
        1e-4 * math.sqrt(8)
    )


def test_an_eval_data_set_is_the_validation(tmp_path):
    backends = [*BACKENDS, {"id": "held", "type": "local", "dataset_type": "eval", "instance_data_dir": "held"}]
    validation = converted(tmp_path, {"eval_steps_interval": 20}, backends).validated().validation
    assert validation is not None and str(validation.path) == "held" and validation.every == 20


@pytest.mark.parametrize(
    ("config", "backends", "parts"),
    [
        ({"--model_family": "sdxl"}, None, ["model_family", "sdxl"]),
        ({"model_type": "full"}, None, ["model_type", "full"]),
        ({"lora_rank": "many"}, None, ["lora_rank", "a number"]),
        ({"lora_rank": -1}, None, ["lora_rank", "greater than 0"]),
        ({"controlnet": True}, None, ["controlnet"]),
        ({"max_train_steps": 0}, None, ["max_train_steps"]),
        ({"model_type": "lora", "--model-type": "full"}, None, ["model_type", "twice"]),
        ({}, {"a": 1}, ["backends.json", "list"]),
        ({}, [BACKENDS[3]], ["no data set of local pictures"]),
        ({}, [{"id": "x", "type": "aws", "aws_bucket_name": "b"}], ["no data set of local pictures"]),
    ],
)
def test_mistakes_name_file_and_option(tmp_path, config, backends, parts):
    with pytest.raises(ConfigError) as caught:
        converted(tmp_path, config, backends).validated()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', '{"a": "\\ud800"}', "[" * 100_000, "\ufeff\x00"])
def test_files_that_are_no_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        convert_simpletuner(tmp_path / "config.json", None)
