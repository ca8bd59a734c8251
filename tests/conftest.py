"""Everything runs offline, on small models, deterministically."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# a first call under the type checker can be slow: deadlines would make the suite flaky, not better
settings.register_profile("flowgrain", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("flowgrain")


@pytest.fixture(scope="session")
def small_flux(tmp_path_factory):
    """A FluxPipeline folder: the bundle's autoencoder and text encoders around a tiny random transformer."""
    import torch
    from diffusers import FluxTransformer2DModel

    from flowgrain.families.registry import resolve_model

    folder = tmp_path_factory.mktemp("model") / "small-flux"
    bundle = Path(resolve_model("tiny-flux"))
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("transformer"))
    config = FluxTransformer2DModel.load_config(bundle / "transformer")
    small = {**config, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        FluxTransformer2DModel.from_config(small).save_pretrained(folder / "transformer")
    return folder
