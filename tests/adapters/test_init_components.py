"""Starting from adapters of several components and of convolutions: continued, or fused into the base weights."""

import pytest
import torch
from live_adapters import TEXT, disturb, everything, predict, sdxl
from safetensors.torch import load_file, save_file

from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig, InitConfig, TextEncoderAdapterConfig
from flowgrain.adapters.fusing import fuse, fuse_recorded, fused_in
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.source import read_adapter
from flowgrain.errors import CheckpointError, ModelError

KINDS = ("lora", "dora")


def started(path, mode, kind="lora", **changes):
    return everything(kind, init_from=InitConfig(path=path, mode=mode), **changes)


def saved(family, folder, config, seed=3):
    adapter = inject(family, config, seed=1)
    disturb(adapter, seed)
    adapter.save(folder, {})
    return adapter


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_by_component_and_layer(kind, tmp_path):
    saved(sdxl(), tmp_path, everything(kind))
    source = read_adapter(tmp_path)
    assert source.kind == kind and set(source.components) == {"unet", "text_encoder", "text_encoder_2"}
    convolution = source.components["unet"]["mid_block.resnets.0.conv1"]
    assert (convolution.rank, convolution.alpha, convolution.shape) == (3, 2.0, (8, 8, 3, 3))
    assert source.components["unet"]["mid_block.attentions.0.proj_in"].alpha == 3.0
    text = source.components["text_encoder"]["text_model.encoder.layers.0.mlp.fc1"]
    assert (text.rank, text.alpha) == (3, 4.0)
    if kind == "dora":
        assert convolution.magnitude.shape == (8,) and text.magnitude.shape == (text.shape[0],)


@pytest.mark.parametrize("kind", KINDS)
def test_continue_takes_over_every_bit(kind, tmp_path):
    family = sdxl()
    first = saved(family, tmp_path, everything(kind))
    state, live = first.state_dict(), predict(family)
    first.remove()
    second = inject(family, started(tmp_path, "continue", kind), seed=9)
    assert all(torch.equal(state[name], value) for name, value in second.state_dict().items())
    assert torch.equal(predict(family), live)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_encoders": None}, "adapts text_encoder, text_encoder_2, unet, the recipe adapts unet; set"),
        ({"conv_rank": 4}, r"rank of down_blocks\.0\.resnets\.0\.conv1 is 3 there and 4 here"),
        ({"conv_alpha": 9.0}, r"alpha of down_blocks\.0\.resnets\.0\.conv1 is 2 there and 9 here"),
        ({"conv_rank": None, "conv_alpha": None}, "also adapts down_blocks"),
        (
            {"text_encoders": TextEncoderAdapterConfig(rank=3, alpha=1.0)},
            r"alpha of encoder\.layers\.0\.self_attn\.k_proj is 4 there and 1 here",
        ),
    ],
)
def test_continue_names_what_differs(tmp_path, changed, message):
    saved(sdxl(), tmp_path, everything("lora"))
    with pytest.raises(CheckpointError, match=message):
        inject(sdxl(), started(tmp_path, "continue", **changed), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_fused_weights_of_all_components_predict_as_the_adapter(kind, tmp_path):
    family = sdxl()
    first = saved(family, tmp_path / "first", everything(kind))
    live = predict(family)
    first.remove()
    base = predict(family)
    second = inject(family, started(tmp_path / "first", "fuse", "dora", rank=3), seed=2)
    torch.testing.assert_close(predict(family), live, rtol=1e-4, atol=1e-5)
    assert (live - base).abs().max() > 0.05
    disturb(second, seed=8)
    second.save(tmp_path / "second", {})
    whole = predict(family)
    # sampling fuses what the header names, then loads the file
    other = sdxl()
    assert len(fuse_recorded(other, tmp_path / "second")) == 1
    other.pipeline(tmp_path / "second")
    torch.testing.assert_close(predict(other), whole, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_the_unet_alone_on_top_of_one_with_text_encoders(tmp_path):
    """What was fused is known for the model as a whole: chains may adapt other components at each step."""
    family = sdxl()
    saved(family, tmp_path / "a", everything("lora")).remove()
    unet = AdapterConfig(kind="lora", rank=2, init_from=InitConfig(path=tmp_path / "a", mode="fuse"))
    second = inject(family, unet, seed=2)
    disturb(second, seed=4)
    second.save(tmp_path / "b", {})
    second.remove()
    one = TextEncoderAdapterConfig(names=["text_encoder_2"])
    text = unet.model_copy(update={"text_encoders": one, "init_from": InitConfig(path=tmp_path / "b", mode="fuse")})
    third = inject(family, text, seed=3)
    disturb(third, seed=5)
    third.save(tmp_path / "c", {})
    live = predict(family)
    assert [entry.path.split("/")[-2] for entry in fused_in(family)] == ["a", "b"]
    other = sdxl()
    again = inject(other, text.model_copy(update={"init_from": InitConfig(path=tmp_path / "c")}), seed=0)
    torch.testing.assert_close(predict(other), live, rtol=1e-4, atol=1e-5)
    again.save(tmp_path / "d", {})
    assert read_adapter(tmp_path / "d").fused == read_adapter(tmp_path / "c").fused
    with pytest.raises(ModelError, match="hold other fused adapters"):
        fuse_recorded(other, tmp_path / "b")


def test_names_without_clips_extra_level_are_read_too(tmp_path):
    family = sdxl()
    first = saved(family, tmp_path, everything("lora"))
    live = predict(family)
    first.remove()
    path = tmp_path / WEIGHTS_NAME
    tensors = {
        name.replace("text_encoder.text_model.", "text_encoder."): value for name, value in load_file(path).items()
    }
    tensors |= {name.replace("lora_A.weight", "alpha"): torch.tensor(0.0) for name in tensors if "lora_A" in name}
    alphas = {"unet": 3.0, "text_encoder": 4.0, "text_encoder_2": 4.0}
    for name in [name for name in tensors if name.endswith(".alpha")]:
        spatial = tensors[name.replace("alpha", "lora_A.weight")].shape[2:] == (3, 3)
        tensors[name] = torch.tensor(2.0 if spatial else alphas[name.partition(".")[0]])
    save_file(tensors, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").replace(path)
    inject(family, started(tmp_path, "continue"), seed=0)
    assert torch.equal(predict(family), live)
    other = sdxl()
    fuse(other, tmp_path)
    torch.testing.assert_close(predict(other), live, rtol=1e-4, atol=1e-5)


def test_kernels_that_do_not_fit_are_refused_before_anything_changes(tmp_path):
    family = sdxl()
    saved(family, tmp_path, everything("lora", text_encoders=TEXT)).remove()
    before = predict(family)
    path = tmp_path / WEIGHTS_NAME
    whole = load_file(path)

    def refused(message, name, value):
        save_file({**whole, name: value}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=message):
            fuse(family, tmp_path / "other.safetensors", 3.0)

    kernel = "unet.mid_block.resnets.0.conv1.lora_A.weight"
    refused("mid_block.resnets.0.conv1 is 8x8x1x3 there and 8x8x3x3 in the model", kernel, torch.zeros(3, 8, 1, 3))
    refused("missing or do not fit", kernel, torch.zeros(3, 8))
    refused("missing or do not fit", kernel.replace("lora_A", "lora_B"), torch.zeros(8, 3, 3, 3))
    assert torch.equal(predict(family), before) and fused_in(family) == ()
