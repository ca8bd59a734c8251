"""Who does the chunks: this process, worker processes, or a Ray cluster."""

from flowgrain.errors import ConfigError
from flowgrain.slices.executors.base import Executor as Executor

NAMES = ("local", "ray")


def make_executor(name: str, workers: int | None) -> Executor | None:
    """The executor of a name; None where a number of local processes is to be chosen by the work.

    Raises :class:`ConfigError` for an unknown name.
    """
    if name == "local":
        return None if workers is None else local_executor(workers)
    if name == "ray":
        from flowgrain.slices.executors.ray import RayExecutor

        return RayExecutor(workers)
    raise ConfigError(f"--executor {name}: no such executor; use {' or '.join(NAMES)}")


def local_executor(workers: int) -> Executor:
    """This process, or so many worker processes."""
    from flowgrain.slices.executors.local import InProcess, WorkerProcesses

    return InProcess() if workers == 1 else WorkerProcesses(workers)
