"""Ranks and alphas of single layers, and exclusions, through files and diffusers."""

import json

import pytest
import torch
from safetensors import safe_open

from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.errors import CheckpointError, ConfigError

CONFIG = AdapterConfig(
    rank=4,
    alpha=3.0,
    targets=["attn.to_q", "attn.to_k", "ff.net.2"],
    exclude=["transformer_blocks.0.attn.to_k"],
    ranks={"single_transformer_blocks.*.attn.to_q": 8, "ff.net.2": 2},
    alphas={"single_transformer_blocks.1.attn.to_q": 20.0, "transformer_blocks.1.ff.net.2": 1.0},
)


def disturb(adapter):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def predict(family, batch):
    with torch.no_grad():
        return family.predict(*batch).prediction


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_diffusers_honours_each_layers_rank_and_alpha(flux, batch, tmp_path, kind):
    base = predict(flux, batch)
    adapter = inject(flux, CONFIG.model_copy(update={"kind": kind}), seed=0)
    scalings = adapter.scalings()
    assert scalings["single_transformer_blocks.1.attn.to_q"] == (8, 20.0)
    assert scalings["single_transformer_blocks.2.attn.to_q"] == (8, 3.0)
    assert scalings["transformer_blocks.1.ff.net.2"] == (2, 1.0)
    assert scalings["transformer_blocks.1.attn.to_k"] == (4, 3.0)
    assert "transformer_blocks.0.attn.to_k" not in scalings
    disturb(adapter)
    live = predict(flux, batch)
    adapter.save(tmp_path, {})
    adapter.remove()
    pipe = flux.pipeline(tmp_path)
    loaded = predict(flux, batch)
    configured = {
        name: (module.r["default_0"], module.lora_alpha["default_0"])
        for name, module in flux.components()["transformer"].named_modules()
        if "default_0" in getattr(module, "r", {})
    }
    pipe.unload_lora_weights()
    assert configured == scalings
    assert (live - base).abs().max() > 0.05
    torch.testing.assert_close(loaded, live, rtol=1e-4, atol=1e-5)
    with safe_open(tmp_path / WEIGHTS_NAME, framework="pt") as file:
        described = json.loads(file.metadata()["lora_adapter_metadata"])
    assert len(described["transformer.rank_pattern"]) == 7 and len(described["transformer.alpha_pattern"]) == 2


def test_save_and_load_carry_the_patterns(flux, tmp_path):
    adapter = inject(flux, CONFIG, seed=0)
    disturb(adapter)
    saved = adapter.state_dict()
    adapter.save(tmp_path, {})
    adapter.remove()
    again = inject(flux, CONFIG, seed=5)
    again.load(tmp_path)
    assert all(torch.equal(saved[name], tensor) for name, tensor in again.state_dict().items())
    again.remove()
    with pytest.raises(CheckpointError, match=r"alpha_pattern is .* there and \{\} in this run"):
        inject(flux, CONFIG.model_copy(update={"alphas": {}}), seed=0).load(tmp_path)


def test_a_target_whose_name_is_a_suffix_of_an_excluded_one_stays_alone(flux, batch, tmp_path):
    config = AdapterConfig(rank=4, targets=["proj_out"], exclude=["single_transformer_blocks.*.proj_out"])
    adapter = inject(flux, config, seed=0)
    assert list(adapter.scalings()) == ["proj_out"]
    disturb(adapter)
    live = predict(flux, batch)
    adapter.save(tmp_path, {})
    adapter.remove()
    flux.pipeline(tmp_path)
    torch.testing.assert_close(predict(flux, batch), live, rtol=1e-4, atol=1e-5)


def test_ranks_that_do_not_fit_are_refused(flux):
    with pytest.raises(ConfigError, match=r"adapter\.ranks: 193 is more than 192, the smallest side of transformer_bl"):
        inject(flux, CONFIG.model_copy(update={"ranks": {"attn.to_q": 193}}), seed=0)
    with pytest.raises(ConfigError, match=r"adapter\.ranks: 'attn\.to_v' names none of the adapter's layers"):
        inject(flux, CONFIG.model_copy(update={"ranks": {"attn.to_v": 2}}), seed=0)
