"""Where progress is drawn."""

from rich.console import Console


def stderr_console() -> Console:
    """A console on stderr; where that is a file or a pipe, lines are wide enough for every column."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=160)
