"""The ``flowgrain`` command: one thin file a subcommand, imported when it is called."""

import os
import sys

import click
import typer

from flowgrain import __version__
from flowgrain.cli.check import check
from flowgrain.cli.convert import convert
from flowgrain.cli.decompose import decompose
from flowgrain.cli.demo import demo
from flowgrain.cli.diagnose import diagnose
from flowgrain.cli.doctor import doctor
from flowgrain.cli.evaluate import evaluate
from flowgrain.cli.export import export, import_adapter
from flowgrain.cli.judge import judge
from flowgrain.cli.overlay import overlay
from flowgrain.cli.preview_times import preview_times
from flowgrain.cli.reconstruct import reconstruct
from flowgrain.cli.replay import replay
from flowgrain.cli.report import report
from flowgrain.cli.sample import sample
from flowgrain.cli.status import status
from flowgrain.cli.study import study
from flowgrain.cli.train import train
from flowgrain.cli.vae import vae
from flowgrain.errors import FlowgrainError

app = typer.Typer(
    name="flowgrain",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune text-to-image flow-matching and diffusion models by shaping the geometry of the data.",
)
app.command(name="decompose")(decompose)
app.command(name="overlay")(overlay)
app.command(name="check")(check)
app.command(name="preview-times")(preview_times)
app.command(name="train")(train)
app.command(name="vae")(vae)
app.command(name="status")(status)
app.command(name="replay")(replay)
app.command(name="diagnose")(diagnose)
app.command(name="sample")(sample)
app.command(name="evaluate")(evaluate)
app.command(name="judge")(judge)
app.add_typer(study, name="study")
app.command(name="report")(report)
app.command(name="reconstruct")(reconstruct)
app.command(name="export")(export)
app.command(name="import")(import_adapter)
app.command(name="demo")(demo)
app.command(name="doctor")(doctor)
app.add_typer(convert, name="convert")


def _version(value: bool | None) -> None:
    if value:
        typer.echo(f"flowgrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool | None = typer.Option(None, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if debug:
        os.environ["FLOWGRAIN_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error prints its message and exits with its code, a bug its traceback."""
    try:
        app(arguments, standalone_mode=True)
    except FlowgrainError as error:
        if os.environ.get("FLOWGRAIN_DEBUG"):
            raise
        from flowgrain.config import printable

        click.echo("\n".join(map(printable, f"flowgrain: error: {error}".split("\n"))), err=True)
        sys.exit(error.exit_code)
