"""A full or failing disk ends a run with one line that says what is safe."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowgrain.errors import CheckpointError
from flowgrain.train.state import complete_checkpoints

MIB = 2**20

_TEMPORARY = re.compile(r"^\.(.+)\.[^.]+\.tmp$")
"""Temporary names of flowgrain.files, around the name that they stand for."""

_ROOM = 2.0
"""A warning is due where fewer checkpoints than this fit: the next one is written before the last one goes."""


@contextmanager
def writing(run: Path, target: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of writing ``target`` (``needed`` bytes, where known) into one clear CheckpointError.

    The error names the file and the update from which --resume goes on.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(_describe(run, target, needed, error)) from None


def low_space(run: Path, needed: int) -> str | None:
    """A warning where the disk will soon be too full for a checkpoint of ``needed`` bytes, None where it is not."""
    free = shutil.disk_usage(run).free
    if free >= _ROOM * needed:
        return None
    return (
        f"{run}: {free / MIB:.1f} MiB are free and a checkpoint takes {needed / MIB:.1f} MiB; free some space before "
        "the next one is saved"
    )


def _describe(run: Path, target: Path, needed: int | None, error: OSError) -> str:
    failed = _TEMPORARY.sub(r"\1", Path(error.filename).name) if error.filename else target.name
    where = str(target) if failed == target.name else f"{target}: {failed}"
    facts = [error.strerror or str(error)]
    if needed is not None:
        facts.append(f"about {needed / MIB:.1f} MiB are needed, {shutil.disk_usage(run).free / MIB:.1f} MiB are free")
    found = complete_checkpoints(run)
    if found:
        update = int(found[-1].name.removeprefix("update-"))
        safe = f"the last complete checkpoint is update {update}: mend it and go on from there with --resume"
    else:
        safe = "there is no complete checkpoint yet: mend it and start again with --resume"
    return f"{where}: cannot be written ({'; '.join(facts)}); {safe}"
