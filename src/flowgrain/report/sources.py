"""Read what an evaluation left behind: results beside the comparison file, or where the user says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from flowgrain.errors import CheckpointError, DataError
from flowgrain.evaluate.comparison import Comparison, read_comparison
from flowgrain.evaluate.judge.results import JUDGING_NAME, Judging
from flowgrain.evaluate.ranking.groups import group_agreement
from flowgrain.evaluate.ranking.records import Ranking, read_rankings
from flowgrain.evaluate.ranking.summary import GroupAgreement, RankingSummary, read_summary
from flowgrain.evaluate.results import JSON_NAME, MetricTable, read_results
from flowgrain.evaluate.study.facts import FACTS_NAME, RANKINGS_NAME, RESULTS, SUMMARY_NAME, StudyFacts, read_facts
from flowgrain.report.evaluation import Ballot, Evaluation, Participation, TrainedRun
from flowgrain.report.run_log import parse_log
from flowgrain.train.log import read_log
from flowgrain.train.state import RECIPE_NAME

METRICS_FOLDER, JUDGE_FOLDER, STUDY_FOLDER = "metrics", "judge", "study"


@dataclass(frozen=True)
class Places:
    """Where results lie; None is the usual place beside the first comparison file, where nothing need be."""

    metrics: Path | None = None
    """A ``metrics.json`` or its folder."""
    judge: Path | None = None
    study: Path | None = None
    runs: Mapping[str, Path] | None = None
    """Name -> run folder; None takes those that the comparison file names."""


def read_evaluation(paths: Sequence[Path], places: Places) -> Evaluation:
    """Read and check everything.

    Raises ConfigError or DataError for a bad file, for results of other variants or data sets, and for a place that
    the user named where nothing is; CheckpointError for a folder of ``runs`` that is no run.
    """
    comparison = read_comparison(paths)
    judge_folder = _summary_folder(places.judge, comparison.folder / JUDGE_FOLDER, "judge")
    study_folder = _summary_folder(places.study, comparison.folder / STUDY_FOLDER, "study results")
    judge = None if judge_folder is None else _read_judge(comparison, judge_folder)
    facts = None if study_folder is None else _facts(study_folder)
    blinded = facts is not None and facts.blinded
    study = None if study_folder is None or blinded else _read_study(comparison, study_folder, facts)
    agreement = {}
    if judge is not None and study is not None and judge_folder is not None and study_folder is not None:
        agreement = _agreement(judge, study, _rankings(judge_folder), _rankings(study_folder))
    return Evaluation(
        comparison=comparison,
        paths=tuple(paths),
        metrics=_metrics(comparison, places.metrics),
        judge=judge,
        study=study,
        open_study=_study_of(study_folder) if study_folder is not None and blinded else None,
        agreement=agreement,
        runs=_runs(comparison, places.runs),
    )


def _summary_folder(given: Path | None, usual: Path, command: str) -> Path | None:
    """The folder that holds a summary: the place itself, or its ``results``; None where the usual place has none."""
    place = given or usual
    for folder in (place, place / RESULTS):
        if (folder / SUMMARY_NAME).is_file():
            return folder
    if given is not None:
        raise DataError(f"{given}: no {SUMMARY_NAME} here; write it with 'flowgrain {command}'")
    return None


def _study_of(results: Path) -> Path:
    return results.parent if results.name == RESULTS else results


def _summary(comparison: Comparison, folder: Path) -> RankingSummary | None:
    """None where nobody answered yet."""
    path = folder / SUMMARY_NAME
    summary = read_summary(path)
    _check_names(path, "variants", summary.variants, comparison.variants)
    _check_names(path, "data sets", summary.datasets, [dataset.name for dataset in comparison.datasets])
    return summary if summary.counts.rankings or summary.counts.scores else None


def _datasets(comparison: Comparison, summary: RankingSummary) -> tuple[str, ...]:
    return tuple(dataset.name for dataset in comparison.datasets if dataset.name in summary.datasets)


def _read_judge(comparison: Comparison, folder: Path) -> Ballot | None:
    summary = _summary(comparison, folder)
    if summary is None:
        return None
    raters = tuple(dict.fromkeys(ranking.rater for ranking in _rankings(folder)))
    dimensions = comparison.protocol.judge_dimensions
    return Ballot(summary, dimensions, _datasets(comparison, summary), raters, answers=_answers(folder))


def _answers(folder: Path) -> dict[str, int]:
    path = folder / JUDGING_NAME
    if not path.is_file():
        return {}
    try:
        return Judging.model_validate_json(path.read_text(encoding="utf-8")).answers
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def _facts(folder: Path) -> StudyFacts | None:
    path = folder / FACTS_NAME
    return read_facts(path) if path.is_file() else None


def _read_study(comparison: Comparison, folder: Path, facts: StudyFacts | None) -> Ballot | None:
    summary = _summary(comparison, folder)
    if summary is None:
        return None
    dimensions = comparison.protocol.study_dimensions if facts is None else facts.dimensions
    participation = None if facts is None else _participation(facts)
    return Ballot(summary, dimensions, _datasets(comparison, summary), participation=participation)


def _participation(facts: StudyFacts) -> Participation:
    rules = facts.rules
    reasons = {
        "max_failed_checks": f"failed more than {rules.max_failed_checks} items with a degraded picture",
        "min_median_seconds": f"answered in less than {rules.min_median_seconds:g} s (median)",
        "min_completed": f"answered less than {100 * rules.min_completed:g} % of their items",
        "min_repeat_agreement": f"agreed with themselves less than {rules.min_repeat_agreement:g} on repeated items",
    }
    return Participation(
        facts.participants,
        facts.finished,
        facts.counted,
        facts.withdrawn,
        facts.median_minutes,
        tuple((reasons.get(rule, rule), count) for rule, count in facts.exclusions.items()),
    )


def _check_names(path: Path, what: str, found: Sequence[str], known: Sequence[str]) -> None:
    odd = [name for name in found if name not in known]
    if odd:
        raise DataError(
            f"{path}: {what} {', '.join(odd)} are not in the comparison, which has {', '.join(known)}; give the "
            "comparison that was judged, or judge this one"
        )


def _rankings(folder: Path) -> tuple[Ranking, ...]:
    path = folder / RANKINGS_NAME
    return read_rankings(path) if path.is_file() else ()


def _metrics(comparison: Comparison, given: Path | None) -> MetricTable:
    path = given or comparison.folder / METRICS_FOLDER
    if given is None and not (path / JSON_NAME).is_file():
        return MetricTable()
    table = read_results(path)
    arms = dict.fromkeys(result.arm for result in table.results)
    _check_names(path, "variants", tuple(arms), comparison.variants)
    return table


def _agreement(
    judge: Ballot, study: Ballot, judged: Sequence[Ranking], answered: Sequence[Ranking]
) -> dict[str, GroupAgreement]:
    """Judge against people on each dimension that both answered, or on all together against people's first one."""
    shared = [name for name in study.summary.dimensions if name in judge.summary.first_place]
    pairs = [(name, name) for name in shared if name in study.summary.first_place]
    if not pairs and judge.summary.first_place and study.summary.first_place:
        pairs = [(judge.main, study.main)]
    if not {r.item for r in judged} & {r.item for r in answered}:
        return {}
    return {
        _agreement_title(judge, study, pair): group_agreement(judged, answered, judge.summary.variants, dimensions=pair)
        for pair in pairs
    }


def _agreement_title(judge: Ballot, study: Ballot, pair: tuple[str, str]) -> str:
    first, second = judge.dimension_title(pair[0]), study.dimension_title(pair[1])
    return (
        f"Judge and people, {first.lower()}"
        if first == second
        else f"Judge ({first.lower()}) and people ({second.lower()})"
    )


def _runs(comparison: Comparison, given: Mapping[str, Path] | None) -> tuple[TrainedRun, ...]:
    """The runs that the user names, else those of the comparison file whose folders are still there."""
    if given is not None:
        return tuple(_run(name, None, folder, ()) for name, folder in given.items())
    runs = []
    for dataset in comparison.datasets:
        folders = {v.run: v.run_folder for v in dataset.variants if v.run is not None and v.run_folder is not None}
        for name, folder in folders.items():
            if (folder / RECIPE_NAME).is_file():
                fractions = tuple(v.fraction for v in dataset.variants if v.run == name and v.fraction is not None)
                runs.append(_run(name, dataset.name, folder, fractions))
    return tuple(runs)


def _run(name: str, dataset: str | None, folder: Path, fractions: tuple[float, ...]) -> TrainedRun:
    path = folder / RECIPE_NAME
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {RECIPE_NAME} here; give a folder written by 'flowgrain train'") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: damaged (not a map of settings)")
    log = parse_log(read_log(folder))
    marks = tuple(v.budget_fraction for v in log.validations if v.budget_fraction)
    return TrainedRun(name, dataset, log, settings, fractions or marks)
