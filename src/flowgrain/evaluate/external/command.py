"""Any command as a picture score: JSON lines on its standard input, JSON lines on its standard output.

For every picture the command gets ``{"file": ..., "prompt": ...}`` (an absolute path), and for each it prints
``{"file": ..., "value": ...}`` in any order. So a tool of any licence, in any environment, can be one more
measure here.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.encoders.base import open_rgb

_SHOWN = 200
"""Characters of a tool's output that an error shows."""


class CommandScore(PictureScore):
    """Values that a command gives.

    ``command`` is split as a shell would, but no shell runs it. ``timeout`` counts seconds for a whole call.
    """

    def __init__(
        self, command: str, title: str, higher_is_better: bool | None, version: str = "", timeout: float | int = 3600
    ):
        self.title = title
        self.higher_is_better = higher_is_better
        self.version = version or command
        self.arguments = split_command(command)
        self.timeout = timeout

    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`; pictures that are no files are written to a temporary folder.

        Raises :class:`DataError` where the command fails, takes too long, or does not give every picture one number.
        """
        with tempfile.TemporaryDirectory(prefix="flowgrain-") as folder:
            files = [str(_as_file(picture, number, Path(folder))) for number, picture in enumerate(pictures)]
            requests = [{"file": file, "prompt": prompt} for file, prompt in zip(files, prompts, strict=True)]
            lines = run_json_lines(self.arguments, list({r["file"]: r for r in requests}.values()), self.timeout)
        values = _values_by_file(lines, set(files), self.arguments)
        return np.array([values[file] for file in files], dtype=np.float64)


def split_command(command: str) -> list[str]:
    """Program and arguments. Raises :class:`ConfigError` for an empty command or unbalanced quotes."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"command '{command}': {error}") from None
    if not arguments:
        raise ConfigError("the command is empty; give a program and its arguments")
    return arguments


def run_json_lines(
    arguments: Sequence[str], requests: Sequence[dict[str, Any]], timeout: float | int
) -> list[dict[str, Any]]:
    """Give a command one JSON line for each request and return the JSON objects that it prints, blank lines aside.

    A command that runs longer than ``timeout`` seconds is killed with all that it started. Raises :class:`ConfigError`
    for a program that cannot be started, :class:`DataError` for a time-out, an exit code other than 0, or a line that
    is no JSON object.
    """
    text = "".join(json.dumps(request, ensure_ascii=False) + "\n" for request in requests)
    name = shlex.join(arguments)
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"'{name}' cannot be started ({error.strerror}); install it or mend the command") from None
    try:
        output, complaints = process.communicate(text.encode(), timeout=timeout)
    except subprocess.TimeoutExpired:
        raise DataError(
            f"'{name}' was not done with {len(requests)} lines after {timeout:g} s and was stopped; allow more time"
        ) from None
    finally:
        _stop(process)
    if process.returncode != 0:
        said = " ".join(complaints.decode(errors="replace").split())[-_SHOWN:] or "it printed no reason"
        raise DataError(f"'{name}' failed with exit code {process.returncode}: {said}")
    return [
        _json_object(line, number, name)
        for number, line in enumerate(output.decode(errors="replace").split("\n"), start=1)
        if line.strip()
    ]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill what still runs of the command's own process group, and collect it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _json_object(line: str, number: int, name: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(
            f"'{name}': line {number} of its output is no JSON object: {line.strip()[:_SHOWN]!r}; it must print "
            "results alone on standard output, and anything else on standard error"
        )
    return value


def _values_by_file(lines: Sequence[dict[str, Any]], files: set[str], arguments: Sequence[str]) -> dict[str, float]:
    name = shlex.join(arguments)
    values: dict[str, float] = {}
    for line in lines:
        file, value = line.get("file"), line.get("value")
        if not isinstance(file, str) or file not in files:
            raise DataError(f"'{name}' answered for file {str(file)[:_SHOWN]!r}, which it was not asked about")
        if file in values:
            raise DataError(f"'{name}' answered twice for {file}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"'{name}' gave {file} the value {str(value)[:_SHOWN]!r}, which is no finite number")
        values[file] = float(value)
    missing = sorted(files - values.keys())
    if missing:
        raise DataError(f"'{name}' gave no value for {len(missing)} of {len(files)} pictures, for example {missing[0]}")
    return values


def _as_file(picture: ImageLike, number: int, folder: Path) -> Path:
    if isinstance(picture, Path):
        if not picture.is_file():
            raise DataError(f"{picture}: no such file")
        return picture.resolve()
    path = folder / f"{number:06d}.png"
    open_rgb(picture).save(path)
    return path
