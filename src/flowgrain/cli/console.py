"""Where progress and tables are drawn."""

from rich.console import Console

_WIDE = 160


def stderr_console() -> Console:
    """A console on stderr; where that is a file or a pipe, lines are wide enough for every column."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=_WIDE)


def stdout_console() -> Console:
    """A console on stdout, as wide as :func:`stderr_console`."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)
