"""Pictures and configurations for runs of decompose from the command line, and what is left after them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from flowgrain.config import load_config
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.executors import local_executor
from flowgrain.slices.presets import preset_path

PRESET = preset_path("tiny-128")
RUN = "import sys; from flowgrain.cli.main import main; main(sys.argv[1:])"
QUICK = (
    "levels.meso.detector={kind: grid, columns: 2, rows: 1, overlap: 0.6}",
    "levels.micro.detector={kind: grid, columns: 2, rows: 2}",
)
"""Detectors that take no time, so that a run is as long as its files."""


def config(*overrides):
    """tiny-128 with these settings."""
    return load_config(DecomposeConfig, PRESET, list(overrides))[0]


def photos(folder, count, start=0, size=(200, 180)):
    """Different pictures with captions in two folders."""
    for index in range(start, start + count):
        coarse = np.random.default_rng(index).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        path = folder / "ab"[index % 2] / f"photo{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(coarse).resize((size[0] + index % 40, size[1]), Image.Resampling.BICUBIC)
        picture.save(path, compress_level=1)
        path.with_suffix(".txt").write_text(f"picture {index}")
    return folder


def data_of(out):
    """Every file of a data set that is data: all but the report and what decompose remembers of the sources."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith((".decompose/", "report.html"))}


def leftovers(out):
    """What no finished run leaves: unfinished files, journals, claims, announcements, empty folders."""
    state = out / ".decompose"
    found = [path for path in out.rglob("*") if path.name.endswith((".tmp", ".journal", ".stale"))]
    found += [path for name in ("claims", "workers", "trails") for path in (state / name).glob("*")]
    found += [
        path for path in out.rglob("*") if path.is_dir() and state not in path.parents and not any(path.iterdir())
    ]
    return [path.relative_to(out).as_posix() for path in found]


def command(*arguments):
    """``flowgrain`` with these arguments."""
    return [sys.executable, "-c", RUN, *map(str, arguments)]


def decompose_command(source, out, *more):
    """``flowgrain decompose`` of tiny-128."""
    return command("decompose", source, "--out", out, "--preset", "tiny-128", *more)


def flowgrain(*arguments, expect=0, **environment):
    """Run ``flowgrain``; its stdout and stderr as text."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=240, env={**os.environ, **environment}
    )
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def start_decompose(source, out, overrides, workers):
    """:func:`flowgrain.slices.decompose.decompose` in a process group of its own.

    The process comes from a server that has imported everything already: it begins to work at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowgrain.slices.decompose", "flowgrain.slices.presets"])
    process = context.Process(target=_decompose, args=(source, out, overrides, workers))
    process.start()
    return process


def _decompose(source, out, overrides, workers):
    os.setsid()
    decompose(source, out, config(*overrides), None, RunOptions(local_executor(workers)))


def kill_when(process, reached):
    """Kill a process of :func:`start_decompose` and its group once ``reached()``; whether it came to that."""
    while process.is_alive() and not reached():
        time.sleep(0.002)
    alive = process.is_alive()
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return alive
