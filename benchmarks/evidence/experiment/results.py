"""The results file: one JSON line a run, appended whole or not at all, the last line of a key counts."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record, synced; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(line.encode())
        stream.flush()
        os.fsync(stream.fileno())


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Records by key; a line that a crash cut short is left out."""
    records: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            records[record["key"]] = record
    return records


def rewrite(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One line a key, sorted by key: what is committed."""
    ordered = sorted(records, key=lambda record: record["key"])
    text = "".join(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in ordered)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@cache
def code_version() -> dict[str, str]:
    """Commit of the code, with ``+`` where files of the package or the evidence differ from it, and libraries."""
    commit = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    changed = bool(_git("status", "--porcelain", "--", "src", "benchmarks/evidence", ":!benchmarks/evidence/results"))
    libraries = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {"commit": commit + ("+" if changed else ""), **libraries}


def _git(*arguments: str) -> str:
    outcome = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return outcome.stdout.strip()
