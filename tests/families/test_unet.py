"""What all U-Net families promise, on random models of the three layouts."""

import copy
import inspect
import shutil

import pytest
import torch
from family_contract import (
    CAPTIONS,
    assert_same,
    backbone_calls,
    check_adapter,
    check_broken_files,
    check_cached_is_live,
    check_checkpointing,
    check_encoding,
    check_missing_weight,
    check_skeleton,
    conditioned,
    copied,
    draw,
    latent_noise,
    move,
    noise,
)
from random_unet import random_sd15, random_sd21, random_sdxl
from torch import nn
from unet_contract import check_two_steps, times, unconditional

from flowgrain.adapters.base import AdapterConfig, TextEncoderAdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.targets import find_targets
from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family, read_capabilities

MODELS = {"sdxl": random_sdxl, "sd15": random_sd15, "sd21": random_sd21}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "saved"
    family._pipeline.save_pretrained(folder)
    return folder


def calls(family, run):
    """(arguments by name, output) of every call of the U-Net; arguments that are None are left out."""
    signature = inspect.signature(family.backbone.forward)
    found = []
    for arguments, named, output in backbone_calls(family, run):
        bound = signature.bind(*arguments, **named).arguments
        found.append(({name: value for name, value in bound.items() if value is not None}, output))
    return found


@pytest.mark.parametrize(("height", "width", "guidance"), [(16, 16, 1.0), (32, 16, 5.0), (24, 40, 1.0), (24, 40, 5.0)])
def test_the_unet_gets_what_the_pipeline_gives_it(family, height, width, guidance):
    x = latent_noise(family, height, width)
    theirs = calls(family, lambda: draw(family, x, guidance_scale=guidance))
    scheduler = family._pipeline.scheduler
    conditioning = conditioned(family)
    if guidance > 1:
        negative = unconditional(family, 2).tensors
        both = {name: torch.cat([negative[name], tensor]) for name, tensor in conditioning.tensors.items()}
        conditioning = type(conditioning)(both)
    assert len(theirs) >= 2  # PNDM's first step takes two
    for (given, output), step in zip(theirs, scheduler.timesteps, strict=True):
        latents = given["sample"]
        ((ours, prediction),) = calls(
            family, lambda x=latents, t=step: family.predict(x, times(t, len(x)), conditioning)
        )
        assert torch.equal(ours.pop("timestep"), given.pop("timestep").expand(len(latents)).long())
        assert_same(ours, given)
        torch.testing.assert_close(prediction, output, **CLOSE)


def test_in_bfloat16_the_unet_gets_the_pipelines_bits(family):
    half = type(family)(copy.deepcopy(family._pipeline).to(torch.bfloat16), "half")
    x = latent_noise(half, 16, 24, rows=1).to(torch.bfloat16)
    (given, output), *_ = calls(half, lambda: draw(half, x, guidance_scale=1.0))
    t = times(half._pipeline.scheduler.timesteps[0], 1)
    conditioning = conditioned(half, CAPTIONS[:1])
    ((ours, prediction),) = calls(half, lambda: half.predict(given["sample"], t, conditioning))
    assert prediction.dtype == torch.bfloat16
    assert torch.equal(prediction, output)
    ours.pop("timestep"), given.pop("timestep")
    assert_same(ours, given)


def test_offloaded_encoders_give_the_same_bits():
    for fresh in MODELS.values():
        family, pixels = fresh(), noise(1, 3, 16, 24).clamp(-1, 1)

        def everything(family=family, pixels=pixels):
            x = latent_noise(family, 16, 24)
            text = family.embed_text(CAPTIONS).tensors.values()
            return [*text, family.encode_pixels(pixels).mean, family.decode(x), draw(family, x, output_type="pt")[1]]

        before = everything()
        family.offload_encoders()
        assert all(torch.equal(one, other) for one, other in zip(before, everything(), strict=True))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("negative", [None, "a blurred one"])
def test_two_steps_of_denoising_are_the_pipelines(family, guidance, negative):
    check_two_steps(family, guidance, negative)


def test_encoding_and_decoding_are_the_pipelines(family):
    pipe = family.pipeline()
    check_encoding(family, 16, 24, lambda mean, deviation: (mean + deviation) * pipe.vae.config.scaling_factor)
    _, latents = draw(family, latent_noise(family, 16, 24))
    _, pictures = draw(family, latent_noise(family, 16, 24), output_type="pt")
    torch.testing.assert_close((family.decode(latents) / 2 + 0.5).clamp(0, 1), pictures, **CLOSE)


def test_captions_are_encoded_as_the_pipeline_does(family):
    pipe = family.pipeline()
    live = check_cached_is_live(family)
    for row, caption in enumerate(CAPTIONS):
        theirs = pipe.encode_prompt(
            caption, device=family.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        names = {"prompt_embeds": theirs[0], **({"pooled_prompt_embeds": theirs[2]} if len(theirs) > 2 else {})}
        assert names.keys() == live.keys()
        assert all(torch.equal(live[name][row], value[0]) for name, value in names.items())


def test_gradients_reach_every_text_encoder(family):
    names = [name for name in family.components() if name != "unet"]
    encoders = AdapterConfig(kind="lora", rank=2, text_encoders=TextEncoderAdapterConfig(names=names))
    adapter = inject(family, encoders, seed=0)
    try:
        assert adapter.trains_text
        move(adapter, 0.1)
        text = [(name, value) for name, value in adapter.parameters() if not name.startswith("unet.")]
        assert {name.split(".")[0] for name, _ in text} == set(names)
        for grad in (False, True):
            conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=grad))
            assert all(value.requires_grad == grad for value in conditioning.tensors.values())
            x = latent_noise(family, 16, 16)
            family.predict(x, torch.full((2, 1), 0.5), conditioning).prediction.square().mean().backward()
            reached = [name for name, value in text if value.grad is not None and value.grad.any()]
            assert reached == ([name for name, _ in text] if grad else [])  # no layer among them learns nothing
        frozen = [p for module in family.encoders().values() for p in module.parameters() if not p.requires_grad]
        assert all(parameter.grad is None for parameter in frozen)
    finally:
        adapter.remove()


def test_an_adapter_in_the_pipeline_draws_what_the_live_one_draws(family, tmp_path):
    check_adapter(family, tmp_path / "adapter")


def test_an_adapter_of_convolutions_and_text_encoders_does_too(family, tmp_path):
    x = latent_noise(family, 16, 24)
    _, base = draw(family, x)
    config = AdapterConfig(kind="lora", rank=2, alpha=3.0, conv_rank=1, text_encoders=TextEncoderAdapterConfig())
    adapter = inject(family, config, seed=1)
    move(adapter, 0.2)
    _, live = draw(family, x)
    adapter.save(tmp_path / "adapter", {})
    adapter.remove()
    pipe = family.pipeline(tmp_path / "adapter")
    _, loaded = draw(family, x)
    pipe.unload_lora_weights()
    assert (live - base).abs().max() > 1e-2
    torch.testing.assert_close(loaded, live, rtol=1e-3, atol=1e-4)
    assert torch.equal(draw(family, x)[1], base)


def test_a_saved_model_loads_to_the_same_predictions(family, saved):
    loaded = load_family(str(saved), family.name, torch.float32, torch.device("cpu"))
    assert type(loaded) is type(family)
    x, t = latent_noise(family, 16, 24), torch.tensor([[0.3], [0.8]])
    ours, theirs = (model.predict(x, t, conditioned(model)).prediction for model in (loaded, family))
    # to rounding: torch's kernels look at where weights lie in memory
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert loaded.fingerprint() == family.fingerprint()
    assert loaded.capabilities == family.capabilities == read_capabilities(str(saved))
    for module in (loaded.backbone, *loaded.encoders().values()):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_skeleton_has_the_shapes_and_no_values(family, saved):
    check_skeleton(type(family), saved, family)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_and_broken_files_are_clear_errors(family, saved, tmp_path, part):
    check_missing_weight(type(family), copied(saved, tmp_path / "missing"), part, "weight")
    check_broken_files(type(family), copied(saved, tmp_path / "broken"), part)


def test_a_folder_of_another_architecture_is_a_clear_error(family, saved, tmp_path):
    folder = copied(saved, tmp_path / "other")
    other = {"sdxl": random_sd15, "stable-diffusion": random_sdxl}[family.name]()
    shutil.rmtree(folder / "unet")
    other.backbone.save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=r"^[^\n]*the U-Net reads text of width \d+[^\n]*$"):
        type(family).load(str(folder), torch.float32, torch.device("cpu"))


def test_the_fingerprint_sees_text_encoders_and_autoencoder_but_not_the_unet(family, request):
    fresh = MODELS[request.node.callspec.params["family"]]
    same = family.fingerprint()
    assert fresh(dropout=0.1).fingerprint() == same
    for name in family.encoders():
        changed = fresh()
        next(changed.encoders()[name].parameters()).data.view(-1)[0] += 1
        assert changed.fingerprint() != same


def test_taps_are_feature_maps_as_tokens(family):
    x, t, conditioning = latent_noise(family, 16, 24), torch.full((2, 1), 0.3), conditioned(family)
    names = ("down_blocks.0", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.2")
    output = family.predict(x, t, conditioning, names)
    widths = family.backbone.config.block_out_channels
    # 12 x 8 latent cells halved by the first two blocks on the way down and doubled again on the way up
    expected = [(4 * 6, widths[0]), (2 * 3, widths[2]), (2 * 3, widths[2]), (4 * 6, widths[2]), (8 * 12, widths[0])]
    assert [tuple(tap.shape[1:]) for tap in output.taps.values()] == expected
    last = output.taps["up_blocks.2"].transpose(1, 2).reshape(2, widths[0], 8, 12)
    unet = family.backbone
    head = unet.conv_out(unet.conv_act(unet.conv_norm_out(last)))
    torch.testing.assert_close(head, output.prediction)
    assert torch.equal(output.prediction, family.predict(x, t, conditioning).prediction)
    assert not any(module._forward_hooks for module in unet.modules())
    for tap in ("up_blocks.3", "mid_block.0", "conv_in", "down_blocks.x"):
        with pytest.raises(ModelError, match=r"it has down_blocks\.0 to down_blocks\.2, mid_block, up_blocks\.0 to"):
            family.predict(x, t, conditioning, (tap,))


def test_default_targets_are_the_layers_of_kohyas_lora_and_locon(family):
    unet = family.backbone
    linear = set(find_targets(unet, family.adapter_targets("unet")))
    inner = {
        f"{name}.{part}"
        for name, module in unet.named_modules()
        if type(module).__name__ == "Transformer2DModel"
        for part, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    assert linear == inner
    both = linear | set(find_targets(unet, family.convolution_targets("unet")))
    layers = {name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    ends = {name for name in layers if name.split(".")[0] in ("conv_in", "conv_out", "time_embedding", "add_embedding")}
    assert both == layers - ends
    for name in (n for n in family.components() if n != "unet"):
        encoder = family.components()[name]
        linears = {n for n, layer in encoder.named_modules() if isinstance(layer, nn.Linear)} - {"text_projection"}
        if (family.name, name) == ("sdxl", "text_encoder"):  # the last of its two layers is not read
            linears = {n for n in linears if ".layers.1." not in n}
        assert set(find_targets(encoder, family.adapter_targets(name))) == linears
        with pytest.raises(ModelError, match="no convolutions"):
            family.convolution_targets(name)
    with pytest.raises(ModelError, match="no component 'vae'"):
        family.adapter_targets("vae")


def test_gradient_checkpointing_gives_the_same_gradients(family):
    check_checkpointing(family)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_compiled_blocks_are_equal_to_rounding(name):
    family = MODELS[name]()
    x, conditioning = latent_noise(family, 16, 24), conditioned(family)
    results = []
    for compiled in (False, True):
        if compiled:
            family.compile()
        weight = family.backbone.conv_in.weight.requires_grad_(True)
        prediction = family.predict(x, torch.full((2, 1), 0.4), conditioning).prediction
        (gradient,) = torch.autograd.grad(prediction.square().mean(), weight)
        results.append((prediction.detach(), gradient))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_sides_that_the_unet_cannot_halve_are_refused(family):
    assert family.tokens(32, 16) == 8
    with pytest.raises(ModelError, match="multiples of 8"):
        family.tokens(20, 16)
    with pytest.raises(ModelError, match="height 8 and width 6 latent cells must be positive multiples of 4"):
        family.predict(noise(1, 4, 8, 6), torch.ones(1, 1), conditioned(family, ["x"]))


def test_predictions_ignore_their_batch_and_read_times_as_table_entries(family):
    x, conditioning = latent_noise(family, 16, 16), conditioned(family)
    together = family.predict(x, torch.tensor([[0.2504], [0.9999]]), conditioning).prediction
    alone = family.predict(x[1:], torch.tensor([[0.999]], dtype=torch.float64), conditioned(family, CAPTIONS[1:]))
    torch.testing.assert_close(together[1:], alone.prediction, **CLOSE)
    at_end = family.predict(x, torch.ones(2, 1), conditioning).prediction  # t = 1 is the table's last entry
    torch.testing.assert_close(at_end[1], together[1], **CLOSE)


def test_unets_that_are_no_text_to_image_models_are_refused():
    with pytest.raises(ModelError, match="takes 9 channels, the autoencoder gives 4"):
        random_sd15(in_channels=9)
    with pytest.raises(ModelError, match="a latent consistency model"):
        random_sd15(time_cond_proj_dim=8)
    with pytest.raises(ModelError, match="the U-Net reads text of width 20, text_encoder give 8"):
        random_sd15(cross_attention_dim=20)


def test_time_law_and_shift_are_those_of_diffusion_models(family):
    assert family.default_time_law() == "uniform"
    assert family.default_shift() is None
    assert family.pipeline_options() == {}


def test_blocks_run_down_middle_up(family):
    unet = family.backbone
    assert family.blocks() == [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
