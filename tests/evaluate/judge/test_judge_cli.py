"""The command: what it says, what it refuses, and that a dry run touches nothing."""

import sys

import pytest
import typer
from fake_endpoint import FakeEndpoint, Say
from simulated_judge import by_red, judge_by
from typer.testing import CliRunner

from flowgrain.cli.judge import judge
from flowgrain.errors import ConfigError, DataError, MissingExtraError

app = typer.Typer()
app.command()(judge)


def call(*arguments):
    """(exit code, standard output, standard error); errors of flowgrain are raised as they are."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split())


def test_it_judges_and_says_what_it_found(make_comparison):
    root = make_comparison(prompts=2)
    with FakeEndpoint(judge_by(by_red)) as endpoint:
        options = ["--model", "fake", "--base-url", endpoint.url, "--set", "resamples=100"]
        code, out, err = call(root, *options, "--price-in", 1, "--price-out", 10, "--max-cost", 1)
        assert code == 0
        assert "12 questions to ask; 72 pictures to send" in err and "at most 1 in all" in err
        assert "granularity 100%" in out and "Position bias" in out
        assert "12 questions to fake: 12 answered; 12000 tokens in, 600 out, cost 0.018" in out
        code, out, err = call(root, *options)
        assert code == 0 and "nothing left to ask, 12 answered before" in err
        assert len(endpoint.calls) == 12
    text = (root / "judge" / "summary.md").read_text()
    assert "# Judged by fake" in text and "| granularity | 100% " in text


def test_options_reach_the_questions(make_comparison):
    root = make_comparison(prompts=3)
    with FakeEndpoint(judge_by(by_red)) as endpoint:
        options = ["--mode", "pairwise", "--mode", "score", "--repeats", 1, "--pairs", "all", "--limit", 1]
        code, out, _ = call(
            root, "--model", "fake", "--base-url", endpoint.url, *options, "--out", root / "mine", "--max-questions", 20
        )
        assert code == 0 and len(endpoint.calls) == 20
        assert "30 questions to fake: 20 answered, 10 open" in out
    assert (root / "mine" / "summary.json").exists() and not (root / "judge").exists()


def test_a_dry_run_forecasts_and_touches_nothing(make_comparison, monkeypatch):
    root = make_comparison(prompts=2)
    monkeypatch.setitem(sys.modules, "openai", None)  # not even needed
    before = sorted(path for path in root.rglob("*"))
    code, out, _ = call(root, "--model", "x", "--base-url", "http://localhost:1/v1", "--dry-run")
    assert code == 0 and "12 questions to ask" in out and "no cost without --price-in" in out
    assert sorted(path for path in root.rglob("*")) == before
    with pytest.raises(MissingExtraError, match=r"flowgrain\[judge\]"):
        call(root, "--model", "x", "--base-url", "http://localhost:1/v1")


def test_a_configuration_file_is_read_and_options_win(make_comparison, tmp_path):
    file = tmp_path / "judge.yaml"
    file.write_text("endpoint: {model: one, base_url: 'http://localhost:1/v1'}\nrepeats: 3\nasking: {concurrency: 2}\n")
    code, out, _ = call("--config", file, "--repeats", 5, "--set", "endpoint.timeout=7", "--print-config")
    assert code == 0
    assert "endpoint.model = 'one'" in out and "repeats = 5 # command line" in out
    assert "endpoint.timeout = 7.0 # command line" in out and "asking.concurrency = 2" in out
    code, out, _ = call("--config", file, "--validate-only")
    assert code == 0 and out == "valid: one at http://localhost:1/v1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dry-run"], "--model is missing"),
        (["--model", "x", "--mode", "best"], "modes.0"),
        (["--model", "x", "--mode", "rank", "--mode", "pairwise"], "into two folders"),
        (["--model", "x", "--repeats", "0"], "repeats"),
        (["--model", "x", "--max-cost", "1"], "max_cost needs price_in and price_out"),
        (["--model", "x", "--price-in", "1"], "price_in and price_out go together"),
        (["--model", "x", "--base-url", "localhost"], "starts with http"),
        (["--model", "x", "--set", "endpoint.tiemout=3"], "did you mean 'timeout'"),
        (["--model", "x", "--prompts", "nowhere"], "nowhere: no such folder of prompts"),
        (["--model", "x"], "OPENAI_API_KEY is not set"),
    ],
)
def test_mistakes_are_one_clear_error(arguments, says, make_comparison, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=says):
        call(make_comparison(prompts=1), *arguments)


def test_no_comparison_is_an_error():
    with pytest.raises(ConfigError, match="at least one comparison"):
        call("--model", "x")


def test_prompts_are_written_for_editing_and_used(make_comparison, tmp_path):
    code, out, _ = call("--write-prompts", tmp_path / "prompts")
    assert code == 0 and "rank.md" in out
    (tmp_path / "prompts" / "default" / "rank.md").write_text("{{ pictures }} Which fox? {{ labels }}")
    root = make_comparison(prompts=1)
    with FakeEndpoint(judge_by(by_red)) as endpoint:
        call(root, "--model", "fake", "--base-url", endpoint.url, "--prompts", tmp_path / "prompts" / "default")
        assert all(call.text.endswith("Which fox? A, B, C and D") for call in endpoint.calls)


def test_failures_are_warned_of(make_comparison):
    root = make_comparison(prompts=1)
    with FakeEndpoint(lambda call: Say("no idea")) as endpoint:
        code, out, err = call(root, "--model", "fake", "--base-url", endpoint.url, "--set", "asking.repairs=0")
    assert code == 0 and "6 unusable" in out and "warning: 6 questions have no usable answer" in err


def test_agreement_is_shown_and_written(make_comparison):
    root = make_comparison(prompts=2)
    with FakeEndpoint(judge_by(by_red)) as endpoint:
        options = ["--model", "fake", "--base-url", endpoint.url, "--set", "resamples=100"]
        call(root, *options, "--out", root / "people")
        code, out, _ = call(root, *options, "--against", root / "people")
    assert code == 0 and "Agreement with people" in out
    assert (root / "judge" / "agreement.json").exists()
    assert "Agreement with people" in (root / "judge" / "summary.md").read_text()
    with pytest.raises(DataError, match=r"no rankings\.jsonl here"):
        call(root, *options, "--against", root)
