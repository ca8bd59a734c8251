import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from original_layout import original_sd15, original_sd21, original_sdxl
from random_unet import random_sd15_pipeline, random_sd21_pipeline, random_sdxl_pipeline
from safetensors.torch import load_file, save_file

from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family, load_skeleton, read_capabilities
from flowgrain.families.sdxl import StableDiffusionXL
from flowgrain.families.single_file import read_header
from flowgrain.families.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
MODELS = {
    "sdxl": (random_sdxl_pipeline, original_sdxl),
    "sd15": (random_sd15_pipeline, original_sd15),
    "sd21": (random_sd21_pipeline, original_sd21),
}
U = "model.diffusion_model."


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each model as a diffusers folder and as a single file: name -> (folder, file)."""
    made = {}
    for name, (random_pipeline, original) in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        pipeline = random_pipeline()
        pipeline.save_pretrained(folder / "folder")
        state = {key: tensor.clone().contiguous() for key, tensor in original(pipeline).items()}
        # what original checkpoints hold besides: noise levels, averages, training losses of the autoencoder
        others = {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.tensor(0.99)}
        save_file({**state, **others, "first_stage_model.loss.logvar": torch.tensor(0.0)}, folder / "model.safetensors")
        made[name] = (folder / "folder", folder / "model.safetensors")
    return made


def changed(file: Path, target: Path, edit) -> str:
    """A copy of a file with its tensors edited."""
    state = load_file(file)
    edit(state)
    save_file(state, target)
    return str(target)


def outline(target: Path, *names: str, **shapes) -> str:
    """A file with the names that tell models apart, and next to nothing in it."""
    tensors = {name: torch.zeros(1) for name in names}
    first = torch.zeros(shapes.get("first", (1, 4, 1, 1)))
    save_file({**tensors, f"{U}input_blocks.0.0.weight": first}, target)
    return str(target)


SDXL_NAMES = (
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
    "conditioner.embedders.1.model.ln_final.bias", "first_stage_model.quant_conv.bias",
)  # fmt: skip
SD15_NAMES = ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "first_stage_model.quant_conv.bias")
SD21_NAMES = ("cond_stage_model.model.transformer.resblocks.0.ln_1.bias", "first_stage_model.quant_conv.bias")


@pytest.mark.parametrize("name", MODELS)
def test_a_file_holds_the_weights_of_the_folder_and_predicts_the_same(saved, name):
    folder, file = saved[name]
    families = [
        load_family(str(folder), None, torch.float32, CPU),
        load_family(str(file), None, torch.float32, CPU, config=str(folder)),
    ]
    assert type(families[0]) is type(families[1])
    x = torch.randn(1, 4, 8, 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(1, 3, 16, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    results = []
    for family in families:
        conditioning = family.condition(ConditionInputs(["a red fox on a table"], None, 1.0))
        prediction = family.predict(x, torch.tensor([[0.7]]), conditioning).prediction
        results.append([prediction, family.decode(x), family.encode_pixels(pixels).mean])
    for one, other in zip(*results, strict=True):  # to rounding: torch's kernels look at where weights lie in memory
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for module, twin in zip(*([family.backbone, *family.encoders().values()] for family in families), strict=True):
        state, others = module.state_dict(), twin.state_dict()
        assert state.keys() == others.keys()
        assert all(torch.equal(state[key], others[key]) for key in state)
    assert families[0].fingerprint() == families[1].fingerprint()
    assert families[0].default_path().prediction == families[1].default_path().prediction


def test_weights_are_read_in_the_dtype_asked_for(saved):
    folder, file = saved["sdxl"]
    family = load_family(str(file), "sdxl", torch.bfloat16, CPU, config=str(folder))
    modules = [*family.components().values(), *family.encoders().values()]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_a_file_without_weights_read_gives_capabilities_and_a_skeleton(saved):
    folder, file = saved["sdxl"]
    assert read_capabilities(str(file), str(folder)) == read_capabilities(str(folder))
    skeleton = load_skeleton(str(file), None, torch.bfloat16, str(folder))
    assert {parameter.device.type for parameter in skeleton.backbone.parameters()} == {"meta"}
    assert skeleton.components().keys() == {"unet", "text_encoder", "text_encoder_2"}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_packages_configuration_of_sdxl_is_that_of_the_published_model(tmp_path):
    file = outline(tmp_path / "x.safetensors", *SDXL_NAMES)
    family = load_skeleton(file, None, torch.bfloat16)
    assert isinstance(family, StableDiffusionXL)
    parts = {name: count(module) for name, module in {**family.components(), **family.encoders()}.items()}
    assert parts == {
        "unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863,
    }  # fmt: skip
    assert len(original_sdxl(family._pipeline)) == 2515  # tensors of sd_xl_base_1.0.safetensors
    found = read_capabilities(file)
    assert (found.native_size, found.pixel_multiple, found.latent_scale) == (1024, 32, 8)
    first, second = family._pipeline.tokenizer, family._pipeline.tokenizer_2
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("a photo of a cat", padding="max_length").input_ids == ids + [49407] * 70
    assert second("a photo of a cat", padding="max_length").input_ids == ids + [0] * 70


def test_the_packages_configuration_of_sd15_is_that_of_the_published_model(tmp_path):
    family = load_skeleton(outline(tmp_path / "x.safetensors", *SD15_NAMES), None, torch.bfloat16)
    assert isinstance(family, StableDiffusion)
    parts = {name: count(module) for name, module in {**family.components(), **family.encoders()}.items()}
    assert parts == {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
    assert len(original_sd15(family._pipeline)) == 1131  # tensors of v1-5-pruned-emaonly.safetensors
    assert (family.capabilities.native_size, family.default_path().prediction) == (512, "epsilon")


def hollow(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A file of these names and shapes whose zeros take no place on disk."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.mark.parametrize("name", ["sd15", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd21", "sdxl"))])
def test_a_file_of_the_published_size_loads_without_any_folder(tmp_path, name):
    names = {"sdxl": SDXL_NAMES, "sd15": SD15_NAMES, "sd21": SD21_NAMES}[name]
    skeleton = load_skeleton(outline(tmp_path / "outline.safetensors", *names), None, torch.bfloat16)
    hollow(tmp_path / "model.safetensors", MODELS[name][1](skeleton._pipeline))
    family = load_family(str(tmp_path / "model.safetensors"), None, torch.bfloat16, CPU)
    assert type(family) is type(skeleton)
    for ours, theirs in zip(family.components().values(), skeleton.components().values(), strict=True):
        assert {key: value.shape for key, value in ours.state_dict().items()} == {
            key: value.shape for key, value in theirs.state_dict().items()
        }
    assert not family.backbone.conv_in.weight.any()


@pytest.mark.parametrize(("spread", "prediction", "side"), [(0.2, "v_prediction", 768), (0.05, "epsilon", 512)])
def test_a_stable_diffusion_2_file_is_read_for_what_it_predicts(tmp_path, spread, prediction, side):
    file = outline(tmp_path / "x.safetensors", *SD21_NAMES)
    bias = spread * torch.tensor([-1.0, 1.0])
    telling = {f"{U}output_blocks.11.1.transformer_blocks.0.norm1.bias": bias}
    family = load_skeleton(
        changed(Path(file), tmp_path / "y.safetensors", lambda s: s.update(telling)), None, torch.bfloat16
    )
    assert (family.default_path().prediction, family.capabilities.native_size) == (prediction, side)
    assert count(family.backbone) == 865_910_724
    assert count(family.components()["text_encoder"]) == 340_387_840


def test_a_file_that_says_it_predicts_v_to_the_end_of_the_noise_is_believed(saved, tmp_path):
    folder, file = saved["sdxl"]
    marked = changed(file, tmp_path / "v.safetensors", lambda s: s.update(v_pred=torch.ones(0), ztsnr=torch.ones(0)))
    family = load_family(marked, None, torch.float32, CPU, config=str(folder))
    path = family.default_path()
    assert path.prediction == "v_prediction"
    assert path.snr(torch.tensor([0.9999])).item() == 0
    scheduler = family.pipeline().scheduler
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999
    only = changed(file, tmp_path / "w.safetensors", lambda s: s.update(v_pred=torch.ones(0)))
    path = load_family(only, None, torch.float32, CPU, config=str(folder)).default_path()
    assert path.prediction == "v_prediction"
    assert path.snr(torch.tensor([0.9999])).item() > 0.004


FOREIGN = {
    "lora": ({"lora_unet_mid_block.lora_down.weight": (4, 4)}, "is an adapter .*adapter.init_from.path"),
    "peft": ({"unet.mid_block.lora_A.weight": (4, 4)}, "is an adapter"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": (4, 4)}, "is a ControlNet"),
    "embedding": ({"emb_params": (2, 4)}, "is a text embedding"),
    "sd3": ({f"{U}joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "is a Stable Diffusion 3 model"),
    "unet": ({"conv_in.weight": (4, 4), "down_blocks.0.resnets.0.conv1.bias": (4,)}, "U-Net alone in diffusers layout"),
    "vae": ({"decoder.conv_in.weight": (4, 4)}, "is an autoencoder alone"),
    "clip": ({"text_model.final_layer_norm.bias": (4,)}, "is a text encoder alone"),
    "other": ({"blocks.0.attn.weight": (4, 4)}, "no Stable Diffusion 1, 2 or XL"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_model_says_what_it_is(tmp_path, kind):
    shapes, message = FOREIGN[kind]
    file = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
    with pytest.raises(ModelError, match=rf"^[^\n]*{message}[^\n]*$"):
        load_family(str(file), None, torch.float32, CPU)


REFINER = ("conditioner.embedders.0.model.ln_final.bias", f"{U}label_emb.0.0.bias", "first_stage_model.quant_conv.bias")


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (SDXL_NAMES, (1, 9, 1, 1), "is an inpainting model .its U-Net takes 9 channels"),
        (SD21_NAMES, (1, 5, 1, 1), "is a depth model"),
        (REFINER, (1, 4, 1, 1), "is an SDXL refiner"),
        ((*SDXL_NAMES, "edm_mean"), (1, 4, 1, 1), "noise levels of EDM"),
        (SD15_NAMES[1:], (1, 4, 1, 1), "holds no text encoder"),
        (SDXL_NAMES[:2], (1, 4, 1, 1), "holds no autoencoder"),
    ],
)
def test_other_checkpoints_of_the_layout_are_refused(tmp_path, names, shape, message):
    with pytest.raises(ModelError, match=message):
        read_capabilities(outline(tmp_path / "x.safetensors", *names, first=shape))


@pytest.mark.parametrize(
    "gone",
    [
        f"{U}middle_block.0.in_layers.2.weight", "first_stage_model.decoder.conv_out.bias",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
    ],
)  # fmt: skip
def test_a_missing_weight_is_an_error_and_never_random(saved, tmp_path, gone):
    folder, file = saved["sdxl"]
    broken = changed(file, tmp_path / "broken.safetensors", lambda state: state.pop(gone))
    with pytest.raises(ModelError, match=r"^[^\n]*broken.safetensors: does not fit the configuration [^\n]*$"):
        load_family(broken, None, torch.float32, CPU, config=str(folder))


def test_weights_that_the_configuration_does_not_know_are_an_error(saved, tmp_path):
    folder, file = saved["sdxl"]
    extra = {f"{U}output_blocks.9.0.out_layers.3.bias": torch.zeros(4)}
    broken = changed(file, tmp_path / "broken.safetensors", lambda state: state.update(extra))
    with pytest.raises(ModelError, match=r"it holds (\d+) weights of unet, the configuration asks for \d+"):
        load_family(broken, None, torch.float32, CPU, config=str(folder))


def test_another_width_is_an_error(saved, tmp_path):
    folder, file = saved["sd15"]
    name = f"{U}input_blocks.0.0.weight"
    broken = changed(file, tmp_path / "b.safetensors", lambda state: state.update({name: torch.zeros(8, 4, 3, 3)}))
    with pytest.raises(ModelError, match="does not fit the configuration"):
        load_family(broken, None, torch.float32, CPU, config=str(folder))


def test_the_packages_configuration_does_not_fit_a_smaller_model(saved):
    with pytest.raises(ModelError, match=r"does not fit the configuration sd15 .* weights of unet"):
        load_family(str(saved["sd15"][1]), None, torch.float32, CPU)


def test_truncated_files_are_one_clear_line(saved, tmp_path):
    _, file = saved["sdxl"]
    for size in (0, 5, 1000, file.stat().st_size - 1):
        (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:size])
        with pytest.raises(ModelError, match=r"^[^\n]*cut.safetensors: is truncated or no safetensors file[^\n]*$"):
            load_family(str(tmp_path / "cut.safetensors"), None, torch.float32, CPU)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("archive", [True, False])
def test_pickles_are_refused_and_never_executed(tmp_path, name, archive):
    trace, file = tmp_path / "trace", tmp_path / name
    if archive:
        torch.save({"state_dict": Payload(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(trace)))
    for read in (lambda: load_family(str(file), None, torch.float32, CPU), lambda: read_capabilities(str(file))):
        with pytest.raises(ModelError, match=r"a pickled checkpoint can run any code .* save it as safetensors"):
            read()
    assert not trace.exists()


@pytest.mark.parametrize("length", [0x280, 0x480, 0x10280])
def test_a_header_whose_length_looks_like_a_pickles_beginning_is_read(tmp_path, length):
    text = json.dumps({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode().ljust(length)
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(24))
    assert read_header(tmp_path / "x.safetensors").shapes == {"weight": (2, 3)}


def test_files_that_are_not_there_and_quantised_ones(tmp_path):
    with pytest.raises(ModelError, match=r"ponny.safetensors: no such file"):
        load_family(str(tmp_path / "ponny.safetensors"), None, torch.float32, CPU)
    (tmp_path / "q.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="GGUF files hold quantised weights"):
        load_family(str(tmp_path / "q.gguf"), None, torch.float32, CPU)


def test_configurations_must_be_read_and_fit(saved, tmp_path):
    folder, file = saved["sdxl"]
    with pytest.raises(ConfigError, match=r"model.config describes single-file checkpoints"):
        load_family(str(folder), None, torch.float32, CPU, config=str(folder))
    with pytest.raises(ModelError, match="describes a StableDiffusionPipeline, the single file is of a StableDiff"):
        load_family(str(file), None, torch.float32, CPU, config=str(saved["sd15"][0]))
    with pytest.raises(ModelError, match=r"^model.config nobody/nothing: neither a folder nor a hub model"):
        load_family(str(file), None, torch.float32, CPU, config="nobody/nothing")
    with pytest.raises(ModelError, match=r"model_index.json cannot be read"):
        load_family(str(file), None, torch.float32, CPU, config=str(tmp_path))
    with pytest.raises(ModelError, match="is a sdxl model, the configuration says 'flux'"):
        load_family(str(file), "flux", torch.float32, CPU, config=str(folder))


def test_weights_of_the_configuration_folder_are_not_read(saved, tmp_path):
    folder, file = saved["sdxl"]
    shutil.copytree(folder, tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.write_bytes(b"")
    family = load_family(str(file), None, torch.float32, CPU, config=str(tmp_path / "config"))
    assert torch.equal(family.backbone.conv_in.bias, load_file(file)[f"{U}input_blocks.0.0.bias"])
