"""The adapter to pyiqa, against a stand-in with pyiqa's interface (create_metric, list_models, lower_better)."""

import sys
from importlib import metadata

import numpy as np
import pytest

from flowgrain.errors import ConfigError, ModelError
from flowgrain.evaluate.external import quality
from flowgrain.evaluate.external.quality import PyIqaScore

STAND_IN = """
import torch

def list_models(metric_mode=None):
    assert metric_mode == "NR"
    return ["brisque", "maniqa", "musiq", "qualiclip"]

class Metric(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.lower_better = name == "brisque"

    def forward(self, target):
        assert target.ndim == 4 and target.shape[1] == 3 and 0 <= target.min() and target.max() <= 1
        return target.mean(dim=(1, 2, 3), keepdim=True)[0, 0]

def create_metric(name, as_loss=False, device=None):
    if name == "musiq":
        raise OSError("weights cannot be downloaded:\\n no network")
    assert isinstance(device, torch.device)
    return Metric(name).to(device)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    monkeypatch.setattr(metadata, "version", lambda package: "0.1.14")
    yield
    sys.modules.pop("pyiqa", None)


def grey(value):
    return np.full((10, 14, 3), value, dtype=np.uint8)


def test_values_direction_and_version(installed):
    score = PyIqaScore("maniqa")
    assert score([grey(51), grey(255)], ["", ""]) == pytest.approx([0.2, 1.0])
    assert score.higher_is_better and not PyIqaScore("brisque").higher_is_better
    assert score.version == "pyiqa 0.1.14, maniqa"


def test_unknown_and_unobtainable_metrics(installed):
    with pytest.raises(ConfigError, match="did you mean 'maniqa'"):
        PyIqaScore("maniqua")
    with pytest.raises(ModelError, match=r"cannot make 'musiq' \(OSError: weights cannot be downloaded: no network\)"):
        PyIqaScore("musiq")


def test_without_pyiqa_the_licence_is_told(monkeypatch):
    monkeypatch.setattr(quality, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"non-commercial use only.*pip install pyiqa"):
        PyIqaScore("maniqa")
