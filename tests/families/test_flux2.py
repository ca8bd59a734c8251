import importlib.util
import json
from typing import ClassVar

import pytest
import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from family_contract import CAPTIONS, CPU, backbone_calls, check_taps, conditioned, latent_noise
from hypothesis import given
from hypothesis import strategies as st
from random_flux2 import random_flux2, random_flux2_pipeline, random_klein, random_klein_pipeline
from transformer_contract import TransformerContract

from flowgrain.errors import ModelError
from flowgrain.families.flux2 import Flux2, Flux2Klein
from flowgrain.flow.paths import RectifiedFlow

KINDS = {"dev": Flux2, "klein": Flux2Klein}
RANDOM = {"dev": random_flux2, "klein": random_klein}
PIPELINES = {"dev": random_flux2_pipeline, "klein": random_klein_pipeline}
MODELS = pytest.mark.parametrize("model", ["dev", "klein"])


def small(family):
    family.max_sequence_length = 96
    return family


class Flux2Contract(TransformerContract):
    linears = 12 + 2 * 2
    outside = ()  # the modulations are outside the blocks
    missing: ClassVar = {"transformer": "weight", "vae": "bn.running_mean", "text_encoder": "layernorm.weight"}

    close: ClassVar = {"rtol": 1e-3, "atol": 1e-4}

    def of(self, pipeline):
        return small(super().of(pipeline))

    def normalised(self, pipe, raw):
        norm = pipe.vae.bn.eval()
        return Flux2Pipeline._unpatchify_latents(norm(Flux2Pipeline._patchify_latents(raw)))


class TestFlux2(Flux2Contract):
    kind = Flux2
    guidances: ClassVar = (2.5,)
    negative = None
    build = staticmethod(random_flux2_pipeline)

    def unpacked(self, family, drawn, height, width):
        patches = drawn.transpose(1, 2).reshape(len(drawn), 16, height // 4, width // 4)
        return Flux2Pipeline._unpatchify_latents(patches)


class TestFlux2Klein(Flux2Contract):
    kind = Flux2Klein
    build = staticmethod(random_klein_pipeline)

    def unpacked(self, family, drawn, height, width):
        return family._normalised(drawn)  # the pipeline gives latents of the autoencoder


@pytest.fixture(scope="module")
def families():
    return {model: small(build()) for model, build in RANDOM.items()}


@MODELS
def test_bfloat16_takes_the_pipelines_rounding_of_t(model):
    family = small(KINDS[model](PIPELINES[model]().to(torch.bfloat16), "half"))
    x, conditioning = latent_noise(family, 16, 16, 1), conditioned(family, CAPTIONS[:1])
    ((_, named, _),) = backbone_calls(family, lambda: family.predict(x, torch.tensor([[0.7371]]), conditioning))
    assert torch.equal(named["timestep"], torch.tensor([737.1]).to(torch.bfloat16) / 1000)


def test_guidance_is_an_input_of_the_one_and_none_of_the_other(families):
    x, t = latent_noise(families["dev"], 16, 16), torch.full((2, 1), 0.5)
    for model, differs in (("dev", True), ("klein", False)):
        family = families[model]
        low, high = (family.predict(x, t, conditioned(family, guidance=value)).prediction for value in (1.0, 4.0))
        assert (not torch.equal(low, high)) == differs


@MODELS
def test_text_is_the_pipelines_bit_for_bit(families, model):
    family = families[model]
    for caption in (*CAPTIONS, "", " ".join(["rice"] * 200)):
        theirs, _ = family.pipeline().encode_prompt(caption, max_sequence_length=96)
        assert torch.equal(family.embed_text([caption]).tensors["prompt_embeds"], theirs)
        assert theirs.shape == (1, 96, 24)  # three layers of 8


@MODELS
def test_fingerprint_sees_template_statistics_and_length(model):
    template, statistics = PIPELINES[model](), PIPELINES[model]()
    template.tokenizer.chat_template += "!"
    statistics.vae.bn.running_mean += 1
    changed = [KINDS[model](pipe, "random") for pipe in (template, statistics)]
    families = [RANDOM[model](), small(RANDOM[model]()), *changed]
    assert len({family.fingerprint() for family in families}) == 4


def test_another_architecture_is_one_clear_line(small_flux):
    with pytest.raises(ModelError, match=r"a Flux2Transformer2DModel, this one is a FluxTransformer2DModel$"):
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
def test_without_torchvision_the_processors_tokenizer_is_read(families, tmp_path, kind):
    folder = tmp_path / "published"
    random_flux2_pipeline().save_pretrained(folder)
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
