import json
import shutil
from dataclasses import replace

import pytest
import typer
from made_up_evaluation import rank, write_ballot, write_comparison
from typer.testing import CliRunner

from flowgrain.cli.report import report
from flowgrain.errors import CheckpointError, ConfigError, DataError
from flowgrain.evaluate.results import MetricTable, write_results
from flowgrain.report.sources import Places, read_evaluation

app = typer.Typer()
app.command()(report)


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def small(tmp_path):
    variants = [("base", None, None), ("a 1x", None, None)]
    write_comparison(tmp_path, variants=variants, datasets=("d",), prompts=("p", "q"))
    return tmp_path


def test_a_dry_run_says_what_there_is_and_writes_nothing(evaluation_folder):
    before = sorted(evaluation_folder.rglob("*"))
    text = run(evaluation_folder, "--dry-run").output
    assert "pictures: 3 variants on 2 data sets, 16 of each" in text
    assert "metrics: 4 measures, 12 paired differences" in text
    assert "People: 48 answers" in text and "run granularity: " in text
    assert f"would write {evaluation_folder / 'report.html'}" in text
    assert sorted(evaluation_folder.rglob("*")) == before


def test_a_comparison_alone_gives_a_page_of_pictures(small):
    result = run(small, "--title", "Mine", "--rows", 1, "--side", 64)
    assert "not measured: metrics; flowgrain evaluate" in result.output
    assert "pictures of at most 64 pixels" in result.output
    page = (small / "report.html").read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in page and page.count("data:image/webp") == 2 + 1 + 2  # variants, own reference, domain
    assert (small / "report.md").exists()
    assert [path.name for path in (small / "report-tables").iterdir()] == ["pictures.csv"]


def test_a_large_page_is_warned_about(small, monkeypatch):
    monkeypatch.setattr("flowgrain.report.output.LARGE_PAGE_MB", 0.001)
    assert "larger than 0.001 MB" in run(small, "--rows", 1).stderr


def test_other_places_and_runs_can_be_named(small, evaluation_folder, tmp_path):
    out = tmp_path / "sub" / "both.html"
    run_folder = evaluation_folder / "runs" / "baseline"
    write_results(tmp_path / "mine", MetricTable())
    found = read_evaluation([small], Places(tmp_path / "mine" / "metrics.json", None, None, {"x": run_folder}))
    assert [(item.name, item.dataset, item.fractions) for item in found.runs] == [("x", None, (1.0, 1.5))]
    run(small, "--out", out, "--metrics", tmp_path / "mine", "--rows", 1)
    assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "give at least one comparison"),
        (["FOLDER", "--out", "page.pdf"], ConfigError, "expected a file that ends in .html"),
        (["FOLDER", "--runs", "alone"], ConfigError, "expected NAME=RUN"),
        (["FOLDER", "--runs", "a=x", "--runs", "a=y"], ConfigError, "the name 'a' is given twice"),
        (["FOLDER", "--runs", "a=nowhere"], CheckpointError, "no recipe.yaml here"),
        (["FOLDER", "--judge", "nowhere"], DataError, "no summary.json here; write it with 'flowgrain judge'"),
        (["FOLDER", "--study", "nowhere"], DataError, "write it with 'flowgrain study results'"),
        (["FOLDER", "--metrics", "nowhere"], DataError, "no metric results"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(small, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        run(*(small if argument == "FOLDER" else argument for argument in arguments))
    assert "\n" not in str(caught.value)


def test_answers_about_another_comparison_are_refused(small, evaluation_folder):
    with pytest.raises(DataError, match=r"variants .* are not in the comparison, which has base, a 1x"):
        run(small, "--judge", evaluation_folder / "judge")
    with pytest.raises(DataError, match="are not in the comparison"):
        run(small, "--metrics", evaluation_folder / "metrics")


def facts(blinded):
    return {
        "title": "t",
        "seal": "s",
        "blinded": blinded,
        "opened_at": "2025-01-01T00:00:00Z",
        "closed_at": None,
        "answer": "rank",
        "dimensions": [{"name": "overall", "title": "As a whole", "question": "?"}],
        "participants": 5,
        "finished": 4,
        "counted": 3,
        "withdrawn": 0,
        "exclusions": {"min_median_seconds": 1},
        "rules": {"min_median_seconds": 2.5},
        "median_minutes": 6.0,
    }


def study(folder, blinded):
    from flowgrain.evaluate.comparison import read_comparison

    comparison = read_comparison([folder])
    if blinded:
        numbered = [f"variant {i + 1}" for i in range(2)]
        items = {name: path for name, path in zip(numbered, comparison.items()[0].pictures.values(), strict=True)}
        dataset = comparison.datasets[0]
        variants = tuple(replace(v, name=n) for v, n in zip(dataset.variants, items, strict=True))
        comparison = replace(comparison, datasets=(replace(dataset, variants=variants),), pairs=())
    rankings = rank(comparison, dict.fromkeys(comparison.variants, 0.0), raters=("p", "q"), dimensions=("overall",))
    write_ballot(folder / "study" / "results", comparison, rankings, "study", ("overall",))
    (folder / "study" / "results" / "facts.json").write_text(json.dumps(facts(blinded)))


def test_a_closed_study_brings_its_questions_rules_and_participants(small):
    study(small, blinded=False)
    found = read_evaluation([small], Places())
    assert found.study.dimension_title("overall") == "As a whole"
    assert found.study.participation.exclusions == (("answered in less than 2.5 s (median)", 1),)
    assert read_evaluation([small], Places(study=small / "study")) == found


def test_an_open_study_names_nobody_and_says_how_to_close_it(small):
    study(small, blinded=True)
    found = read_evaluation([small], Places())
    assert found.study is None
    text = run(small, "--dry-run").output
    assert f"flowgrain study close {small / 'study'} && flowgrain study results {small / 'study'}" in text


def test_results_without_an_answer_count_as_not_measured(small):
    from flowgrain.evaluate.comparison import read_comparison

    write_ballot(small / "judge", read_comparison([small]), [], "judge", ("overall",))
    assert read_evaluation([small], Places()).judge is None


def test_runs_that_are_gone_are_left_out(evaluation_folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(evaluation_folder, moved)
    shutil.rmtree(moved / "runs")
    assert read_evaluation([moved], Places()).runs == ()


def test_judge_and_people_are_compared_on_what_both_were_asked(evaluation):
    ((title, found),) = evaluation.agreement.items()
    assert title == "Judge (all dimensions together) and people (overall quality)"
    assert found.items == 16
