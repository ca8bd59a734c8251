import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "families"))  # the random models of the families' tests

from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family


@pytest.fixture(scope="session")
def loaded_flux():
    family = load_family("tiny-flux", None, torch.float32, torch.device("cpu"))
    family.max_sequence_length = 16
    return family


@pytest.fixture
def flux(loaded_flux):
    """The embedded model; adapters that a test leaves behind are taken out."""
    transformer = loaded_flux.components()["transformer"]
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    yield loaded_flux
    transformer.unload_lora()
    transformer.load_state_dict(before)


@pytest.fixture(scope="session")
def batch(loaded_flux):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 16, 8, 8, generator=generator)
    conditioning = loaded_flux.condition(ConditionInputs(["a red fox", "an apple"], None, 1.0))
    return x, torch.tensor([[0.8], [0.3]]), conditioning
