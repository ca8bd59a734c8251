"""Oscillation of a run's updates: what its log says of them, else what the checkpoints can tell.

A run with ``interference.oscillation`` logged the last 16 parameter differences before each measurement. Without, only
the differences between checkpoints are left: sums of many updates each, that say whether the run came back on itself
over these stretches, not whether single updates undo one another.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from flowgrain import rng
from flowgrain.diagnose.intervals import plain
from flowgrain.geometry.oscillation import Oscillation

LOGGED = ("updates", "mean_cosine", "straightness", "random_straightness", "variance_ratio", "high_frequency_share")


def logged_oscillation(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The measurements of full windows in the log, oldest first; of a line that a resume wrote anew the last counts."""
    lines = [line for line in log if line["kind"] == "interference" and "oscillation" in line]
    by_update = {int(line["update"]): line["oscillation"] for line in lines}
    rows = [{"update": update, **{name: by_update[update][name] for name in LOGGED}} for update in sorted(by_update)]
    most = max((row["updates"] for row in rows), default=0)
    # straightness depends on the number of updates: the short first window would draw a trend that is none
    return [row for row in rows if row["updates"] == most and most > 1]


def checkpoint_oscillation(
    vectors: Callable[[], Iterable[Tensor]], updates: Sequence[int], seed: int
) -> dict[str, Any]:
    """Measures of the differences between successive points after ``updates``; 3 points at least."""
    stream = Oscillation(rng.generator(seed, "checkpoint oscillation"), window=2)
    before: Tensor | None = None
    for vector in vectors():
        if before is not None:
            stream.add((vector - before).float())
        before = vector
    found = asdict(stream.measures())
    return plain(
        {"updates": list(updates), "differences": found["updates"], **{name: found[name] for name in LOGGED[1:]}}
    )
