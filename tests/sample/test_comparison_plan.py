import shutil
from dataclasses import replace

import pytest

from flowgrain.cli.main import main
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.protocol import ProtocolConfig
from flowgrain.sample.comparison import ComparisonRequest, draw_comparison, plan_comparison
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.session import SampleOutcome


@pytest.fixture
def request_(run, adapter_folder, tmp_path):
    """Two runs of the granularity protocol with its warnings: one prompt, two seeds, no references."""
    other = tmp_path / "other"
    for checkpoint in (run / "checkpoints").iterdir():
        shutil.copytree(adapter_folder, checkpoint / "adapter", dirs_exist_ok=True)
    shutil.copytree(run, other)
    shutil.rmtree(other / "checkpoints/update-000150")
    return ComparisonRequest(
        protocol=ProtocolConfig.model_validate("granularity"),
        runs={"ours": run, "theirs": other},
        base=False,
        dataset="fox",
        description="",
        references=None,
        prompts=["a fox"],
        seeds=[0, 1],
        config=SampleConfig(steps=1, height=32, width=32, batch_size=2),
        dtype=None,
        out=tmp_path / "eval",
    )


def test_the_closest_checkpoint_to_each_budget_is_chosen_and_said(request_):
    plan = plan_comparison(request_)
    names = [variant.name for variant in plan.config.datasets[0].variants]
    assert names == ["ours 1x", "theirs 1x", "ours 1.5x"]
    assert [samples.checkpoint.update for samples in plan.samples] == [100, 100, 150]
    assert "theirs: no checkpoint at 1.5 N1; the closest, 1 N1, is drawn" in plan.notes
    assert any(note.startswith("1 prompts") for note in plan.notes)
    assert any(note.startswith("2 seeds") for note in plan.notes)


def test_all_checkpoints_of_every_run_and_the_base(request_):
    protocol = ProtocolConfig.model_validate("checkpoints")
    plan = plan_comparison(replace(request_, protocol=protocol, base=True))
    names = [variant.name for variant in plan.config.datasets[0].variants]
    assert names == ["base", "ours 1x", "ours 1.5x", "theirs 1x"]
    assert plan.samples[0].checkpoint is None


def test_runs_that_cannot_be_compared(request_, tmp_path):
    with pytest.raises(ConfigError, match="give --run"):
        plan_comparison(replace(request_, runs={}))
    with pytest.raises(ConfigError, match="is another variant's"):
        plan_comparison(replace(request_, runs={"ours": request_.runs["ours"], "Ours": request_.runs["ours"]}))
    shutil.rmtree(tmp_path / "other/checkpoints/update-000100")
    with pytest.raises(CheckpointError, match="no checkpoint that marks a budget yet"):
        plan_comparison(request_)


def test_one_model_serves_all_variants_and_nothing_is_drawn_twice(flux, request_):
    loaded = []

    def load(model):
        loaded.append(model)
        return flux

    plan = plan_comparison(request_)
    done = {}
    draw = lambda: draw_comparison(plan, request_.out, load, lambda name, n, total: done.update({name: (n, total)}))  # noqa: E731
    assert draw() == SampleOutcome(drawn=6, kept=0)
    assert len(loaded) == 1 and done == dict.fromkeys(("ours 1x", "theirs 1x", "ours 1.5x"), (2, 2))
    assert draw() == SampleOutcome(drawn=0, kept=6)
    comparison = read_comparison([request_.out])
    assert len(comparison.items()) == 2
    assert comparison.datasets[0].variants[2].fraction == 1.5
    assert comparison.datasets[0].variants[0].run_folder.resolve() == request_.runs["ours"].resolve()
    with pytest.raises(ConfigError, match="another comparison"):
        draw_comparison(plan_comparison(replace(request_, dataset="owl")), request_.out, load, lambda *_: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "nope"], "expected one of granularity, urae, checkpoints"),
        (["--protocol", "granularity"], "needs --out"),
        (["--protocol", "granularity", "--out", "o", "--run", "x"], "expected NAME=FOLDER"),
        (["--protocol", "granularity", "--out", "o", "--run", "a=x", "--run", "a=y"], "given twice"),
        (["--protocol", "granularity", "--model", "tiny-flux"], "--model does not go with --protocol"),
        (["--base"], "--base is read with --protocol alone"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a fox\n")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--prompts", "p.txt", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_writes_nothing(run, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a fox\n")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--protocol", "granularity", "--run", f"ours={run}", "--prompts", str(tmp_path / "p.txt"),
              "--out", str(tmp_path / "eval"), "--dry-run"])  # fmt: skip
    assert stop.value.code == 0
    assert "2 variants x 1 prompts x 5 seeds = 10 pictures" in capsys.readouterr().out
    assert not (tmp_path / "eval").exists()
