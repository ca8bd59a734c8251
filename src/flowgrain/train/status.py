"""How a run stands, read from its folder alone: also while it runs, and after it was copied from another machine."""

import json
import math
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowgrain.errors import CheckpointError
from flowgrain.locks import Holder, is_held, read_holder
from flowgrain.train.best import Best, read_best
from flowgrain.train.log import read_log
from flowgrain.train.repro import BUNDLE_PREFIX
from flowgrain.train.run_file import read_run_file
from flowgrain.train.state import CheckpointInfo, complete_checkpoints

SPEED_WINDOW = 50
"""Updates that the speed is measured over."""

State = Literal["running", "interrupted", "finished", "non-finite", "collapsed", "died", "unknown"]


@dataclass(frozen=True)
class CheckpointStatus:
    """One complete checkpoint."""

    update: int
    marks: tuple[float, ...]
    """Multiples of N1 that it marks; none for one that serves resuming or is the best."""
    bytes: int


@dataclass(frozen=True)
class RunState:
    """How a run stands."""

    name: str
    state: State
    where: str | None
    """The process and machine that run it or ran it last."""
    update: int
    slices: int
    seconds: float
    """Training time in all sessions."""
    budget: str
    part: float
    """Part of the whole budget that is spent, in [0, 1]."""
    slices_per_second: float | None
    """Over the last 50 updates."""
    seconds_left: float | None
    """Training time to the end of the budget at that speed."""
    loss_by_level: dict[str, float]
    """Of the last update."""
    validation_update: int | None
    validation_loss: float | None
    best: Best | None
    checkpoints: tuple[CheckpointStatus, ...]
    bytes: int
    """Disk space of the whole folder."""
    error_bundle: str | None
    """Folder of the last non-finite update."""


def read_status(run: Path) -> RunState:
    """Read a run folder; raises CheckpointError where it is none or a file of it is damaged."""
    values = read_run_file(run)
    lines = read_log(run)
    updates = [line for line in lines if line["kind"] == "update"]
    validations = [line for line in lines if line["kind"] == "validation"]
    holder = read_holder(run)
    try:
        budget = values["budget"]
        done = updates[-1] if updates else {**values["progress"], "update": values["progress"]["updates"]}
        total = float(budget["amount"]) * float(budget["checkpoints"][-1])
        spent = float(done["update" if budget["unit"] == "updates" else budget["unit"]])
        state = _state(values["status"], is_held(run), holder)
        name, unit = str(values["name"]), str(budget["unit"])
        last = (done["update"], done["slices"], done["seconds"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{run}/run.json: damaged ({error!r}); was it written by this version?") from None
    recent = updates[-SPEED_WINDOW:]
    bundles = sorted(run.glob(f"{BUNDLE_PREFIX}*"))
    return RunState(
        name=name,
        state=state,
        where=f"process {holder.process} on {holder.host}" if holder else None,
        update=last[0],
        slices=last[1],
        seconds=last[2],
        budget=f"{total:g} {unit}",
        part=min(spent / total, 1.0),
        slices_per_second=_rate(recent, "slices_in_update"),
        seconds_left=_seconds_left(recent, unit, max(total - spent, 0.0)),
        loss_by_level=updates[-1]["loss_by_level"] if updates else {},
        validation_update=validations[-1]["update"] if validations else None,
        validation_loss=validations[-1]["loss"] if validations else None,
        best=read_best(run),
        checkpoints=tuple(_checkpoint(folder) for folder in complete_checkpoints(run)),
        bytes=folder_bytes(run),
        error_bundle=bundles[-1].name if bundles else None,
    )


def to_json(state: RunState) -> str:
    """The status as one JSON object; numbers that are not finite become null, which JSON can hold."""
    return json.dumps(_plain(asdict(state)), indent=2)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _state(declared: str, held: bool | None, holder: Holder | None) -> State:
    if held:
        return "running"
    if declared in ("interrupted", "finished", "non-finite", "collapsed"):
        return declared  # pyright: ignore[reportReturnType] (narrowing by 'in' is not known to it)
    # it says 'running': only the machine that ran it can tell that the process is gone
    return "died" if held is False and holder is not None and holder.host == socket.gethostname() else "unknown"


def _rate(lines: list[dict[str, Any]], quantity: str) -> float | None:
    seconds = sum(line["update_seconds"] for line in lines)
    return sum(line[quantity] for line in lines) / seconds if seconds > 0 else None


def _seconds_left(recent: list[dict[str, Any]], unit: str, left: float) -> float | None:
    if unit == "seconds":
        return left
    counted = [{"amount": line["slices_in_update"] if unit == "slices" else 1, **line} for line in recent]
    rate = _rate(counted, "amount")
    return left / rate if rate else None


def _checkpoint(folder: Path) -> CheckpointStatus:
    info = CheckpointInfo.read(folder)
    return CheckpointStatus(info.progress.updates, info.budget_fractions, folder_bytes(folder))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
