"""``flowgrain doctor``: is this machine ready to train?"""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    folder: Annotated[Path, typer.Option("--output", help="Folder that runs would be written to.")] = Path("runs"),
) -> None:
    """Check the installation, devices, libraries and disk.

    Example:

        flowgrain doctor

    Each line says ok, warning or problem, and what to do. The exit code is 2 when a problem would stop training.
    """
    from flowgrain.doctor import as_json, examine

    findings = examine(folder)
    typer.echo(as_json(findings) if json_output else "\n".join(finding.line() for finding in findings))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(2)
