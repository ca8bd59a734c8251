import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from random_flux import random_pipeline
from safetensors.torch import load_file, save_file

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.flux import Flux
from flowgrain.families.registry import load_family, load_skeleton, read_capabilities
from flowgrain.families.single_file_flux import _transformer_state, load_flux_single_file

CPU = torch.device("cpu")
CLASSIC = "model.diffusion_model."


def original_transformer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Black Forest Labs' names of a diffusers transformer (flux/model.py and modules/layers.py of their code)."""
    out = {}

    def move(ours: str, theirs: str, norm: bool = False) -> None:
        for kind in ("weight",) if norm else ("weight", "bias"):
            out[f"{theirs}.{'scale' if norm else kind}"] = state[f"{ours}.{kind}"]

    def fuse(ours: list[str], theirs: str) -> None:
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = torch.cat([state[f"{name}.{kind}"] for name in ours])

    for ours, theirs in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        if f"time_text_embed.{ours}_embedder.linear_1.weight" in state:
            move(f"time_text_embed.{ours}_embedder.linear_1", f"{theirs}_in.in_layer")
            move(f"time_text_embed.{ours}_embedder.linear_2", f"{theirs}_in.out_layer")
    move("x_embedder", "img_in")
    move("context_embedder", "txt_in")
    move("proj_out", "final_layer.linear")
    for kind in ("weight", "bias"):  # theirs gives shift, then scale
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))):
        block, theirs = f"transformer_blocks.{index}", f"double_blocks.{index}"
        names = {"img": ("norm1", "to_q to_k to_v", "to_out.0", "norm_q norm_k", "ff"),
                 "txt": ("norm1_context", "add_q_proj add_k_proj add_v_proj", "to_add_out",
                         "norm_added_q norm_added_k", "ff_context")}  # fmt: skip
        for stream, (modulation, qkv, output, norms, mlp) in names.items():
            move(f"{block}.{modulation}.linear", f"{theirs}.{stream}_mod.lin")
            fuse([f"{block}.attn.{name}" for name in qkv.split()], f"{theirs}.{stream}_attn.qkv")
            move(f"{block}.attn.{output}", f"{theirs}.{stream}_attn.proj")
            for ours, name in zip(norms.split(), ("query_norm", "key_norm"), strict=True):
                move(f"{block}.attn.{ours}", f"{theirs}.{stream}_attn.norm.{name}", norm=True)
            move(f"{block}.{mlp}.net.0.proj", f"{theirs}.{stream}_mlp.0")
            move(f"{block}.{mlp}.net.2", f"{theirs}.{stream}_mlp.2")
    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("single_"))):
        block, theirs = f"single_transformer_blocks.{index}", f"single_blocks.{index}"
        move(f"{block}.norm.linear", f"{theirs}.modulation.lin")
        fuse([f"{block}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")], f"{theirs}.linear1")
        move(f"{block}.proj_out", f"{theirs}.linear2")
        move(f"{block}.attn.norm_q", f"{theirs}.norm.query_norm", norm=True)
        move(f"{block}.attn.norm_k", f"{theirs}.norm.key_norm", norm=True)
    assert sum(tensor.numel() for tensor in out.values()) == sum(tensor.numel() for tensor in state.values())
    return out


def original_autoencoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The latent-diffusion names of a diffusers autoencoder of two levels; attention is of 1x1 convolutions."""
    out = {}
    for name, tensor in state.items():
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = new.replace("to_out.0", "proj_out")
            new = re.sub(r"\.to_([qkv])\.", r".\1.", new)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        out[new] = tensor
    return out


def original_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def clones(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder in diffusers layout (``model``), its configuration alone (``config``), and single files."""
    folder = tmp_path_factory.mktemp("flux")
    pipe = random_pipeline()
    pipe.save_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    transformer = original_transformer(clones(pipe.transformer.state_dict()))
    autoencoder = original_autoencoder(clones(pipe.vae.state_dict()))
    clip = original_clip(clones(pipe.text_encoder.state_dict()))
    t5 = clones(pipe.text_encoder_2.state_dict())
    t5.pop("encoder.embed_tokens.weight", None)
    save_file(transformer, folder / "flux1-tiny.safetensors")
    save_file(autoencoder, folder / "ae.safetensors")
    save_file({**clip, "text_projection.weight": torch.eye(16)}, folder / "clip_l.safetensors")
    save_file(t5, folder / "t5xxl.safetensors")
    whole = {f"{CLASSIC}{name}": tensor for name, tensor in transformer.items()}
    whole |= {f"vae.{name}": tensor for name, tensor in autoencoder.items()}
    whole |= {f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in clip.items()}
    whole |= {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in t5.items()}
    whole["text_encoders.clip_l.logit_scale"] = torch.tensor(4.6)
    save_file(whole, folder / "whole.safetensors")
    return folder


@pytest.fixture(scope="module")
def reference(files):
    return Flux.load(str(files / "model"), torch.float32, CPU)


def prediction(family):
    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    conditioning = family.condition(ConditionInputs(["a red fox", "rice"], None, 2.5))
    return family.predict(x, torch.tensor([[0.3], [0.8]]), conditioning).prediction


def assert_equal(family, reference):
    """The same weights everywhere: the transformer's bit for bit, all others' by their fingerprint."""
    assert isinstance(family, Flux)
    ours, theirs = family.backbone.state_dict(), reference.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # weights lie otherwise in memory, for which the kernels may round otherwise
    torch.testing.assert_close(prediction(family), prediction(reference), rtol=1e-5, atol=1e-6)
    assert family.fingerprint() == reference.fingerprint()
    assert family.capabilities == reference.capabilities
    modules = (family.backbone, *family.encoders().values())
    assert not any(tensor.is_meta for module in modules for tensor in (*module.parameters(), *module.buffers()))
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_a_file_of_all_four_models_is_the_folder(files, reference):
    family = load_flux_single_file(files / "whole.safetensors", str(files / "config"), torch.float32, CPU)
    assert_equal(family, reference)


def test_four_files_are_the_folder(files, reference):
    parts = {"vae": "ae", "text_encoder": "clip_l", "text_encoder_2": "t5xxl"}
    parts = {name: files / f"{file}.safetensors" for name, file in parts.items()}
    family = load_flux_single_file(files / "flux1-tiny.safetensors", str(files / "config"), torch.float32, CPU, parts)
    assert_equal(family, reference)


@pytest.mark.parametrize("prefix", ["", CLASSIC])
def test_a_transformer_alone_takes_the_rest_from_the_folder(files, reference, tmp_path, prefix):
    state = load_file(files / "flux1-tiny.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "trained.safetensors")
    folder = shutil.copytree(files / "model", tmp_path / "folder", ignore=shutil.ignore_patterns("transformer"))
    shutil.copytree(files / "config" / "transformer", folder / "transformer")
    path = str(tmp_path / "trained.safetensors")
    assert_equal(load_family(path, None, torch.float32, CPU, config=str(folder)), reference)
    assert read_capabilities(path, str(folder)) == reference.capabilities
    skeleton = load_skeleton(path, "flux", torch.bfloat16, str(folder))
    assert next(skeleton.backbone.parameters()).is_meta


def test_single_files_in_the_folders_of_their_parts_are_found(files, reference, tmp_path):
    folder = shutil.copytree(files / "config", tmp_path / "folder")
    for part, file in (("vae", "ae"), ("text_encoder", "clip_l"), ("text_encoder_2", "t5xxl")):
        shutil.copy(files / f"{file}.safetensors", folder / part)
    path = files / "flux1-tiny.safetensors"
    assert_equal(load_flux_single_file(path, str(folder), torch.float32, CPU), reference)
    shutil.copy(files / "ae.safetensors", folder / "vae" / "other.safetensors")
    with pytest.raises(ModelError, match=r"vae: holds ae.safetensors, other.safetensors; leave one"):
        load_flux_single_file(path, str(folder), torch.float32, CPU)


def test_a_t5_file_may_hold_its_shared_embedding_twice(files, reference, tmp_path):
    t5 = load_file(files / "t5xxl.safetensors")
    assert "encoder.embed_tokens.weight" not in t5
    save_file({**t5, "encoder.embed_tokens.weight": t5["shared.weight"].clone()}, tmp_path / "t5xxl.safetensors")
    parts = {"text_encoder_2": tmp_path / "t5xxl.safetensors"}
    family = load_flux_single_file(files / "whole.safetensors", str(files / "config"), torch.float32, CPU, parts)
    assert_equal(family, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_take_the_dtype_asked_for_as_a_folders_do(files, dtype):
    family = load_flux_single_file(files / "whole.safetensors", str(files / "config"), dtype, CPU)
    folder = Flux.load(str(files / "model"), dtype, CPU)
    assert family.fingerprint() == folder.fingerprint()
    for name, tensor in folder.backbone.state_dict().items():
        assert torch.equal(family.backbone.state_dict()[name], tensor), name


@pytest.mark.parametrize("scale", [None, ".scale_weight", ".weight_scale"])
def test_eight_bit_floats_are_widened(files, reference, tmp_path, scale):
    state, expected = {}, {}
    for name, tensor in load_file(files / "whole.safetensors").items():
        narrow = tensor.ndim == 2 and "blocks" in name
        factor = 0.37 if narrow and scale is not None else 1.0
        state[name] = (tensor / factor).to(torch.float8_e4m3fn) if narrow else tensor
        expected[name] = state[name].float() * torch.tensor(factor) if narrow else tensor
        if narrow and scale is not None:
            state[name.removesuffix(".weight") + scale] = torch.tensor(factor)
    if scale is not None:
        state |= {f"{CLASSIC}scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    save_file(state, tmp_path / "fp8.safetensors")
    save_file(expected, tmp_path / "wide.safetensors")
    config = str(files / "config")
    narrow, wide = (
        load_flux_single_file(tmp_path / f"{name}.safetensors", config, torch.float32, CPU) for name in ("fp8", "wide")
    )
    assert_equal(narrow, wide)
    assert not torch.equal(prediction(narrow), prediction(reference))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"single_blocks.0.linear2.scale_weight": torch.ones(32)}, "single_blocks.0.linear2.weight is quantised"),
        ({"single_blocks.0.linear2.weight": torch.zeros(32, 160, dtype=torch.uint8)}, "is quantised .torch.uint8"),
        ({"img_in.weight": torch.zeros(32, 24)}, r"transformer.x_embedder.weight is \(32, 24\) there"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(48, 32)}, r"attn.to_q.weight is \(16, 32\) there"),
        ({"double_blocks.1.img_mod.lin.bias": torch.zeros(192)}, "1 weights of transformer have no place: double"),
        ({"distilled_guidance_layer.norms.0.scale": torch.zeros(2)}, "1 weights of transformer have no place: dist"),
        ({"guidance_in.in_layer.bias": None}, "1 weights of transformer are missing: time_text_embed.guidance"),
        ({"single_blocks.1.norm.key_norm.scale": None}, "1 weights of transformer are missing: single_transformer"),
    ],
)
def test_files_that_do_not_fit_are_one_clear_line(files, tmp_path, change, message):
    state = load_file(files / "flux1-tiny.safetensors")
    if "scale_weight" in next(iter(change)):
        state["single_blocks.0.linear2.weight"] = state["single_blocks.0.linear2.weight"].to(torch.float8_e4m3fn)
    state = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match=rf"^[^\n]*{message}[^\n]*$"):
        load_flux_single_file(tmp_path / "broken.safetensors", str(files / "model"), torch.float32, CPU)


@pytest.mark.parametrize(
    ("file", "part", "gone"),
    [("ae", "vae", "decoder.mid.attn_1.q.bias"), ("clip_l", "text_encoder", "text_model.final_layer_norm.bias"),
     ("t5xxl", "text_encoder_2", "encoder.final_layer_norm.weight")],
)  # fmt: skip
def test_incomplete_and_foreign_parts_are_one_clear_line(files, tmp_path, file, part, gone):
    whole = files / "flux1-tiny.safetensors"
    state = load_file(files / f"{file}.safetensors")
    kept = {name: tensor for name, tensor in state.items() if name != gone}
    assert len(kept) == len(state) - 1
    for name, content, message in (
        ("missing", kept, f"1 weights of {part} are missing"),
        ("more", {**state, "encoder.more.weight": torch.zeros(2)}, f"1 weights of {part} have no place"),
        ("foreign", {"something": torch.zeros(2)}, f"holds no .*{part}"),
    ):
        save_file(content, tmp_path / f"{name}.safetensors")
        parts = {part: tmp_path / f"{name}.safetensors"}
        folder = shutil.copytree(files / "model", tmp_path / f"{name}-folder")
        for weights in (folder / part).glob("*.safetensors"):
            weights.unlink()
        with pytest.raises(ModelError, match=rf"^[^\n]*{message}[^\n]*$"):
            load_flux_single_file(whole, str(folder), torch.float32, CPU, parts)


def test_what_a_file_lacks_is_named_with_its_place(files):
    with pytest.raises(ModelError, match=r"holds no vae, text_encoder, text_encoder_2, .*config/vae/ae.safetensors"):
        load_flux_single_file(files / "flux1-tiny.safetensors", str(files / "config"), torch.float32, CPU)


def test_configurations_are_checked(files, tmp_path):
    path = str(files / "whole.safetensors")
    with pytest.raises(ModelError, match=r"a FLUX file needs model.config"):
        load_family(path, None, torch.float32, CPU)
    with pytest.raises(ModelError, match=r"^model.config nobody/nothing: neither a folder nor a hub model"):
        load_family(path, None, torch.float32, CPU, config="nobody/nothing")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ModelError, match="describes a StableDiffusionXLPipeline, the single file is FLUX"):
        load_family(path, None, torch.float32, CPU, config=str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_index.json cannot be read"):
        load_family(path, None, torch.float32, CPU, config=str(tmp_path))


def test_schnells_configuration_does_not_fit_a_file_of_dev(files, tmp_path):
    random_pipeline(guidance=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"4 weights of transformer have no place: guidance_in.in_layer.bias"):
        load_flux_single_file(files / "whole.safetensors", str(tmp_path), torch.float32, CPU)


class Bomb:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_are_never_executed_and_truncated_files_are_named(files, tmp_path):
    trace = tmp_path / "executed"
    (tmp_path / "flux.ckpt").write_bytes(pickle.dumps(Bomb(trace)))
    (tmp_path / "flux.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    (tmp_path / "cut.safetensors").write_bytes((files / "whole.safetensors").read_bytes()[:-100])
    for name, message in (("flux.ckpt", "pickled"), ("flux.safetensors", "pickled"), ("cut.safetensors", "truncated")):
        with pytest.raises(ModelError, match=message):
            load_family(str(tmp_path / name), None, torch.float32, CPU, config=str(files / "model"))
        parts = {"vae": tmp_path / name}
        with pytest.raises(ModelError, match=message):
            load_flux_single_file(files / "whole.safetensors", str(files / "model"), torch.float32, CPU, parts)
    assert not trace.exists()


def test_the_mapping_of_names_is_diffusers_own_at_full_size():
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True, num_layers=2, num_single_layers=2)
    state = model.state_dict()
    original = original_transformer(state)
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    ours = _transformer_state(original, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert ours.keys() == theirs.keys() == state.keys()
    assert all(tensor.shape == theirs[name].shape for name, tensor in ours.items())
