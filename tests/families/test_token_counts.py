"""Captions longer than a model reads: counted, and embedded without the libraries' warnings."""

import logging
from pathlib import Path

import pytest
import torch

import flowgrain
from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family

ASSETS = Path(flowgrain.__file__).parent / "assets"
LONG = "a red fox with a very long tail " * 60


@pytest.mark.parametrize("model", ["tiny-flux", "tiny-sdxl"])
def test_long_captions_are_counted_and_embedded_quietly(model, capfd, caplog):
    family = load_family(model, None, torch.float32, torch.device("cpu"))
    cut = family.cut_captions(["a fox", LONG])
    assert set(cut.lengths) == {LONG} and cut.lengths[LONG] > cut.limit > 0
    (length,) = family.cut_captions([LONG]).lengths.values()
    words = LONG.split()
    fitting = next(n for n in range(len(words), 0, -1) if not family.cut_captions([" ".join(words[:n])]).lengths)
    assert 0 < fitting < len(words) and length > cut.limit
    with caplog.at_level(logging.WARNING):
        embedded = family.embed_text([LONG])
        live = family.condition(ConditionInputs([LONG], None, 1.0))
        cached = family.condition(ConditionInputs(None, embedded, 1.0))
    assert all(torch.equal(live.tensors[name], cached.tensors[name]) for name in live.tensors)
    assert caplog.records == [] and "longer than" not in (text := capfd.readouterr().err) and "truncated" not in text
