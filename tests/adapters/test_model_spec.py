import hashlib
import json

import torch
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
