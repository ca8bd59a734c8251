import hashlib
import shutil

import pytest
from PIL import Image

from flowgrain.sample import session
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.manifest import SAMPLES_NAME, read_manifest
from flowgrain.sample.run_folder import ModelChoice, choose_checkpoint
from flowgrain.sample.session import SampleOutcome, SamplePlan, draw

CONFIG = SampleConfig(steps=1, height=32, width=32, batch_size=1)


@pytest.fixture
def plan(run, adapter_folder):
    checkpoint = choose_checkpoint(run, 1.0)
    shutil.copytree(adapter_folder, checkpoint.adapter, dirs_exist_ok=True)
    model = ModelChoice("tiny-flux", None, "float32")
    return SamplePlan("fox", model, checkpoint, ["a fox", "an apple"], [0, 1], CONFIG, run / "samples" / "s")


def quiet(done, total):
    """No progress."""


def test_pictures_and_lines_are_written(flux, plan):
    assert draw(flux, plan, quiet) == SampleOutcome(drawn=4, kept=0)
    records = read_manifest(plan.out)
    weights = plan.checkpoint.adapter / "pytorch_lora_weights.safetensors"
    for record in records:
        assert Image.open(plan.out / record.file).size == (32, 32)
        assert record.adapter_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert (record.run, record.checkpoint, record.budget_fraction) == ("fox", "update-000100", 1.0)
        assert record.model_fingerprint.startswith(flux.fingerprint())
    assert sorted(path.name for path in plan.out.iterdir()) == sorted([SAMPLES_NAME, *(r.file for r in records)])


def test_an_interrupted_session_goes_on_and_redraws_nothing(flux, plan):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(flux, plan, stop)
    assert len(read_manifest(plan.out)) == 2
    first = plan.out / read_manifest(plan.out)[0].file
    time = first.stat().st_mtime_ns
    assert draw(flux, plan, quiet) == SampleOutcome(drawn=2, kept=2)
    assert first.stat().st_mtime_ns == time
    assert draw(flux, plan, quiet) == SampleOutcome(drawn=0, kept=4)
    assert len(read_manifest(plan.out)) == 4


def test_a_crash_while_a_picture_is_written_leaves_a_true_manifest(flux, plan, monkeypatch):
    def fail(path, data):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session, "atomic_write_bytes", fail)
        with pytest.raises(OSError, match="no space"):
            draw(flux, plan, quiet)
    assert read_manifest(plan.out) == []
    assert draw(flux, plan, quiet).drawn == 4
