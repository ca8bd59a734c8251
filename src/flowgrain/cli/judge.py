"""``flowgrain judge``: variants ranked, compared or scored by a vision-language model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowgrain.config import Layered
    from flowgrain.evaluate.judge.config import JudgeConfig
    from flowgrain.evaluate.judge.run import Forecast, JudgeOutcome, Plan
    from flowgrain.evaluate.judge.tables import TextTable
    from flowgrain.evaluate.ranking.records import Ranking

_ENDINGS = {
    "interrupted": "stopped on request; everything answered is saved, run the same command to go on",
    "max-cost": "stopped: the next question could cost more than is left of max_cost; raise it to go on",
    "max-questions": "stopped after max_questions; run the same command to go on",
}


def judge(
    comparisons: Annotated[
        list[Path] | None, typer.Argument(metavar="COMPARISON...", help="comparison.yaml, or the folder that holds it.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model as the endpoint knows it.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="Address of any OpenAI-compatible endpoint, with /v1."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds its key.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; judge beside the first comparison.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings; options win over it.")] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option("--mode", metavar="MODE", help="rank, pairwise or score; more than once for several."),
    ] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="Times each question is put.")] = None,
    pairs: Annotated[
        Literal["comparison", "all"] | None,
        typer.Option("--pairs", help="Pairs of pairwise; or a list in --config."),
    ] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", metavar="DIR", help="Folder of your own prompts.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Items judged of each data set.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Questions in flight at once.")] = None,
    price_in: Annotated[float | None, typer.Option("--price-in", help="Price of a million input tokens.")] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", help="Price of a million output tokens.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", help="Stop before more than this is spent.")] = None,
    max_questions: Annotated[int | None, typer.Option("--max-questions", help="Stop after so many questions.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as endpoint.timeout=300."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask refused, unusable and rejected questions again.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="STUDY", help="Agreement with a study's or judge's rankings.")
    ] = None,
    write_prompts: Annotated[
        Path | None, typer.Option("--write-prompts", metavar="DIR", help="Copy the packaged prompts for editing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, forecast tokens and cost, ask nothing.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print every setting with its origin.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the settings alone.")] = False,
) -> None:
    """Let a vision-language model rank, compare or score the variants of a comparison.

    Examples:

        flowgrain judge eval --model gpt-5.2 --price-in 1.75 --price-out 14 --max-cost 5

        flowgrain judge eval --model qwen --base-url http://localhost:8000/v1 --dry-run

    The model sees pictures in random order and no names. The same command again asks only what has no answer yet.
    Ctrl-C finishes the questions in flight, saves and exits.
    """
    if write_prompts is not None:
        _write_prompts(write_prompts)
        return
    given = {
        "endpoint.model": model,
        "endpoint.base_url": base_url,
        "endpoint.api_key_env": api_key_env,
        "modes": list(mode) if mode else None,
        "repeats": repeats,
        "pairs": pairs,
        "prompts": prompts,
        "limit": limit,
        "asking.concurrency": concurrency,
        "asking.max_questions": max_questions,
        "budget.price_in": price_in,
        "budget.price_out": price_out,
        "budget.max_cost": max_cost,
    }
    resolved, layered = _load(config, settings or [], given)
    if print_config:
        _print_config(resolved, layered)
    elif validate_only:
        typer.echo(f"valid: {resolved.endpoint.model} at {resolved.endpoint.base_url}")
    else:
        _judge(comparisons or [], resolved, out, retry_failed, against, dry_run)


def _load(config: Path | None, settings: list[str], given: dict[str, Any]) -> "tuple[JudgeConfig, Layered]":
    from flowgrain.config import load_config
    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.judge.config import JudgeConfig

    if config is None and given["endpoint.model"] is None and not any(s.startswith("endpoint") for s in settings):
        raise ConfigError("--model is missing; name the model, or give --config with endpoint.model")
    # JSON is YAML: values keep their type whatever they hold
    options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return load_config(JudgeConfig, config, [*settings, *options])


def _print_config(config: "JudgeConfig", layered: "Layered") -> None:
    from flowgrain.config import describe_origins

    for key, value, origin in describe_origins(config, layered):
        typer.echo(f"{key} = {value!r}    # {origin}")


def _write_prompts(folder: Path) -> None:
    from flowgrain.evaluate.judge.prompts import write_prompts

    for path in write_prompts(folder):
        typer.echo(str(path))


def _judge(
    comparisons: list[Path],
    config: "JudgeConfig",
    out: Path | None,
    retry_failed: bool,
    against: Path | None,
    dry_run: bool,
) -> None:
    from flowgrain.evaluate.comparison import read_comparison
    from flowgrain.evaluate.judge import run
    from flowgrain.evaluate.judge.agreement import read_people

    comparison = read_comparison(comparisons)
    people = None if against is None else read_people(against)
    folder = out or comparison.folder / "judge"
    plan = run.make_plan(comparison, config)
    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)
    if dry_run:
        typer.echo(_forecast_text(run.dry_run(plan, folder, retry_failed), plan))
        typer.echo(f"dry run: nothing was asked or written; results would go to {folder}")
        return
    outcome = _with_progress(plan, folder, retry_failed)
    _report(outcome, plan, folder, people)
    if outcome.session.end == "interrupted":
        raise typer.Exit(130)


def _with_progress(plan: "Plan", folder: Path, retry_failed: bool) -> "JudgeOutcome":
    from flowgrain.cli.judge_progress import JudgeProgress
    from flowgrain.evaluate.judge.run import judge as run
    from flowgrain.train.signals import graceful_signals, ignored_once

    progress = JudgeProgress(lambda forecast: _forecast_text(forecast, plan))
    with ignored_once(lambda: progress.stop_requested), progress, graceful_signals(progress.stopping) as received:
        return run(plan, folder, progress, lambda: bool(received), retry_failed)


def _forecast_text(forecast: "Forecast", plan: "Plan") -> str:
    config = plan.config
    modes = ", ".join(config.modes or ())
    done = "" if forecast.open == forecast.questions else f", {forecast.questions - forecast.open} answered before"
    basis = "measured on earlier answers" if forecast.measured else "by rule of thumb until answers are measured"
    cost = (
        "no cost without --price-in and --price-out"
        if forecast.cost is None
        else f"about {forecast.cost:.4g} to pay, {forecast.spent:.4g} spent before"
    )
    cap = "" if config.budget.max_cost is None else f", at most {config.budget.max_cost:g} in all"
    lines = [
        f"{config.endpoint.model} at {config.endpoint.base_url}: {modes}, {config.repeats} repeats",
        f"{forecast.open} questions to ask{done}; {forecast.pictures} pictures to send",
        f"about {forecast.tokens_in} tokens in and {forecast.tokens_out} out ({basis}); {cost}{cap}",
    ]
    if forecast.killed:
        lines.append(
            f"{forecast.killed} of them were being asked when a judge was killed and are asked again; the cost counts"
        )
    return "\n".join(lines if forecast.open else [lines[0], f"nothing left to ask{done}"])


def _report(outcome: "JudgeOutcome", plan: "Plan", folder: Path, people: "Sequence[Ranking] | None") -> None:
    from flowgrain.evaluate.judge.agreement import agree, write_agreement
    from flowgrain.evaluate.judge.tables import agreement_table, judging_line, result_tables

    results = outcome.results
    tables = result_tables(results, every_pair=False)
    if people is not None:
        agreements = agree(results.rankings, people, plan.comparison)
        write_agreement(folder, results, agreements)
        tables.append(agreement_table(agreements))
    _show(tables)
    for warning in results.summary.warnings:
        typer.echo(f"note: {warning}", err=True)
    typer.echo(f"{judging_line(results.judging)} -> {folder}")
    if results.judging.failed:
        typer.echo(
            f"warning: {results.judging.failed} questions have no usable answer; see {folder / 'log.jsonl'}", err=True
        )
    if outcome.session.end in _ENDINGS:
        typer.echo(_ENDINGS[outcome.session.end], err=True)


def _show(tables: "Sequence[TextTable]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for table in tables:
        shown = Table(
            *table.columns, title=Text(table.title, style="bold"), title_justify="left", box=None, pad_edge=False
        )
        for row in table.rows:
            shown.add_row(*map(Text, row))  # names of variants are no markup
        console.print(shown)
        console.print()
