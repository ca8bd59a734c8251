import hashlib
import json
from dataclasses import replace

import torch
from diffusers import DDIMScheduler
from random_unet import NOISE, random_sd15, random_sd21, random_sdxl
from safetensors import safe_open

from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.model_spec import ModelDescription, base_architecture, model_spec

SMALL = AdapterConfig(rank=4, alpha=3.0, targets=["ff.net.2"])
FOX = ModelDescription(
    title="fox",
    architecture="flux-1-dev",
    base_model="tiny-flux",
    adapter=SMALL,
    date="2026-11-21T12:00:00Z",
    steps=150,
    images=12,
    learning_rate=1e-4,
    batch_size=8,
    seed=0,
    resolution=(1280, 960),
    trigger_phrase="ohwx fox",
    tag_frequency={"fox": {"füchsin": 2, "red": 1}},
)


def test_required_keys_are_there_and_all_values_are_strings():
    entries = model_spec(FOX)
    assert all(isinstance(value, str) for value in entries.values())
    assert entries["modelspec.sai_model_spec"] == "1.0.0"
    assert entries["modelspec.architecture"] == "flux-1-dev/lora"
    assert entries["modelspec.implementation"] == "diffusers"
    assert (entries["modelspec.title"], entries["modelspec.date"]) == ("fox", "2026-11-21T12:00:00Z")
    assert entries["modelspec.resolution"] == "1280x960"
    assert entries["modelspec.trigger_phrase"] == "ohwx fox"
    assert not {"modelspec.author", "modelspec.license", "modelspec.description"} & entries.keys()
    numbers = {key: entries[f"ss_{key}"] for key in ("network_dim", "network_alpha", "learning_rate", "steps")}
    assert numbers == {"network_dim": "4", "network_alpha": "3.0", "learning_rate": "0.0001", "steps": "150"}
    assert (entries["ss_base_model_version"], entries["ss_num_train_images"]) == ("flux1", "12")
    assert json.loads(entries["ss_tag_frequency"]) == {"fox": {"füchsin": 2, "red": 1}}
    assert model_spec(FOX) == entries


def test_the_saved_file_carries_the_hash_of_its_tensors_and_loads(flux, batch, tmp_path):
    assert base_architecture(flux) == "flux-1-dev"
    adapter = inject(flux, SMALL, seed=1)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
        live = flux.predict(*batch).prediction
    adapter.save(tmp_path / "one", model_spec(FOX))
    adapter.save(tmp_path / "two", model_spec(FOX))
    data = (tmp_path / "one" / WEIGHTS_NAME).read_bytes()
    assert data == (tmp_path / "two" / WEIGHTS_NAME).read_bytes()
    with safe_open(tmp_path / "one" / WEIGHTS_NAME, framework="pt") as file:
        header = file.metadata()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(tensors).hexdigest()
    adapter.remove()
    flux.pipeline(tmp_path / "one")
    with torch.no_grad():
        torch.testing.assert_close(flux.predict(*batch).prediction, live, rtol=1e-4, atol=1e-5)


def second_generation(scheduler=None):
    """Known by the width of the text that it reads, which the small model only says it has."""
    family = random_sd21(scheduler)
    family.backbone.register_to_config(cross_attention_dim=1024)
    return family


def test_architectures_are_those_that_model_spec_and_kohya_name():
    families = (random_sdxl(), random_sd15(), second_generation())
    names = [base_architecture(family) for family in families]
    assert names == ["stable-diffusion-xl-v1-base", "stable-diffusion-v1", "stable-diffusion-v2-768-v"]
    entries = [model_spec(replace(FOX, architecture=name)) for name in names]
    assert [entry["ss_base_model_version"] for entry in entries] == ["sdxl_base_v1-0", "sd_v1", "sd_v2_v"]
    assert base_architecture(second_generation(DDIMScheduler(**NOISE))) == "stable-diffusion-v2-512"


def test_convolutions_rates_and_prediction_types_are_told():
    config = AdapterConfig(kind="lora", rank=64, alpha=32.0, conv_rank=16)
    told = replace(FOX, adapter=config, prediction_type="v_prediction", learning_rates={"text_encoder*": 3e-6})
    entries = model_spec(told)
    assert json.loads(entries["ss_network_args"]) == {"use_dora": False, "conv_dim": 16, "conv_alpha": 8.0}
    assert entries["modelspec.prediction_type"] == "v"
    assert json.loads(entries["ss_learning_rates"]) == {"text_encoder*": 3e-6}
    assert not {"modelspec.prediction_type", "ss_learning_rates"} & model_spec(FOX).keys()


def test_whole_weights_are_no_lora():
    entries = model_spec(replace(FOX, adapter=AdapterConfig(kind="full")))
    assert entries["modelspec.architecture"] == "flux-1-dev"
    assert not any(key.startswith("ss_network") for key in entries)
