"""What the processes of one run say: one of them, once."""

from pathlib import Path

import click

from flowgrain.errors import FlowgrainError, ProcessLostError
from flowgrain.train.state import complete_checkpoints


class Spokesman:
    """Prints the error that ends a run of several processes."""

    def __init__(self):
        self.run: Path | None = None
        """The run folder, once it is known."""

    def report(self, error: FlowgrainError) -> None:
        """Print ``error`` and, where a process was lost, how to go on."""
        advice = f"; {self._how_to_go_on()}" if isinstance(error, ProcessLostError) else ""
        click.echo(f"flowgrain: error: {error}{advice}", err=True)

    def _how_to_go_on(self) -> str:
        found = complete_checkpoints(self.run) if self.run is not None else []
        if not found:
            return "there is no checkpoint yet, run the same command again"
        return f"the last checkpoint is {found[-1]}: run the same command with --resume, with any number of processes"
