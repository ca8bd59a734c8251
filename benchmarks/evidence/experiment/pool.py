"""Run many cells in single-threaded processes until they are done or the time is up; run again to go on."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PATIENCE = 0.5
_MINUTE = 60
_MALLOC = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=107374182400"
"""As in the Makefile: a CPU training step spends half of its time in mmap otherwise (docs/bundle.md)."""


def run_all(
    script: Path,
    keys: Sequence[str],
    arguments: Sequence[str],
    workers: int,
    seconds: float,
    logs: Path,
    on_done: Callable[[str, int, float], None],
) -> list[str]:
    """Run ``script --cell KEY`` for each key, ``workers`` at a time; the keys that failed.

    No cell is begun after ``seconds``. Those that run then are finished: a cell takes minutes.
    """
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    environment = {"GLIBC_TUNABLES": _MALLOC, "HF_HUB_OFFLINE": "1", **os.environ, "OMP_NUM_THREADS": "1"}
    waiting, failed = list(keys), []
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    while running or (waiting and time.monotonic() < deadline):
        while waiting and len(running) < workers and time.monotonic() < deadline:
            key = waiting.pop(0)
            log = _log(logs, key).open("wb")
            command = [sys.executable, str(script), *arguments, "--cell", key]
            running[key] = (
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment),
                time.monotonic(),
            )
            log.close()
        for key, (process, started) in list(running.items()):
            code = process.poll()
            if code is not None:
                del running[key]
                failed += [key] if code else []
                on_done(key, code, time.monotonic() - started)
        time.sleep(_PATIENCE)
    return failed


def run_and_report(evidence: str, script: Path, keys: Sequence[str], options: argparse.Namespace) -> int:
    """:func:`run_all` with a line for each cell and one of JSON at the end; the exit status of the program.

    ``options`` has work (folder), results (file), workers and budget (minutes).
    """
    finished: list[str] = []
    logs = options.work / "logs"

    def report(key: str, code: int, seconds: float) -> None:
        finished.append(key)
        state = "done" if code == 0 else f"FAILED ({code}): {last_line(logs, key)}"
        print(f"{len(finished)}/{len(keys)}  {key}  {state}  {seconds:.0f} s", flush=True)

    arguments = ["--work", str(options.work), "--results", str(options.results)]
    failed = run_all(script, keys, arguments, options.workers, options.budget * _MINUTE, logs, report)
    print(json.dumps({"evidence": evidence, "run": len(finished) - len(failed), "failed": failed}))
    return 1 if failed else 0


def last_line(logs: Path, key: str) -> str:
    """The end of what a cell said."""
    lines = _log(logs, key).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _log(logs: Path, key: str) -> Path:
    return logs / f"{key.replace('/', '_')}.log"
