import json

import pytest
import torch

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.families.registry import load_family

RECIPE = "name: fox\nmodel:\n  path: tiny-flux\n  family: null\n  dtype: float32\n"


@pytest.fixture(scope="session")
def flux():
    family = load_family("tiny-flux", None, torch.float32, torch.device("cpu"))
    family.max_sequence_length = 16
    return family


def write_checkpoint(run, update, fraction, complete=True):
    folder = run / "checkpoints" / f"update-{update:06d}"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (folder / "state.json").write_text(json.dumps({"update": update, "budget_fraction": fraction}))
    if complete:
        (folder / "COMPLETE").touch()
    return folder


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at 1.0 and 1.5, one for resuming between them and an unfinished one."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    for update, fraction, complete in ((100, 1.0, True), (120, None, True), (150, 1.5, True), (200, 2.0, False)):
        write_checkpoint(folder, update, fraction, complete)
    return folder


@pytest.fixture
def adapter_folder(flux, tmp_path):
    """A saved adapter that changes pictures."""
    adapter = inject(flux, AdapterConfig(kind="dora", rank=2, targets=["attn.to_q", "ff.net.2"]), seed=0)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter.save(tmp_path / "adapter", {})
    adapter.remove()
    return tmp_path / "adapter"
