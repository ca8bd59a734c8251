"""Recipes: every packaged one is valid, Table 3 is Table 3, keys that are not read are errors."""

from pathlib import Path

import pytest

import flowgrain
from flowgrain.config import dump_yaml, load_config
from flowgrain.errors import ConfigError
from flowgrain.flow.time_laws import LinearShift, LogitNormal
from flowgrain.train.recipe import Recipe, find_recipe

PACKAGED = sorted(file.stem for file in (Path(flowgrain.__file__).parent / "recipes").glob("*.yaml"))
MODELS = ("flux-dev", "tiny-flux", "animagine-xl-3.1", "tiny-sdxl")
RECIPES = [name for name in PACKAGED if name.startswith(MODELS)]
OF_FLUX = ("baseline", "slices-random", "slices-tuples", "slices-modulation", "granularity")
OF_ANIMAGINE = ("baseline", "slices-random", "slices-modulation", "no-min-snr", "gamma5", "granularity")
ALIGNED = ("gram", "repa", "irepa", "wavelet")
OF_TINY = (*OF_FLUX, "measured")
ARMS = {
    "flux-dev": (*OF_FLUX, *ALIGNED),
    "tiny-flux": (*OF_TINY, *ALIGNED),
    "animagine-xl-3.1": OF_ANIMAGINE,
    "tiny-sdxl": (*OF_TINY, "gram"),
}

FROZEN_TEXT = ["adapter.text_encoders=null", "optimizer.lrs={text_encoder*: null}"]


def load(name, *overrides):
    return load_config(Recipe, find_recipe(name), ["data.path=somewhere", *overrides])[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_packaged_recipe_is_valid(name):
    model = next(model for model in MODELS if name.startswith(model))
    assert load(name).name == name.removeprefix(f"{model}-")


def test_the_arms_of_each_model_are_there():
    assert {f"{model}-{arm}" for model, arms in ARMS.items() for arm in arms} == set(RECIPES)


def test_table_3():
    recipe = load("flux-dev-granularity")
    assert (recipe.adapter.kind, recipe.adapter.rank, recipe.adapter.alpha) == ("dora", 32, 16)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.tuples.batch_size) == ("adamw", 1e-4, 8)
    assert (recipe.model.path, recipe.model.guidance) == ("black-forest-labs/FLUX.1-dev", 1.0)
    assert recipe.time.granularity_shift == {"macro": 0.5, "meso": 0.0, "micro": -0.5}
    assert recipe.budget.checkpoints == (1.0, 1.5)
    assert (recipe.budget.amount, recipe.budget.unit) == (14 * 3600, "seconds")  # the longest of Table 4
    pictures = load("flux-dev-baseline").data
    assert pictures.resolution == 1280 and pictures.buckets is None  # buckets of all aspect ratios


def test_table_5():
    recipe = load("animagine-xl-3.1-granularity")
    assert recipe.model.path == "cagliostrolab/animagine-xl-3.1"
    adapter, optimizer = recipe.adapter, recipe.optimizer
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.conv_rank, adapter.conv_alpha) == ("lora", 64, 32, 16, 8)
    assert adapter.text_encoders is not None and adapter.text_encoders.names is None  # all of them
    assert (optimizer.name, optimizer.lr, optimizer.lrs) == ("lion", 3e-5, {"text_encoder*": 3e-6})
    assert (optimizer.betas, optimizer.weight_decay, recipe.tuples.batch_size) == ((0.9, 0.99), 0.0, 2)
    assert recipe.data.caption_shuffle and not recipe.data.cache_text and recipe.noise.offset == 0.0357
    assert (recipe.weighting.kind, recipe.weighting.gamma.values) == ("min_snr", (4.0, 5.0, 7.0))
    assert (recipe.path.zero_terminal_snr, recipe.time.kind) == ("model", "model")
    assert recipe.budget.checkpoints == (1.0, 1.5)
    assert (recipe.budget.amount, recipe.budget.unit) == (2 * 3600, "seconds")  # the longest of Table 6


@pytest.mark.parametrize("model", ["flux-dev", "tiny-flux"])
def test_arms_with_alignment_are_the_baseline_and_one_term(model):
    baseline = load(f"{model}-baseline")
    for arm in ALIGNED[:3]:
        aligned = load(f"{model}-{arm}")
        assert [term.name for term in aligned.align] == [aligned.align[0].kind] == [arm]
        assert load(f"{model}-{arm}", f"align.{arm}.weight=0").identity() == baseline.identity() != aligned.identity()
    assert load(f"{model}-wavelet", "loss.kind=mse").identity() == baseline.identity()
    gram, irepa = (load(f"{model}-{arm}").align[0] for arm in ("gram", "irepa"))
    assert (gram.tap, gram.encoder, gram.grid, gram.head, gram.weight) == (
        irepa.tap, irepa.encoder, irepa.grid, irepa.head, irepa.weight)  # fmt: skip


def test_gram_on_flux_is_the_papers_tap_and_head():
    [gram] = load("flux-dev-gram").align
    assert (gram.tap, gram.grid.edge, gram.head.stride, gram.head.kernel) == ("transformer_blocks.11", 32, 2, 3)


def test_ablations_of_min_snr():
    assert load("animagine-xl-3.1-no-min-snr").weighting.kind == "none"
    five = load("animagine-xl-3.1-gamma5")
    assert (five.weighting.kind, five.weighting.gamma.values) == ("min_snr", (5.0, 5.0, 5.0))
    full = load("animagine-xl-3.1-granularity")
    for ablation in (five, load("animagine-xl-3.1-no-min-snr")):
        assert ablation.tuples == full.tuples and ablation.data == full.data
    alone = load("animagine-xl-3.1-slices-modulation")
    assert alone.weighting == full.weighting and alone.tuples.grouping == "slice"


@pytest.mark.parametrize("model", MODELS)
def test_arms_differ_in_nothing_but_the_method(model):
    """Baseline and full method share model, adapter, optimizer, schedule and budget."""
    arms = [load(f"{model}-{arm}") for arm in ARMS[model]]
    sections = (
        "model",
        "adapter",
        "optimizer",
        "schedule",
        "ema",
        "clip",
        "budget",
        "precision",
        "seed",
        "path",
        "noise",
    )
    for section in sections:
        assert len({repr(getattr(arm, section)) for arm in arms}) == 1
    assert len({arm.tuples.batch_size for arm in arms}) == 1


def test_the_recipe_for_small_cards_is_the_method():
    recipe = load("sdxl-12gb")
    assert recipe.weighting == load("animagine-xl-3.1-granularity").weighting
    assert recipe.memory.gradient_checkpointing and recipe.optimizer.name == "adamw8bit" and recipe.precision == "bf16"
    assert recipe.data.caches_text and recipe.memory.offload_encoders and recipe.model.dtype == "bfloat16"


def test_time_section_builds_the_law():
    def law(model_shift, *overrides):
        return load("flux-dev-granularity", *overrides).time.law(model_shift)

    delta = (0.5, 0.0, -0.5)
    assert law(LinearShift()) == LogitNormal(delta=delta, shift=LinearShift())
    assert law(LinearShift(), "time.resolution_shift=none") == LogitNormal(delta=delta)
    line = "time.resolution_shift={base_tokens: 16, max_tokens: 64, base_shift: 0, max_shift: 1}"
    assert law(None, line) == LogitNormal(delta=delta, shift=LinearShift(16, 64, 0.0, 1.0))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.final=0.1"], "schedule.final is not read"),
        (["tuples.grouping=slice", "tuples.reduction=level"], "reduction"),
        (["data.levels=[macro]"], "granularity_shift of meso or micro is not read"),
        (["budget.checkpoints=[1.5, 1.0]"], "positive and increasing"),
        (["optimizer.betas=[0.9, 1.0]"], r"\[0, 1\)"),
        (["time.granularity_shift.mezzo=1"], "mezzo"),
        (["time.resolution_shift={base_tokens: 5, max_tokens: 5}"], "must differ"),
        (["time.kind=uniform"], "granularity_shift is not read by a uniform law .* weighting.gamma"),
        (["time={kind: uniform, mean: 1.0, granularity_shift: null}"], "granularity_shift"),
        (["weighting.gamma=4"], "gamma is not read by weighting.kind none"),
        (["weighting={kind: debiased, gamma: 4}"], "gamma is not read by weighting.kind debiased"),
        (["weighting={kind: min_snr, gamma: {macro: 4, meso: 5}}"], "weighting.gamma.micro: field required"),
        (["weighting={kind: min_snr, gamma: 0}"], "greater than 0"),
        (["path={prediction: epsilon, zero_terminal_snr: true}"], "epsilon does not go with zero terminal SNR"),
        (["noise.adaptive=0.1"], "noise.adaptive is not read where noise.offset is 0"),
        (["adapter.text_encoders={}"], "data.cache_text keeps what they gave before"),
        (["memory.offload_encoders=true", "data.cache_text=false"], "data.cache_text is false and every update"),
    ],
)
def test_contradictions_and_unread_keys(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load("tiny-flux-granularity", *overrides)


def test_a_map_of_gammas_is_not_read_on_one_level():
    with pytest.raises(ConfigError, match=r"weighting\.gamma of meso and micro is not read"):
        load("animagine-xl-3.1-granularity", "data.levels=[macro]")
    assert load("animagine-xl-3.1-gamma5", "data.levels=[macro]").weighting.gamma.macro == 5


def test_what_is_written_into_a_run_folder_is_valid_again(tmp_path):
    for name in ("animagine-xl-3.1-granularity", "tiny-sdxl-baseline", "tiny-flux-granularity"):
        recipe = load(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_yaml(recipe))
        assert load_config(Recipe, path, [])[0] == recipe


def test_short_forms():
    recipe = Recipe.model_validate({"name": "x", "model": "some/model", "data": {"path": "d"}, "budget": {"amount": 1}})
    assert recipe.model.path == "some/model" and recipe.output == Path("runs/x")


def test_identity_ignores_places_and_names_only():
    recipe = load("tiny-flux-granularity")
    assert recipe.identity() == load("tiny-flux-granularity", "output=elsewhere", "name=other").identity()
    assert recipe.identity() != load("tiny-flux-granularity", "optimizer.lr=1e-5").identity()


@pytest.mark.parametrize(
    "change",
    [
        "path.prediction=v_prediction", "path.zero_terminal_snr=false", "weighting={kind: none, gamma: 5}",
        "weighting.gamma.meso=6", "noise.offset=0.1", "noise.adaptive=0.1", "time.kind=logit_normal",
        "data.caption_shuffle=false",
        "data.tag_dropout=0.1", "data.caption_separator=;", "data={cache_text: true, caption_variants: 2}",
    ],
)  # fmt: skip
def test_identity_covers_everything_that_is_drawn_or_weighed(change):
    overrides = FROZEN_TEXT
    recipe = load("animagine-xl-3.1-granularity", *overrides)
    changed = load("animagine-xl-3.1-granularity", *overrides, change)
    assert recipe.identity() != changed.identity()


def test_identity_does_not_know_where_embeddings_are_kept():
    fixed = [*FROZEN_TEXT, "data.caption_shuffle=false"]
    recipe = load("animagine-xl-3.1-granularity", *fixed)
    assert recipe.identity() == load("animagine-xl-3.1-granularity", *fixed, "data.cache_text=true").identity()


@pytest.mark.parametrize("removal", ["optimizer.lrs={text_encoder*: null}", "optimizer.lrs=null"])
def test_null_takes_a_rate_of_an_extended_recipe_away(removal):
    recipe = load("animagine-xl-3.1-granularity", "adapter.text_encoders=null", removal)
    assert recipe.optimizer.lrs == {} and not recipe.trains_text
    assert load("animagine-xl-3.1-granularity", "optimizer.lrs={unet*: 1.0e-5}").optimizer.lrs == {
        "text_encoder*": 3e-6,
        "unet*": 1e-5,
    }


def test_a_rate_of_frozen_text_encoders_says_how_to_remove_it():
    with pytest.raises(ConfigError, match=r"none trains .*'optimizer.lrs=\{text_encoder\*: null\}'"):
        load("animagine-xl-3.1-granularity", "adapter.text_encoders=null")


def test_identity_knows_the_contents_of_a_configuration_folder_not_its_place(tmp_path):
    """A configuration decides the model by what it says; without one the identity is that of earlier versions."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "config.json").write_text("{}")
        (folder / "README.md").write_text(folder.name)
    (folders[2] / "unet" / "config.json").write_text('{"sample_size": 64}')
    none, *found = (
        load("animagine-xl-3.1-baseline", *config).identity()
        for config in ([], *([f"model.config={folder}"] for folder in folders))
    )
    assert found[0] == found[1] != found[2] and none not in found
