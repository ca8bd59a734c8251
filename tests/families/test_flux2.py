import importlib.util
import json

import pytest
import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from family_contract import (
    CAPTIONS,
    CPU,
    backbone_calls,
    check_adapter,
    check_broken_files,
    check_cached_is_live,
    check_checkpointing,
    check_encoding,
    check_first_call,
    check_loading,
    check_missing_weight,
    check_skeleton,
    check_taps,
    check_targets,
    conditioned,
    copied,
    denoised,
    draw,
    latent_noise,
)
from hypothesis import given
from hypothesis import strategies as st
from random_flux2 import random_flux2, random_flux2_pipeline, random_klein, random_klein_pipeline

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.flux2 import Flux2, Flux2Klein
from flowgrain.flow.paths import RectifiedFlow

SIZES = [(16, 16), (32, 16), (24, 40)]
KINDS = {"dev": Flux2, "klein": Flux2Klein}
RANDOM = {"dev": random_flux2, "klein": random_klein}
PIPELINES = {"dev": random_flux2_pipeline, "klein": random_klein_pipeline}
MODELS = pytest.mark.parametrize("model", ["dev", "klein"])


def small(family):
    family.max_sequence_length = 96
    return family


@pytest.fixture(scope="module")
def families():
    return {model: small(build()) for model, build in RANDOM.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for model, build in PIPELINES.items():
        build().save_pretrained(folder / model)
    return folder


@MODELS
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_predict_gives_the_transformer_what_the_pipeline_gives_it(families, model, height, width):
    guidance = 2.5 if model == "dev" else 1.0
    check_first_call(families[model], height, width, guidance=guidance, guidance_scale=guidance)


@MODELS
def test_in_bfloat16_too(model):
    family = small(KINDS[model](PIPELINES[model]().to(torch.bfloat16), "half"))
    guidance = 2.5 if model == "dev" else 1.0
    check_first_call(family, 24, 16, guidance=guidance, rows=1, guidance_scale=guidance)
    t = torch.tensor([[0.7371]])
    ((_, named, _),) = backbone_calls(
        family, lambda: family.predict(latent_noise(family, 16, 16, 1), t, conditioned(family, CAPTIONS[:1]))
    )
    assert torch.equal(named["timestep"], torch.tensor([737.1]).to(torch.bfloat16) / 1000)


@pytest.mark.parametrize(("model", "guidance"), [("dev", 2.5), ("klein", 1.0), ("klein", 2.5)])
def test_two_steps_are_the_pipelines(families, model, guidance):
    family = families[model]
    x = latent_noise(family, 24, 16)
    pipe, theirs = draw(family, x, guidance_scale=guidance)
    positive, negative = conditioned(family, guidance=guidance), conditioned(family, ["", ""])

    def velocity(x, t):
        v = family.predict(x, t, positive).prediction
        if model == "dev" or guidance == 1:
            return v
        unguided = family.predict(x, t, negative).prediction
        return unguided + guidance * (v - unguided)

    ours = denoised(family, x, velocity, pipe.scheduler)
    if model == "dev":  # gives packed patches
        ours, x = (Flux2Pipeline._pack_latents(family.pipeline_latents(value)) for value in (ours, x))
    else:  # gives latents of the autoencoder
        ours, x = family._denormalised(ours), family._denormalised(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert (theirs - x).abs().max() > 0.1


def test_guidance_is_an_input_of_the_one_and_none_of_the_other(families):
    x, t = latent_noise(families["dev"], 16, 16), torch.full((2, 1), 0.5)
    for model, differs in (("dev", True), ("klein", False)):
        family = families[model]
        low, high = (family.predict(x, t, conditioned(family, guidance=value)).prediction for value in (1.0, 4.0))
        assert (not torch.equal(low, high)) == differs


@MODELS
def test_encoding_normalises_patches_by_the_batch_norms_statistics(families, model):
    norm = families[model].pipeline().vae.bn
    norm.eval()

    def reference(mean, spread):
        return Flux2Pipeline._unpatchify_latents(norm(Flux2Pipeline._patchify_latents(mean + spread)))

    check_encoding(families[model], 16, 24, reference)


@MODELS
def test_a_picture_of_the_pipeline_is_its_latents_decoded(families, model):
    family = families[model]
    x = latent_noise(family, 16, 24)
    pictures = draw(family, x, output_type="pt", guidance_scale=1.0)[1]
    latents = draw(family, x, guidance_scale=1.0)[1]
    if model == "dev":
        latents = Flux2Pipeline._unpatchify_latents(latents.transpose(1, 2).reshape(2, 16, 4, 6))
    else:
        latents = family._normalised(latents)
    torch.testing.assert_close((family.decode(latents) / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-4, atol=1e-4)


@MODELS
def test_text_is_the_pipelines_bit_for_bit(families, model):
    family = families[model]
    for caption in (*CAPTIONS, "", " ".join(["rice"] * 200)):
        theirs, _ = family.pipeline().encode_prompt(caption, max_sequence_length=96)
        assert torch.equal(family.embed_text([caption]).tensors["prompt_embeds"], theirs)
        assert theirs.shape == (1, 96, 24)  # three layers of 8


@MODELS
def test_cached_and_live_conditioning_agree_bitwise(families, model):
    live = check_cached_is_live(families[model])
    assert set(live) == ({"prompt_embeds", "guidance"} if model == "dev" else {"prompt_embeds"})


@MODELS
def test_captions_can_be_encoded_with_gradient(model):
    family = small(RANDOM[model]())
    encoder = family.encoders()["text_encoder"].requires_grad_(True)
    conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=True))
    family.predict(latent_noise(family, 16, 16), torch.full((2, 1), 0.5), conditioning).prediction.sum().backward()
    assert encoder.get_input_embeddings().weight.grad.any()


@MODELS
def test_fingerprint_sees_what_changes_embeddings_and_not_the_transformer(model):
    same = RANDOM[model]().fingerprint()
    backbone, weight, template, statistics = (PIPELINES[model]() for _ in range(4))
    backbone.transformer.proj_out.weight.data += 1
    assert same == KINDS[model](backbone, "random").fingerprint()
    weight.text_encoder.get_input_embeddings().weight.data[0] += 1
    template.tokenizer.chat_template += "!"
    statistics.vae.bn.running_mean += 1
    others = {KINDS[model](pipe, "random").fingerprint() for pipe in (weight, template, statistics)}
    assert len(others | {same, small(RANDOM[model]()).fingerprint()}) == 5


@pytest.mark.parametrize("kind", ["lora", "dora"])
@MODELS
def test_a_saved_adapter_draws_what_the_live_one_draws(tmp_path, model, kind):
    check_adapter(small(RANDOM[model]()), tmp_path, kind)


@MODELS
def test_a_folder_loads_and_predicts_as_before_saving(folders, model):
    check_loading(KINDS[model], folders / model, RANDOM[model]())


@MODELS
def test_a_skeleton_runs_on_the_meta_device(folders, model):
    check_skeleton(KINDS[model], folders / model, RANDOM[model]())


@pytest.mark.parametrize(
    ("part", "gone"), [("transformer", "weight"), ("vae", "bn.running_mean"), ("text_encoder", "layernorm.weight")]
)
@MODELS
def test_missing_weights_are_an_error(folders, tmp_path, model, part, gone):
    check_missing_weight(KINDS[model], copied(folders / model, tmp_path / "broken"), part, gone)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_broken_files_are_one_clear_line_and_pickles_are_never_executed(folders, tmp_path, part):
    check_broken_files(Flux2, copied(folders / "dev", tmp_path / "broken"), part)


def test_another_architecture_is_one_clear_line(small_flux):
    with pytest.raises(ModelError, match=r"the transformer is a FluxTransformer2DModel, not FLUX\.2's$"):
        Flux2.load(str(small_flux), torch.float32, CPU)


@MODELS
def test_taps_are_image_tokens(families, model):
    family, transformer = families[model], families[model].backbone
    guidance = torch.full((2,), 1000.0) if model == "dev" else None

    def head(tokens, t):
        level = transformer.time_guidance_embed(t * 1000, guidance)
        output = transformer.proj_out(transformer.norm_out(tokens, level))
        return Flux2Pipeline._unpatchify_latents(output.transpose(1, 2).reshape(2, 16, 4, 6))

    check_taps(family, ("transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.1"), head)


@MODELS
def test_targets_are_every_linear_of_the_blocks(families, model):
    check_targets(families[model], (), 12 + 2 * 2)  # the modulations are outside the blocks


@MODELS
def test_checkpointing_gives_the_same_gradients(model):
    check_checkpointing(small(RANDOM[model]()))


def test_capabilities_and_path(families):
    for model, guidance in (("dev", "embedded"), ("klein", "classifier_free")):
        capabilities = families[model].capabilities
        assert (capabilities.guidance, capabilities.native_size) == (guidance, 32)
        assert (capabilities.pixel_multiple, capabilities.latent_scale, capabilities.latent_channels) == (4, 2, 4)
        assert isinstance(families[model].default_path(), RectifiedFlow)


def test_distilled_klein_models_have_no_guidance(tmp_path):
    family = random_klein(is_distilled=True)
    assert family.capabilities.guidance == "none"
    assert family.pipeline().config.is_distilled
    random_klein_pipeline(is_distilled=True).save_pretrained(tmp_path / "distilled")
    assert Flux2Klein.read_capabilities(str(tmp_path / "distilled")) == family.capabilities
    assert Flux2Klein.load(str(tmp_path / "distilled"), torch.float32, CPU).capabilities == family.capabilities


@given(tokens=st.integers(1, 20000))
def test_default_shift_is_the_pipelines_at_many_steps(families, tokens):
    shift = families["dev"].default_shift()
    assert shift is not None
    ours = shift(torch.tensor([tokens])).item()
    assert ours == pytest.approx(compute_empirical_mu(tokens, num_steps=200), abs=2e-4)
    if tokens > 4300:
        assert ours == pytest.approx(compute_empirical_mu(tokens, num_steps=20), abs=2e-4)


def test_models_that_do_not_fit_are_refused(families):
    with pytest.raises(ModelError, match="takes 32 channels"):
        Flux2(random_flux2_pipeline(in_channels=32), "other")
    with pytest.raises(ModelError, match="reads no guidance"):
        Flux2(random_flux2_pipeline(guidance_embeds=False), "other")
    with pytest.raises(ModelError, match="gives it none"):
        Flux2Klein(random_klein_pipeline(guidance_embeds=True), "other")
    with pytest.raises(ModelError, match="time_shift_type 'linear'"):
        random_flux2({"use_dynamic_shifting": True, "time_shift_type": "linear"})
    with pytest.raises(ModelError, match="must be positive multiples of 2"):
        families["dev"].predict(torch.zeros(1, 4, 7, 8), torch.ones(1, 1), conditioned(families["dev"], ["fox"]))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="PixtralProcessor needs torchvision")
def test_the_published_processor_reads_captions_as_its_tokenizer_does(families, tmp_path):
    from transformers import PixtralImageProcessor, PixtralProcessor

    pipe = random_flux2_pipeline()
    tokenizer = pipe.tokenizer
    processor = PixtralProcessor(
        PixtralImageProcessor(), tokenizer, patch_size=8, chat_template=tokenizer.chat_template
    )
    pipe.register_modules(tokenizer=processor)
    pipe.save_pretrained(tmp_path)
    family = small(Flux2.load(str(tmp_path), torch.float32, CPU))
    assert type(family.pipeline().tokenizer) is PixtralProcessor
    for caption in CAPTIONS:
        ours, theirs = (model.embed_text([caption]).tensors["prompt_embeds"] for model in (family, families["dev"]))
        assert torch.equal(ours, theirs)
    assert family.fingerprint() == families["dev"].fingerprint()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="the processor itself is loaded")
@pytest.mark.parametrize("kind", [Flux2.load, Flux2.skeleton])
def test_without_torchvision_the_processors_tokenizer_is_read(families, folders, tmp_path, kind):
    folder = copied(folders / "dev", tmp_path / "published")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "tokenizer": ["transformers", "PixtralProcessor"]}))
    options = (CPU,) if kind == Flux2.load else ()
    family = small(kind(str(folder), torch.float32, *options))
    tokens, theirs = (model.pipeline().tokenizer(CAPTIONS).input_ids for model in (family, families["dev"]))
    assert tokens == theirs
    assert family._tokenizer_digests() == families["dev"]._tokenizer_digests()
    if kind == Flux2.load:
        assert torch.equal(
            family.embed_text(["rice"]).tensors["prompt_embeds"],
            families["dev"].embed_text(["rice"]).tensors["prompt_embeds"],
        )
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"^[^\n]*tokenizer: cannot be loaded[^\n]*restore it$"):
        kind(str(folder), torch.float32, *options)
