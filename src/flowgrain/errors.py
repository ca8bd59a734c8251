"""Errors that a user can cause.

Each says what is wrong, where, the offending value, the limit and what to do. The command line prints
the message alone and exits with 2; anything else is a bug and shows its traceback.
"""


class FlowgrainError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 2


class ConfigError(FlowgrainError):
    """A recipe or option is unknown, malformed, contradictory or never read."""


class DataError(FlowgrainError):
    """A data set, image, caption or manifest cannot be used."""


class ModelError(FlowgrainError):
    """Weights are missing, broken or of another architecture."""


class CheckpointError(FlowgrainError):
    """A checkpoint or adapter does not belong to this run or is incomplete."""


class NonFiniteError(FlowgrainError):
    """A loss or gradient is not finite; the run stopped before the optimizer step."""

    exit_code = 3


class CollapseError(FlowgrainError):
    """What trains gives the same output for every input; the run stopped, as for a loss that is not finite."""

    exit_code = 3


class ProcessLostError(FlowgrainError):
    """A process of a run of several was killed or crashed; the others ended too."""

    exit_code = 4


class MissingExtraError(FlowgrainError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'flowgrain[{extra}]'")
        self._parts = (package, extra, purpose)

    def __reduce__(self):
        """Made from its parts again in another process."""
        return type(self), self._parts
