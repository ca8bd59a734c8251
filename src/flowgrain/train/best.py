"""Which checkpoint has the lowest held-out loss so far; it is kept and named in ``best.json``."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_text
from flowgrain.train.log import read_log
from flowgrain.train.state import checkpoint_path, complete_checkpoints

BEST_NAME = "best.json"


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run."""

    update: int
    loss: float
    """Mean held-out loss over slices and noise levels."""


def improves(best: Best | None, loss: float) -> bool:
    """Whether a measurement is the best so far; of equals the earlier one stays, and what is not finite never wins."""
    return math.isfinite(loss) and (best is None or loss < best.loss)


def read_best(run: Path) -> Best | None:
    """The best checkpoint so far, None before the first one; raises CheckpointError for a damaged file."""
    path = run / BEST_NAME
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Best(int(values["update"]), float(values["loss"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it, --resume writes it anew") from None


def write_best(run: Path, best: Best | None) -> None:
    """Name ``best`` in the run folder; its checkpoint must be complete, so that the name always leads somewhere."""
    if best is None:
        (run / BEST_NAME).unlink(missing_ok=True)
        return
    checkpoint = checkpoint_path(run, best.update).relative_to(run)
    values = {"update": best.update, "loss": best.loss, "checkpoint": checkpoint.as_posix()}
    atomic_write_text(run / BEST_NAME, json.dumps(values, indent=2) + "\n")


def best_of_log(run: Path) -> Best | None:
    """The best measurement in the run's log whose checkpoint is there; None without one.

    A resume drops from the log what came after its checkpoint, so that a resumed run and an uninterrupted one name
    the same. Measurements before the first update, or of a time without ``keep_best``, have no checkpoint.
    """
    kept = {folder.name for folder in complete_checkpoints(run)}
    best = None
    for line in read_log(run):
        if line["kind"] != "validation" or checkpoint_path(run, line["update"]).name not in kept:
            continue
        if improves(best, line["loss"]):
            best = Best(line["update"], line["loss"])
    return best
