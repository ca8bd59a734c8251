"""What of the levels' gradients is measured while a run trains (``docs/interference.md``)."""

from pydantic import Field

from flowgrain.config import Config


class InterferenceConfig(Config):
    """Measurements of how the levels' gradients meet, logged as lines of kind ``interference``.

    They read and never write: a run with them is bit for bit the run without, on a CPU.
    """

    every: int = Field(
        default=50, gt=0, description="updates between measurements; one costs about as much as an update"
    )
    oscillation: bool = Field(
        default=True,
        description="also measure how much the last updates before a measurement undo one another; takes two more "
        "copies of the trained parameters in memory",
    )
