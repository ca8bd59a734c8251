"""The random models of the families' tests, and saved adapters of theirs."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "families"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """(model, config) -> file of a trained adapter, what it predicts, and what the model without it predicts."""
    from random_adapters import HEADER, options, predict, random_family, trained

    made = {}

    def make(model, config=None):
        config = options(model) if config is None else config
        key = (model, config.model_dump_json())
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{model}-adapter")
            family = random_family(model)
            base = predict(family)
            trained(family, config).save(folder, HEADER)
            live = predict(family)
            assert (live - base).abs().max() > 0.01 * base.abs().max()
            made[key] = (folder / "pytorch_lora_weights.safetensors", live, base)
        return made[key]

    return make
