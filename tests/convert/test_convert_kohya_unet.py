"""kohya's SDXL and Stable Diffusion scripts: path, weighting, noise, captions, LoCon and text encoders."""

import pytest
from kohya_files import convert_files, outcomes

from flowgrain.config import load_config
from flowgrain.convert.kohya import convert_kohya
from flowgrain.errors import ConfigError
from flowgrain.train.recipe import Recipe

TRAIN = """
pretrained_model_name_or_path = "cagliostrolab/animagine-xl-3.1"
network_module = "networks.lora"
network_dim = 64
network_alpha = 32
network_args = ["conv_dim=16", "conv_alpha=8"]
optimizer_type = "Lion"
unet_lr = 3e-5
text_encoder_lr = 3e-6
min_snr_gamma = 5
noise_offset = 0.0357
mixed_precision = "bf16"
max_train_steps = 100
output_name = "fox"
"""
DATA = """
[general]
resolution = 1024
enable_bucket = true
max_bucket_reso = 2048
min_bucket_reso = 512
caption_extension = ".txt"
batch_size = 2
shuffle_caption = true
caption_tag_dropout_rate = 0.1
[[datasets]]
[[datasets.subsets]]
image_dir = "close"
keep_tokens = 1
[[datasets.subsets]]
image_dir = "full"
"""


def converted(tmp_path, train=TRAIN, data=DATA):
    return convert_files(tmp_path, train, data)


def test_a_common_sdxl_training_becomes_a_valid_recipe(tmp_path):
    draft = converted(tmp_path)
    recipe = draft.validated()
    assert recipe.model.path == "cagliostrolab/animagine-xl-3.1" and recipe.model.dtype == "bfloat16"
    adapter = recipe.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.conv_rank, adapter.conv_alpha) == ("lora", 64, 32, 16, 8)
    assert adapter.text_encoders is not None and adapter.text_encoders.names == ["text_encoder", "text_encoder_2"]
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lion", 3e-5, 0.0)
    assert optimizer.lrs == {"text_encoder.*": 3e-6, "text_encoder_2.*": 3e-6}
    assert (recipe.weighting.kind, recipe.weighting.gamma.values) == ("min_snr", (5.0, 5.0, 5.0))
    assert (recipe.path.prediction, recipe.path.zero_terminal_snr, recipe.noise.offset) == ("epsilon", False, 0.0357)
    assert (recipe.time.kind, recipe.model.guidance) == ("model", 1.0)
    data = recipe.data
    assert (data.caption_shuffle, data.tag_dropout, data.cache_text) == (True, 0.1, False)
    assert data.sources is not None
    assert [source.keep_tokens for source in data.sources] == [1, None]
    assert not {"not supported", "unknown"} & set(outcomes(draft).values())
    (tmp_path / "recipe.yaml").write_text(draft.yaml(), encoding="utf-8")
    assert load_config(Recipe, tmp_path / "recipe.yaml", [])[0] == recipe


def test_v_prediction_with_zero_terminal_snr(tmp_path):
    recipe = converted(tmp_path, TRAIN + "v_parameterization = true\nzero_terminal_snr = true\n").validated()
    assert (recipe.path.prediction, recipe.path.zero_terminal_snr) == ("v_prediction", True)
    draft = converted(tmp_path, TRAIN + "zero_terminal_snr = true\n")
    assert draft.validated().path.zero_terminal_snr is False
    assert outcomes(draft)["zero_terminal_snr"] == "not supported"


def test_one_weighting_of_two(tmp_path):
    draft = converted(tmp_path, TRAIN + "debiased_estimation_loss = true\n")
    assert draft.validated().weighting.kind == "min_snr"
    assert outcomes(draft)["debiased_estimation_loss"] == "not supported"
    alone = TRAIN.replace("min_snr_gamma = 5", "debiased_estimation_loss = true")
    assert converted(tmp_path, alone).validated().weighting.kind == "debiased"


def test_adaptive_noise_needs_an_offset(tmp_path):
    noise = converted(tmp_path, TRAIN + "adaptive_noise_scale = 0.003\n").validated().noise
    assert (noise.offset, noise.adaptive) == (0.0357, 0.003)
    draft = converted(tmp_path, TRAIN.replace("noise_offset = 0.0357", "adaptive_noise_scale = 0.003"))
    assert draft.validated().noise.offset == 0 and outcomes(draft)["adaptive_noise_scale"] == "not needed"


@pytest.mark.parametrize(
    ("lines", "names", "lrs"),
    [
        ("network_train_unet_only = true", None, {}),
        ("text_encoder_lr = 0", None, {}),
        ("text_encoder_lr = [1e-6, 0]", ["text_encoder"], {"text_encoder.*": 1e-6}),
        ("text_encoder_lr1 = 1e-6\ntext_encoder_lr2 = 3e-5", ["text_encoder", "text_encoder_2"],
         {"text_encoder.*": 1e-6}),
        ("learning_rate = 2e-6", ["text_encoder", "text_encoder_2"],
         {"text_encoder.*": 2e-6, "text_encoder_2.*": 2e-6}),
    ],
)  # fmt: skip
def test_text_encoders_and_their_rates(tmp_path, lines, names, lrs):
    recipe = converted(tmp_path, TRAIN.replace("text_encoder_lr = 3e-6", lines)).validated()
    assert (recipe.adapter.text_encoders.names if recipe.adapter.text_encoders else None) == names
    assert recipe.optimizer.lrs == lrs


def test_frozen_text_encoders_with_fixed_captions_are_cached(tmp_path):
    data = DATA.replace("shuffle_caption = true\ncaption_tag_dropout_rate = 0.1\n", "")
    draft = converted(tmp_path, TRAIN + "network_train_unet_only = true\n", data)
    recipe = draft.validated()
    assert recipe.data.cache_text and recipe.adapter.text_encoders is None
    assert outcomes(draft)["datasets[0].subsets[0].keep_tokens"] == "not needed"


def test_lycoris_adapts_convolutions_at_the_linear_rank(tmp_path):
    lycoris = TRAIN.replace('"networks.lora"', '"lycoris.kohya"')
    args = lycoris.replace('"conv_dim=16", "conv_alpha=8"', '"algo=locon", "dora_wd=True"')
    draft = converted(tmp_path, args)
    adapter = draft.validated().adapter
    assert (adapter.kind, adapter.conv_rank, adapter.conv_alpha) == ("dora", 64, 32.0)
    draft = converted(tmp_path, lycoris.replace('"conv_dim=16"', '"algo=loha"'))
    assert outcomes(draft)["network_module"] == "not supported"


def test_stable_diffusion_has_one_text_encoder_and_a_layer_to_skip(tmp_path):
    train = TRAIN.replace("cagliostrolab/animagine-xl-3.1", "models/anything.safetensors")
    draft = converted(tmp_path, train + "clip_skip = 2\nmax_token_length = 225\n")
    recipe, found = draft.validated(), outcomes(draft)
    assert recipe.adapter.text_encoders is not None and recipe.adapter.text_encoders.names == ["text_encoder"]
    assert recipe.model.path == "models/anything.safetensors"
    assert found["clip_skip"] == found["max_token_length"] == "not supported"
    assert outcomes(converted(tmp_path, TRAIN + "clip_skip = 2\n"))["clip_skip"] == "not needed"


def test_the_script_of_a_command_says_what_is_trained(tmp_path):
    (tmp_path / "data.toml").write_text(DATA)
    options = "--pretrained_model_name_or_path models/mine.safetensors --network_module networks.lora --unet_lr 1e-4"
    for script, encoders in (("sdxl_train_network.py", 2), ("train_network.py", 1)):
        command = f"accelerate launch {script} {options} --text_encoder_lr 1e-5 --output_name x --max_train_steps 5"
        recipe = convert_kohya(None, tmp_path / "data.toml", command).validated()
        assert recipe.adapter.text_encoders is not None and recipe.adapter.text_encoders.names is not None
        assert len(recipe.adapter.text_encoders.names) == encoders


def test_previews_are_drawn_with_classifier_free_guidance(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a fox --w 768 --h 512 --l 6 --n blurry\n")
    previews = converted(tmp_path, TRAIN + 'sample_prompts = "prompts.txt"\n').validated().previews
    assert previews is not None
    assert (previews.sampler.guidance, previews.sampler.steps, previews.sampler.width) == (6.0, 30, 768)


def test_a_wrong_rate_names_its_option(tmp_path):
    with pytest.raises(ConfigError, match="text_encoder_lr: expected numbers"):
        converted(tmp_path, TRAIN.replace("3e-6", '"low"'))
