import json
import shutil

import pytest
import torch
from random_flux import random_pipeline
from safetensors.torch import load_file, save_file

from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.flux import Flux
from flowgrain.families.registry import load_family, resolve_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "random-flux"
    random_pipeline().save_pretrained(folder)
    return folder


def test_the_embedded_model_loads_by_name():
    family = load_family("tiny-flux", None, torch.bfloat16, CPU)
    assert isinstance(family, Flux)
    assert family.components()["transformer"].dtype == torch.bfloat16
    assert family.capabilities.native_size == 128


def test_a_folder_loads_and_predicts_as_before_saving(saved):
    from flowgrain.families.base import ConditionInputs

    family = load_family(str(saved), "flux", torch.float32, CPU)
    before = Flux(random_pipeline(), "memory")
    x, t = torch.randn(1, 4, 4, 4), torch.tensor([[0.5]])
    inputs = ConditionInputs(["a fox"], None, 1.0)
    ours, theirs = (model.predict(x, t, model.condition(inputs)).prediction for model in (family, before))
    assert torch.equal(ours, theirs)
    assert family.fingerprint() == before.fingerprint()


def test_a_name_is_resolved_only_where_it_is_embedded():
    assert resolve_model("owner/name") == "owner/name"
    assert resolve_model("tiny-flux").endswith("tiny-flux")
    assert resolve_model("./tiny-flux") == "./tiny-flux"


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'tiny-flux'"):
        load_family("tinyflux", None, torch.float32, CPU)


def test_an_unreachable_hub_model_is_one_clear_line():
    with pytest.raises(ModelError, match=r"^nobody/nothing: neither a folder nor a hub model"):
        load_family("nobody/nothing", None, torch.float32, CPU)


def test_an_unknown_family_gets_the_nearest():
    with pytest.raises(ConfigError, match="unknown model family 'fluks'; did you mean 'flux'"):
        load_family("tiny-flux", "fluks", torch.float32, CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no model_index.json here"),
        ("{", "cannot be read as JSON"),
        (json.dumps({"_class_name": "SanaPipeline"}), "'SanaPipeline' is of no supported family; supported: FluxPip"),
        ("[]", "pipeline class None"),
    ],
)
def test_folders_that_are_no_known_model(tmp_path, content, message):
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_family(str(tmp_path), None, torch.float32, CPU)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_missing_weights_are_an_error_and_never_random(saved, tmp_path, part):
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    gone = sorted(name for name in state if name.endswith("weight"))[0]
    save_file({name: tensor for name, tensor in state.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{part}: 1 weights are missing"):
        load_family(str(folder), None, torch.float32, CPU)


def test_truncated_weights_and_missing_files_are_one_clear_line(saved, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    (file,) = (folder / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a Flux model[^\n]*$"):
        load_family(str(folder), None, torch.float32, CPU)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a Flux model[^\n]*$"):
        load_family(str(folder), None, torch.float32, CPU)
