"""kohya's options: every value, every difference, nothing dropped; the law of noise levels as kohya draws it."""

import math

import pytest
import torch
from kohya_files import convert_files, outcomes

from flowgrain.config import load_config
from flowgrain.convert.kohya import convert_kohya
from flowgrain.convert.options import Options, read_toml
from flowgrain.errors import ConfigError
from flowgrain.train.recipe import Recipe

TRAIN = """
[model]
pretrained_model_name_or_path = "black-forest-labs/FLUX.1-dev"
ae = "ae.safetensors"
[training]
network_module = "networks.lora_flux"
network_dim = 16
network_alpha = 8
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99", "amsgrad=True"]
learning_rate = 1e-4
max_train_steps = 1000
save_every_n_steps = 250
lr_scheduler = "cosine"
lr_warmup_steps = 0.1
timestep_sampling = "shift"
discrete_flow_shift = 3.0
model_prediction_type = "raw"
guidance_scale = 1.0
mixed_precision = "bf16"
gradient_accumulation_steps = 4
network_train_unet_only = true
output_name = "mine"
seed = 7
"""
DATA = """
[general]
resolution = 512
enable_bucket = true
caption_extension = ".txt"
batch_size = 2
shuffle_caption = true
[[datasets]]
[[datasets.subsets]]
image_dir = "closeups"
num_repeats = 3
custom_attributes = { timestep_sampling = { offset = -0.5 } }
[[datasets.subsets]]
image_dir = "figures"
class_tokens = "sks girl"
[datasets.subsets.custom_attributes]
timestep_sampling = { offset = 0.5 }
"""


def converted(tmp_path, train=TRAIN, data=DATA):
    return convert_files(tmp_path, train, data)


def law_samples(kind, scale, shift, tokens, offset, count=200_000):
    """t as sd-scripts documents it: sigmoid(scale * (z + offset)), then the warp of the mode."""
    z = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    t = torch.sigmoid(scale * z)
    if kind == "shift":
        return shift * t / (1 + (shift - 1) * t)
    if kind == "flux_shift":
        mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        return math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    return t


def test_a_common_training_becomes_a_valid_recipe(tmp_path):
    draft = converted(tmp_path)
    recipe = draft.validated()
    assert (recipe.name, recipe.seed, recipe.budget.amount, recipe.budget.unit) == ("mine", 7, 1000, "updates")
    assert recipe.budget.checkpoints == (0.25, 0.5, 0.75, 1.0)
    assert (recipe.tuples.grouping, recipe.tuples.batch_size, recipe.tuples.micro_batch) == ("slice", 8, 2)
    assert (recipe.adapter.kind, recipe.adapter.rank, recipe.adapter.alpha) == ("lora", 16, 8.0)
    assert (recipe.optimizer.name, recipe.optimizer.betas, recipe.optimizer.weight_decay) == (
        "adamw8bit",
        (0.9, 0.99),
        0.1,
    )
    assert (recipe.schedule.kind, recipe.schedule.warmup) == ("cosine", 100)
    assert (recipe.data.caption_shuffle, recipe.data.cache_text) == (True, False)
    assert recipe.data.sources is not None
    assert [(s.granularity, s.repeats, s.caption) for s in recipe.data.sources] == [
        ("micro", 3, None),
        ("macro", 1, "sks girl"),
    ]


def test_the_written_file_is_the_recipe(tmp_path):
    draft = converted(tmp_path)
    (tmp_path / "recipe.yaml").write_text(draft.yaml(), encoding="utf-8")
    assert load_config(Recipe, tmp_path / "recipe.yaml", [])[0] == draft.validated()
    assert all(
        "#" in line or line.rstrip().endswith((":", "-")) or "*" in line for line in draft.yaml().splitlines() if line
    )


def test_every_option_of_the_files_is_in_the_report(tmp_path):
    train = TRAIN + 'shuffle_captoin = true\nfull_bf16 = true\nsdpa = true\nmin_snr_gamma = 5\nlog_with = "wandb"\n'
    draft = converted(tmp_path, train)
    found = outcomes(draft)
    given = [name for table in read_toml(tmp_path / "train.toml").values() for name in table]
    given += ["general.resolution", "general.shuffle_caption", "datasets[0].subsets[0].num_repeats"]
    for name in set(given) - {"optimizer_args"}:
        assert name in found, name
    assert found["shuffle_captoin"] == "unknown" and "'shuffle_caption'" in draft.report()
    assert found["full_bf16"] == found["optimizer_args amsgrad"] == "not supported"
    assert found["general.shuffle_caption"] == "converted"
    assert found["sdpa"] == found["min_snr_gamma"] == "not needed"


@pytest.mark.parametrize(
    ("kind", "scale", "shift"),
    [("sigmoid", 1.0, 3.0), ("sigmoid", 1.4, 3.0), ("shift", 1.0, 3.0), ("flux_shift", 0.8, 3.0)],
)
@pytest.mark.parametrize("offset", [-0.5, 0.0, 0.5])
def test_the_law_of_noise_levels_is_kohyas(tmp_path, kind, scale, shift, offset):
    train = TRAIN.replace('"shift"', f'"{kind}"').replace(
        "discrete_flow_shift = 3.0", f"discrete_flow_shift = {shift}\nsigmoid_scale = {scale}"
    )
    data = DATA.replace("-0.5", str(offset)).replace("offset = 0.5", f"offset = {offset}")
    recipe = converted(tmp_path, train, data).validated()
    law, tokens = recipe.time.law(None), 1024
    theirs = law_samples(kind, scale, shift, tokens, offset)
    levels = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    ours = law.quantile(levels, torch.zeros(25, dtype=torch.int64), torch.full((25,), tokens))
    assert torch.allclose(ours, torch.quantile(theirs, levels), atol=0.004)


def test_documented_means_of_the_offset(tmp_path):
    """The table of docs/timestep_sampling_offset.md: shift 3, offsets -0.5, 0, +0.5."""
    law = converted(tmp_path).validated().time.law(None)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    tokens = torch.full((100_000,), 1024)
    means = [law.quantile(u, torch.full((100_000,), index), tokens).mean().item() for index in (2, 1, 0)]
    assert means == pytest.approx([0.621, 0.714, 0.793], abs=5e-4)


def test_an_offset_that_kohya_ignores_is_not_applied(tmp_path):
    draft = converted(tmp_path, TRAIN.replace('"shift"', '"uniform"'))
    assert draft.validated().time.granularity_shift == {}
    assert outcomes(draft)["datasets[0].subsets[0].custom_attributes.timestep_sampling.offset"] == "not needed"


def test_shapes(tmp_path):
    def sources(text):
        recipe = converted(tmp_path, TRAIN, DATA.replace("enable_bucket = true", text)).validated()
        assert recipe.data.sources is not None
        return recipe.data, recipe.data.sources[0]

    data, source = sources("enable_bucket = true\nbucket_no_upscale = true")
    assert (data.no_upscale, source.resolution, source.buckets) == (True, 512, None)
    data, source = sources("enable_bucket = false")
    assert (source.resolution, source.buckets) == (None, ((512, 512),))
    data, source = sources("enable_bucket = true\nmax_bucket_reso = 768")
    assert source.buckets is not None and max(max(bucket) for bucket in source.buckets) == 768
    data, source = sources("enable_bucket = true")
    assert (source.resolution, source.buckets) == (512, None)  # kohya's 256 to 1024 are half and twice 512


def test_folders_that_differ_in_what_a_recipe_has_once(tmp_path):
    data = DATA.replace('image_dir = "closeups"', 'image_dir = "closeups"\nflip_aug = true')
    draft = converted(tmp_path, TRAIN, data)
    assert not draft.validated().data.flip
    assert outcomes(draft)["datasets[0].subsets[0].flip_aug"] == "not supported"


def test_regularisation_and_masks(tmp_path):
    extra = '[[datasets.subsets]]\nimage_dir = "dogs"\nis_reg = true\nclass_tokens = "a dog"\ncaption_prefix = "x"\n'
    data = DATA.replace("shuffle_caption", "alpha_mask = true\nshuffle_caption") + extra
    draft = converted(tmp_path, TRAIN + "prior_loss_weight = 0.5\n", data)
    recipe = draft.validated()
    assert recipe.data.sources is not None
    last = recipe.data.sources[2]
    assert (last.regularisation, last.weight, last.caption, last.granularity) == (True, 0.5, "a dog", None)
    assert (recipe.data.mask, recipe.mask.unmasked, recipe.mask.normalise) == ("alpha", 0.0, False)
    assert outcomes(draft)["datasets[0].subsets[2].caption_prefix"] == "not supported"


def test_four_offsets_are_too_many(tmp_path):
    more = "".join(
        f'[[datasets.subsets]]\nimage_dir = "f{n}"\ncustom_attributes = {{ timestep_sampling = {{ offset = {n} }} }}\n'
        for n in (1, 2)
    )
    draft = converted(tmp_path, TRAIN, DATA + more)
    assert draft.validated().time.granularity_shift == {}
    assert list(outcomes(draft).values()).count("not supported") >= 4 and "4 offsets" in draft.report()


def test_groups_of_ranks_and_chosen_blocks(tmp_path):
    blocks = '"train_double_block_indices=0,4-18", "train_single_block_indices=none"'
    args = f'network_args = ["img_attn_dim=4", "single_mod_dim=0", {blocks}, "loraplus_lr_ratio=16"]\n'
    draft = converted(tmp_path, TRAIN + args)
    adapter = draft.validated().adapter
    assert adapter.targets is not None and not any(target.startswith("single") for target in adapter.targets)
    assert adapter.ranks["transformer_blocks.*.attn.to_q"] == 4
    assert adapter.exclude == [f"transformer_blocks.{index}.*" for index in (1, 2, 3)]
    assert outcomes(draft)["network_args loraplus_lr_ratio"] == "not supported"


def test_a_command_equals_its_toml(tmp_path):
    (tmp_path / "data.toml").write_text(DATA)
    command = """accelerate launch --num_processes 2 flux_train_network.py \\
      --pretrained_model_name_or_path black-forest-labs/FLUX.1-dev --ae ae.safetensors \\
      --network_module=networks.lora_flux \\
      --network_dim 16 --network_alpha 8 --optimizer_type AdamW8bit \\
      --optimizer_args "weight_decay=0.1" "betas=0.9,0.99" "amsgrad=True" \\
      --learning_rate 1e-4 --max_train_steps 1000 --save_every_n_steps 250 \\
      --lr_scheduler cosine --lr_warmup_steps 0.1 \\
      --timestep_sampling shift --discrete_flow_shift 3.0 --model_prediction_type raw \\
      --guidance_scale 1.0 --mixed_precision bf16 \\
      --gradient_accumulation_steps 4 --network_train_unet_only --output_name mine --seed 7"""
    ours = convert_kohya(None, tmp_path / "data.toml", command).validated()
    assert ours.tuples.batch_size == 16
    expected = converted(tmp_path).validated()
    assert ours.model_copy(update={"tuples": expected.tuples}) == expected


def test_epochs_are_counted_where_the_pictures_are(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for folder, count in (("closeups", 2), ("figures", 5)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{index}.png")
    train = TRAIN.replace("max_train_steps = 1000", "max_train_epochs = 10").replace(
        "save_every_n_steps = 250", "save_every_n_epochs = 5"
    )
    budget = converted(tmp_path, train).validated().budget
    assert (budget.unit, budget.amount, budget.checkpoints) == ("slices", 10 * (2 * 3 + 5), (0.5, 1.0))


def test_preview_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(
        "# comment\na fox --w 768 --h 512 --d 3 --s 28 --n blurry\na cat --d 3 --w 768 --h 512 --s 28\n"
    )
    draft = converted(tmp_path, TRAIN + 'sample_prompts = "prompts.txt"\nsample_every_n_steps = 100\n')
    previews = draft.validated().previews
    assert (
        previews is not None
        and previews.prompts == ("a fox", "a cat")
        and previews.seeds == (3,)
        and previews.every == 100
    )
    assert (previews.sampler.width, previews.sampler.height, previews.sampler.steps) == (768, 512, 28)
    assert outcomes(draft)["sample_prompts"] == "difference"


@pytest.mark.parametrize(
    ("train", "data", "parts"),
    [
        ("network_dim = 4\n", DATA, ["train.toml", "pretrained_model_name_or_path"]),
        (TRAIN.replace("networks.lora_flux", "networks.lora_sd3"), DATA, ["networks.lora_sd3", "networks.lora_flux"]),
        (TRAIN.replace("network_dim = 16", "network_dim = 'x'"), DATA, ["network_dim", "a number"]),
        (
            TRAIN.replace("network_dim = 16", "network_dim = -4"),
            DATA,
            ["network_dim", "adapter.rank", "greater than 0"],
        ),
        (TRAIN.replace("1e-4", "inf"), DATA, ["learning_rate", "inf"]),
        (TRAIN + "x = [", DATA, ["train.toml", "not valid TOML"]),
        (TRAIN + "[again]\nseed = 1\n", DATA, ["seed", "two sections"]),
        (TRAIN + "model_type = 'chroma'\n", DATA, ["chroma"]),
        (TRAIN, "[general]\nresolution = 512\n", ["data.toml", "[[datasets]]"]),
        (TRAIN, DATA.replace("image_dir", "image_dri"), ["image_dir"]),
        (TRAIN, DATA.replace("resolution = 512", "resolution = 'big'"), ["general.resolution", "WIDTH,HEIGHT"]),
        (TRAIN, DATA.replace("offset = -0.5", "offset = 'low'"), ["offset", "a number"]),
        (TRAIN, "[[datasets]]\nsubsets = 5\n", ["datasets[0]"]),
        (DATA, DATA, ["data-set TOML"]),
    ],
)
def test_mistakes_name_file_and_option(tmp_path, train, data, parts):
    with pytest.raises(ConfigError) as caught:
        converted(tmp_path, train, data).validated()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("ls -l", "names no training script"),
        ("python sdxl_train.py --seed 1", "sdxl_train_network.py"),
        ("flux_train_network.py --a 'b", "quotation"),
        ("flux_train_network.py --seed 1 2", "--seed"),
    ],
)
def test_commands_that_are_none(command, part):
    with pytest.raises(ConfigError, match=part):
        convert_kohya(None, None, command)


def test_windows_paths_survive_in_a_command(tmp_path):
    (tmp_path / "data.toml").write_text(DATA)
    model = '--pretrained_model_name_or_path "C:\\models\\flux dev"'
    command = (
        f"python flux_train_network.py --ae C:\\models\\ae.safetensors {model} ^\n --output_name x --max_train_steps 5"
    )
    assert convert_kohya(None, tmp_path / "data.toml", command).validated().model.path == "C:\\models\\flux dev"


def test_a_huge_integer_is_shown_by_its_size():
    with pytest.raises(ConfigError, match="bits"):
        Options({"seed": [1 << 20_000]}, "f").number("seed")
