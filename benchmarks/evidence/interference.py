"""The geometry of the granularity experiment: interference, conflict and oscillation of its arms.

Measures the finished runs of ``granularity.py`` (its stage ``table``; their adapters lie in the work folder), a domain
at a time; what is done is not done again. Then ``report`` fills docs/results/interference.md.

    python benchmarks/evidence/interference.py fields --work build/evidence
    python benchmarks/evidence/interference.py gradients --work build/evidence
    python benchmarks/evidence/interference.py report
    python benchmarks/evidence/interference.py --quick          # two small runs, as a check of the machinery
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from experiment.arms import BASE, arm_of, cells_of, cuts_of
from experiment.cells import Cell
from experiment.domains import REPORTED, open_domain
from experiment.geometry_runs import HOST, measure_fields, measure_level_gradients, open_host
from experiment.results import ROOT, append, code_version, read
from experiment.running import Design, prepare, run

RESULTS = Path(__file__).parent / "results" / "interference.jsonl"
RUNS = Path(__file__).parent / "results" / "granularity.jsonl"
WORK = ROOT / "build" / "evidence"
PAGE = ROOT / "docs" / "results" / "interference.md"
IMAGES = ROOT / "docs" / "images"
QUERIES, UPDATES = 24, 8
MEASURES: dict[str, Callable[..., dict[str, Any]]] = {"fields": measure_fields, "gradients": measure_level_gradients}


def main() -> int:
    """Measure, or write the report; ends with one JSON line."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.quick:
        return _quick()
    if options.what == "report":
        from experiment.geometry_report import write_report

        unused = write_report(read(options.results), read(options.runs), PAGE, IMAGES)
        print(json.dumps({"page": str(PAGE.relative_to(ROOT)), "blocks not used": unused}))
        return 0
    started, done = time.monotonic(), []
    for domain in REPORTED:
        cells = _finished(domain, options.runs)
        key = f"{options.what}/{domain}"
        known = read(options.results).get(key, {}).get("runs")
        if cells and known != [cell.key for cell in cells] and time.monotonic() - started < options.budget * 60:
            append(options.results, _measured(key, options.what, cells, options.work, QUERIES, UPDATES))
            done.append(key)
    print(json.dumps({"evidence": "interference", "measured": done}))
    return 0


def _finished(domain: str, runs: Path) -> list[Cell]:
    """Trained cells of the table on the flow-matching model that have a result."""
    done = read(runs)
    cells = [cell for cell in cells_of("table", runs) if (cell.model, cell.domain) == ("flux", domain)]
    return [cell for cell in cells if cell.arm != BASE and cell.key in done]


def _measured(key: str, what: str, cells: list[Cell], work: Path, queries: int, updates: int) -> dict[str, Any]:
    host = next((cell for cell in cells if cell.arm == HOST), None)
    if host is None:
        raise SystemExit(f"{key}: no finished run of the arm {HOST}, in which the others are measured")
    opened = open_host(host, cells, work, queries, updates)
    values = MEASURES[what](opened)
    return {"key": key, "runs": [cell.key for cell in cells], "code": code_version(), "values": values}


def _quick() -> int:
    """Two runs of 48 slices on 8 pictures, then both measures with little of everything."""
    design = Design(48, (1.0,))
    cells = [Cell("quick", "flux", "dora", "openmoji", arm, 0, 8) for arm in (HOST, "baseline")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        domain = open_domain("openmoji", work)
        prepare(domain, [8], work, cuts_of(cells))
        for cell in cells:
            run(cell, arm_of(cell), design, domain, work)
        found = {what: _measured(what, what, cells, work, 2, 2)["values"] for what in MEASURES}
    print(json.dumps({"evidence": "interference", "points": found["fields"]["points"], **{
        name: values["cosines"] for name, values in found["gradients"].items()}}))  # fmt: skip
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", nargs="?", choices=[*MEASURES, "report"])
    parser.add_argument("--work", type=Path, default=WORK, help="runs, pictures, caches")
    parser.add_argument("--runs", type=Path, default=RUNS, help="results of granularity.py")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--budget", type=float, default=600.0, help="minutes; no domain is begun after them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two tiny runs in a folder that is thrown away")
    options = parser.parse_args()
    if options.what is None and not options.quick:
        parser.error("name what to measure (fields, gradients), report, or --quick")
    return options


if __name__ == "__main__":
    sys.exit(main())
