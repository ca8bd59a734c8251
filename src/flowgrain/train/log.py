"""The run's log: ``metrics.jsonl`` for programs, TensorBoard for people."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flowgrain.files import atomic_write_text

METRICS_NAME = "metrics.jsonl"


def read_log(run: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's log; a line that a crash cut short is left out."""
    path = run / METRICS_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


class RunLog:
    """Appends to both logs; lines later than update ``keep_until`` (the checkpoint resumed from) are dropped."""

    def __init__(self, run: Path, keep_until: int):
        kept = [line for line in read_log(run) if line["update"] <= keep_until]
        atomic_write_text(run / METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (run / METRICS_NAME).open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=keep_until + 1)

    def update(self, line: dict[str, Any]) -> None:
        """Log one update."""
        self._file.write(json.dumps({"kind": "update", **line}) + "\n")
        step = line["update"]
        for name in ("loss", "grad_norm", "lr"):
            self._board.add_scalar(f"train/{name}", line[name], step)
        for quantity in ("loss", "mean_t"):
            for level, value in line[f"{quantity}_by_level"].items():
                self._board.add_scalar(f"{quantity}/{level}", value, step)
        self._board.add_scalar("speed/slices_per_second", line["slices_in_update"] / line["update_seconds"], step)

    def validation(self, line: dict[str, Any]) -> None:
        """Log one validation."""
        self._file.write(json.dumps({"kind": "validation", **line}) + "\n")
        for level, values in line["by_level"].items():
            self._board.add_scalar(f"validation/{level}", sum(values) / len(values), line["update"])

    def close(self) -> None:
        """Flush and close both logs."""
        self._file.close()
        self._board.close()
