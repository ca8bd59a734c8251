"""Previews: drawn when asked, the same after a resume, and without any influence on the run."""

import pytest
from whole_runs import SMALL_PREVIEWS, StopAfter, assert_same_run, files, final_state, log_without_times

from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.train.loop import Observer, train
from flowgrain.train.setup import prepare


def test_previews_are_drawn_on_time_and_change_nothing(recipe):
    sections = {"ema": {"decay": 0.5}, "adapter": {"kind": "lora", "rank": 4, "alpha": 2, "dropout": 0.1}}
    plain = recipe("plain", **sections)
    whole = recipe("whole", previews={**SMALL_PREVIEWS, "every": 3, "seeds": [0, 1]}, **sections)
    parts = recipe("parts", previews={**SMALL_PREVIEWS, "every": 3, "seeds": [0, 1]}, **sections)
    train(plain, False, Observer())
    train(whole, False, Observer())
    drawn = files(whole.output, "previews/*/*.png")
    assert sorted(drawn) == [
        f"previews/update-{update:06d}/00-seed{seed}.png" for update in (0, 3, 4, 6) for seed in (0, 1)
    ]
    assert len(set(drawn.values())) == len(drawn), "every preview is of other weights or another seed"
    a, b = final_state(plain.output), final_state(whole.output)
    assert all((a[name] == b[name]).all() for name in a)
    assert log_without_times(plain.output) == log_without_times(whole.output)
    train(parts, False, StopAfter(3))
    train(parts, True, Observer())
    assert_same_run(whole.output, parts.output)


def test_a_size_that_the_model_cannot_draw_is_an_error_before_training(recipe):
    config = recipe("size", previews={"prompts": ["x"], "sampler": {"height": 33}})
    with pytest.raises(ConfigError, match="not a multiple of"):
        prepare(config, Observer().stage)


def test_a_full_disk_names_the_previews_and_leaves_none(recipe, monkeypatch):
    def no_space(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("flowgrain.train.previews.atomic_write_bytes", no_space)
    config = recipe("full", previews=SMALL_PREVIEWS)
    with pytest.raises(CheckpointError, match=r"update-000000: 00-seed0\.png: cannot be written"):
        train(config, False, Observer())
    assert list((config.output / "previews").iterdir()) == []
