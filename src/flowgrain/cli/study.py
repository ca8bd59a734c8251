"""``flowgrain study``: a blind comparison of pictures by people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from flowgrain.evaluate.comparison import Comparison
    from flowgrain.evaluate.study.config import StudyConfig
    from flowgrain.evaluate.study.create import Draft
    from flowgrain.evaluate.study.folder import Study
    from flowgrain.evaluate.study.results import Results

_MUCH_MEGABYTES = 100

study = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Let people compare pictures without knowing what made them.\n\nExample:\n\n"
    "    flowgrain study new eval && flowgrain study serve eval/study\n\n"
    "    flowgrain study close eval/study && flowgrain study results eval/study",
)

Folder = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of 'flowgrain study new'.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="FLOWGRAIN_STUDY_DATABASE",
        help="postgresql://user@host/name or sqlite:///FILE; STUDY/study.db by default.",
    ),
]

Comparisons = Annotated[
    list[Path], typer.Argument(metavar="COMPARISON...", help="comparison.yaml, or the folder that holds it.")
]
Consent = Annotated[Path | None, typer.Option("--consent", help="Text file to agree to before the first item.")]
PerParticipant = Annotated[
    int | None, typer.Option("--per-participant", min=1, help="Items that one person answers; at most 40 by default.")
]
Rules = Annotated[
    list[str] | None,
    typer.Option("--exclusions", metavar="RULE=VALUE", help="max_failed_checks, min_median_seconds, ...: see below."),
]


@study.command(name="new")
def new(
    comparisons: Comparisons,
    out: Annotated[Path | None, typer.Option("--out", help="'study' beside the comparison by default.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="What participants read.")] = None,
    consent: Consent = None,
    language: Annotated[Literal["en", "de"] | None, typer.Option("--language", help="Of the page.")] = None,
    items: Annotated[int | None, typer.Option("--items", min=1, help="Items of the study; all by default.")] = None,
    per_participant: PerParticipant = None,
    participants: Annotated[int | None, typer.Option("--participants", help="The most who may take part.")] = None,
    attention: Annotated[int | None, typer.Option("--attention", help="Items with one degraded picture.")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="Items that come back later.")] = None,
    exclusions: Rules = None,
    ties: Annotated[bool | None, typer.Option("--ties/--no-ties", help="Whether pictures may be ranked equal.")] = None,
    format: Annotated[Literal["png", "webp"] | None, typer.Option("--format", help="Of the pictures.")] = None,
    max_side: Annotated[int | None, typer.Option("--max-side", help="Scale longer pictures down, pixels.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, print the plan, write nothing.")] = False,
) -> None:
    """Make a sealed study: pictures under random names, questions, assignment, rules of exclusion.

    Examples:

        flowgrain study new eval --title "Fox drawings" --consent consent.txt

        flowgrain study new eval-fox eval-cat --items 40 --per-participant 20 --exclusions min_median_seconds=4

    Rules: max_failed_checks, min_median_seconds, min_completed (share), min_repeat_agreement (share).

    Nothing of a study can be changed after it was made: the printed seal commits to all of it.
    """
    from flowgrain.evaluate.comparison import read_comparison
    from flowgrain.evaluate.study.create import DEFAULT_PER_PARTICIPANT, draft_study

    comparison = read_comparison(comparisons)
    available = items or len(comparison.items())
    options: dict[str, Any] = {
        "title": title,
        "consent": None if consent is None else _text(consent),
        "language": language,
        "ties": ties,
        "per_participant": per_participant or min(DEFAULT_PER_PARTICIPANT, available),
        "participants": participants,
        "attention.degraded": attention,
        "attention.repeated": repeats if repeats is not None or available > 1 else 0,
        "pictures.format": format,
        "pictures.max_side": max_side,
    }
    draft = draft_study(comparison, _config(comparison, options, exclusions or []), items)
    target = out or comparison.folder / "study"
    _describe(draft, target)
    if dry_run:
        return
    _create(draft, target)


@study.command(name="serve")
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    root_path: Annotated[str, typer.Option("--root-path", help="Path behind a proxy, for example /study.")] = "",
    database: Database = None,
    entry: Annotated[
        Literal["open", "links", "external_id"],
        typer.Option("--entry", help="Who may start: anybody, holders of a link, people sent with an id."),
    ] = "open",
    id_parameter: Annotated[str, typer.Option("--id-parameter", help="Query parameter of the id.")] = "PROLIFIC_PID",
    session_parameter: Annotated[
        str, typer.Option("--session-parameter", help="Query parameter that must be the same when an id comes back.")
    ] = "SESSION_ID",
    completion_url: Annotated[
        str | None, typer.Option("--completion-url", help="Link at the end; may hold {code} and {external_id}.")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option("--trusted-proxy", metavar="ADDRESS", help="Believe X-Forwarded-For from this address."),
    ] = None,
    token_days: Annotated[float, typer.Option("--token-days", min=0.01, help="How long personal links work.")] = 60.0,
    address_rate: Annotated[float, typer.Option("--address-rate", help="Requests a second of one address.")] = 50.0,
    entry_rate: Annotated[float, typer.Option("--entry-rate", help="New participants a minute of one address.")] = 60.0,
) -> None:
    """Serve a study until Ctrl-C. Answers are acknowledged when they are on the disk.

    Examples:

        flowgrain study serve eval/study

        flowgrain study serve eval/study --root-path /study --trusted-proxy 127.0.0.1 --entry external_id
        --completion-url "https://app.prolific.com/submissions/complete?cc=C1ABCDEF"
    """
    from flowgrain.config import OVERRIDE_ORIGIN, Layered, build_config
    from flowgrain.evaluate.study.folder import open_study
    from flowgrain.evaluate.study.serve import run
    from flowgrain.evaluate.study.server import ServeConfig

    values = {
        "entry": entry,
        "id_parameter": id_parameter,
        "session_parameter": session_parameter,
        "root_path": root_path.rstrip("/"),
        "completion_url": completion_url,
        "address_rate": address_rate,
        "entries_per_minute": entry_rate,
    }
    settings = build_config(ServeConfig, Layered(values, dict.fromkeys(values, OVERRIDE_ORIGIN)))
    opened = open_study(folder, database, token_days)
    if opened.store.closed():
        typer.echo("This study is closed: participants can only fetch their completion code or withdraw.", err=True)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"'{opened.config.title}' at http://{shown}:{port}/ (entry: {entry}); seal {opened.seal}")
    run(opened, settings, host, port, trusted_proxy or [])


@study.command(name="links")
def links(
    folder: Folder,
    participants: Annotated[int, typer.Option("--participants", min=1, help="How many links.")],
    url: Annotated[
        str, typer.Option("--url", help="Where participants reach the study, with its path.")
    ] = "http://127.0.0.1:8000",
    database: Database = None,
    token_days: Annotated[float, typer.Option("--token-days", min=0.01, help="How long the links work.")] = 60.0,
) -> None:
    """Print personal links, one a line. They are stored as hashes only: a lost link cannot be printed again.

    Example:

        flowgrain study links eval/study --participants 20 --url https://lab.example/study > links.txt
    """
    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.study.folder import open_study
    from flowgrain.evaluate.study.refusal import Refusal

    opened = open_study(folder, database, token_days)
    try:
        tokens = opened.store.invite(participants)
    except Refusal:
        raise ConfigError(
            f"--participants {participants}: too many links for {opened.plan.participants} places"
        ) from None
    for token in tokens:
        typer.echo(f"{url.rstrip('/')}/#p={token}")


@study.command(name="close")
def close(folder: Folder, database: Database = None) -> None:
    """Take no answer from now on. A server that runs notices at once; the results then name the variants.

    Example:

        flowgrain study close eval/study
    """
    from flowgrain.evaluate.study.folder import open_study

    opened = open_study(folder, database, create=False)
    typer.echo("closed" if opened.store.close() else "it was closed already")


@study.command(name="results")
def results(
    folder: Folder,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; STUDY/results by default.")] = None,
    format: Annotated[
        Literal["csv", "json"], typer.Option("--format", help="Of the tables of answers and participants.")
    ] = "csv",
    external_ids: Annotated[
        bool, typer.Option("--external-ids", help="Add the ids of the recruiting service to the participants.")
    ] = False,
    database: Database = None,
) -> None:
    """Write rankings, tables and statistics. While the study is open the variants are numbered, not named.

    Example:

        flowgrain study results eval/study --format json
    """
    from flowgrain.evaluate.study.facts import RESULTS
    from flowgrain.evaluate.study.folder import open_study
    from flowgrain.evaluate.study.results import compute_results, write_results

    opened = open_study(folder, database, create=False)
    found = compute_results(opened, external_ids)
    target = out or folder / RESULTS
    write_results(found, target, format)
    _report(opened, found, target)


def _config(comparison: "Comparison", options: dict[str, Any], rules: list[str]) -> "StudyConfig":
    """The study's configuration from the protocol and the options that were given."""
    from flowgrain.config import OVERRIDE_ORIGIN, Layered, build_config
    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.study.config import StudyConfig

    protocol = comparison.protocol
    values: dict[str, Any] = {
        "answer": protocol.answer,
        "dimensions": [dimension.model_dump() for dimension in protocol.study_dimensions],
        "references": protocol.references,
    }
    for rule in rules:
        name, equals, value = rule.partition("=")
        if not equals or not name:
            raise ConfigError(f"--exclusions {rule}: expected RULE=VALUE, for example min_median_seconds=4")
        options[f"exclusions.{name.strip()}"] = value.strip()
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return build_config(StudyConfig, Layered(values, dict.fromkeys(given, OVERRIDE_ORIGIN)))


def _text(path: Path) -> str:
    from flowgrain.errors import DataError

    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--consent {path}: cannot be read ({error})") from None


def _describe(draft: "Draft", target: Path) -> None:
    """What is asked of whom, and what the numbers mean for balance."""
    from flowgrain.evaluate.study.plan import minutes

    config, design = draft.config, draft.design
    variants, items = len(draft.comparison.variants), len(draft.items)
    checks = f"{config.attention.degraded} attention checks, {config.attention.repeated} repeated"
    asked = ", ".join(dimension.name for dimension in config.dimensions)
    typer.echo(f"'{config.title}': {items} items of {variants} variants; {config.answer} on {asked}; to {target}")
    positions = config.per_participant + config.attention.degraded + config.attention.repeated
    typer.echo(
        f"each of at most {config.participants} participants: {config.per_participant} items, {checks}; about "
        f"{minutes(positions, variants, len(config.dimensions))} minutes"
    )
    each = config.per_participant / items
    typer.echo(f"each item is answered by {each:.0%} of the participants, all items equally often to within one")
    all_items = design.period * (1 + variants % 2)
    typer.echo(
        f"places and neighbours are balanced exactly after every {all_items} participants, for each item apart after "
        f"{design.balanced_after}"
    )
    prompts = {(item.dataset, item.prompt) for item in draft.items}
    wanted = draft.comparison.protocol.prompts * len(draft.comparison.datasets)
    if len(prompts) < wanted:
        typer.echo(f"warning: {len(prompts)} prompts; the protocol asks for {wanted}", err=True)


def _create(draft: "Draft", target: Path) -> None:
    from flowgrain.evaluate.study.create import create_study, megabytes_to_load

    seal = create_study(draft, target, _progress("pictures", len(draft.items)))
    loaded = megabytes_to_load(target)
    hint = "; on phones that is much: --format webp or --max-side make it less" if loaded > _MUCH_MEGABYTES else ""
    typer.echo(f"each participant loads about {loaded:.1f} MB of pictures{hint}")
    typer.echo(f"seal: {seal}\nKeep this line: it proves that the study was not changed after it was made.")
    typer.echo(f"Next: flowgrain study serve {target}")


def _progress(what: str, total: int) -> Any:
    """A function that draws a bar on the error output."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from flowgrain.cli.console import stderr_console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, console=stderr_console(), transient=True)
    task = progress.add_task(what, total=total)

    def advance(done: int, _total: int) -> None:
        progress.update(task, completed=done)
        progress.refresh()

    return advance


def _report(opened: "Study", found: "Results", target: Path) -> None:
    facts = found.facts
    typer.echo(f"'{facts.title}': {facts.participants} participants, {facts.finished} finished, {facts.counted} count")
    for rule, count in facts.exclusions.items():
        typer.echo(f"  excluded by {rule} ({getattr(facts.rules, rule):g}): {count}")
    if facts.blinded:
        typer.echo("The study is still open: numbers may change, and variants are not named until 'study close'.")
    for dimension, rates in found.summary.first_place.items():
        for variant, rate in rates.items():
            low, high = rate.low, rate.high
            interval = "" if low is None or high is None else f"  [{low:.1%}, {high:.1%}]"
            typer.echo(f"  {dimension}: {variant}: first in {rate.value:.1%}{interval}  (n = {rate.n})")
    for warning in found.summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"written to {target}; seal {opened.seal}")
