"""The experiment of Spatial Gram Alignment (Tables 1 to 7) on the embedded model.

Stages: terms (alignment terms in the diffusion model), vae (autoencoders), both (one with the other; needs the other
two). Every run is one cell; finished cells are in the results file and are not run again. Then report.

    python benchmarks/evidence/gram.py terms --budget 60            # go on for an hour
    python benchmarks/evidence/gram.py terms --dry-run              # what is missing, and how long it takes
    python benchmarks/evidence/gram.py --cell vae/f16/plain/seed0 --repeat
    python benchmarks/evidence/gram.py report
    python benchmarks/evidence/gram.py --quick                         # tiny cells, as a check of the machinery

``--repeat`` runs a cell again, compares it with the stored one and does not touch the results.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiment.cells import Cell
from experiment.domains import open_domain
from experiment.gram_design import STAGES, AnyCell, VaeCell, cells_of, quick_cells, seconds_of_cell
from experiment.pool import run_and_report
from experiment.results import ROOT, append, read

RESULTS = Path(__file__).parent / "results" / "gram.jsonl"
WORK = ROOT / "build" / "evidence"
REPORT = "report"
PAGE = ROOT / "docs" / "results" / "gram.md"
IMAGES = ROOT / "docs" / "images"
QUICK_PICTURES = 4
"""Of each style, that a quick autoencoder is measured on."""


def main() -> int:
    """Run a stage, one cell, or the small check; ends with one JSON line."""
    options = _options()
    if options.quick:
        return _quick(options)
    cells: dict[str, AnyCell] = {cell.key: cell for stage in STAGES for cell in cells_of(stage)}
    cells |= {cell.key: cell for cell in quick_cells()}
    if options.cell:
        if options.cell not in cells:
            raise SystemExit(f"no cell '{options.cell}'; --dry-run with a stage lists them")
        return _one(cells[options.cell], options)
    if options.stage is None:
        raise SystemExit(f"name a stage ({', '.join((*STAGES, REPORT))}), a --cell, or --quick")
    if options.stage == REPORT:
        return _report(options)
    wanted = [cell for cell in cells.values() if cell.stage == options.stage and options.only in cell.key]
    done = read(options.results)
    missing = [cell for cell in wanted if cell.key not in done]
    hours = sum(map(seconds_of_cell, missing)) / options.workers / 3600
    print(
        f"{options.stage}: {len(wanted)} cells, {len(missing)} to run, {hours:.1f} h by {options.workers}", flush=True
    )
    if options.dry_run:
        print("\n".join(cell.key for cell in missing))
        return 0
    return _run(missing, options)


def _run(missing: list[AnyCell], options: argparse.Namespace) -> int:
    _prepare(missing, options.work, options.results)
    return run_and_report("gram", Path(__file__), [cell.key for cell in missing], options)


def _prepare(cells: list[AnyCell], work: Path, results: Path) -> None:
    """Cut the pictures of the cells' domains, and say once what measures are worth there."""
    from experiment.running import prepare

    done = read(results)
    for name in dict.fromkeys(cell.domain for cell in cells if isinstance(cell, Cell)):
        domain = open_domain(name, work)
        prepare(domain, {cell.images for cell in cells if isinstance(cell, Cell) and cell.domain == name}, work)
        if f"about/{name}" not in done:
            from experiment.gram_running import about

            append(results, about(domain, work))


def _one(cell: AnyCell, options: argparse.Namespace) -> int:
    work = options.work
    if options.repeat:
        work = Path(tempfile.mkdtemp(prefix="repeat-", dir=_made(work)))
    record = _record(cell, work, options.work)
    if options.repeat:
        print(json.dumps(_compared(cell, read(options.results).get(cell.key), record)))
        return 0
    append(options.results, record)
    _tidy(cell, work)
    return 0


def _record(cell: AnyCell, work: Path, autoencoders: Path) -> dict[str, Any]:
    """Run a cell; tuned autoencoders are those that the stage vae left under ``autoencoders``."""
    if isinstance(cell, VaeCell):
        from experiment.gram_vae import run_vae_cell

        return run_vae_cell(cell, work, QUICK_PICTURES if cell.stage == "quick" else None)
    from experiment.gram_running import run_cell
    from experiment.running import prepare

    domain = open_domain(cell.domain, work)
    prepare(domain, [cell.images], work)
    return run_cell(cell, domain, work, autoencoders)


def _tidy(cell: AnyCell, work: Path) -> None:
    if isinstance(cell, VaeCell):
        from experiment.gram_vae import tidy_vae

        tidy_vae(cell, work)
    else:
        from experiment.gram_design import design_of
        from experiment.running import tidy

        tidy(cell, design_of(cell), work)


def _compared(cell: AnyCell, stored: dict[str, Any] | None, again: dict[str, Any]) -> dict[str, Any]:
    if isinstance(cell, VaeCell):
        from experiment.gram_vae import compare_vae

        return compare_vae(cell, stored, again)
    from experiment.repeating import compare

    return compare(cell, stored, again)


def _report(options: argparse.Namespace) -> int:
    from experiment.gram_report import write_report

    unused = write_report(read(options.results), PAGE, IMAGES, options.work)
    print(json.dumps({"page": str(PAGE.relative_to(ROOT)), "blocks not used": unused}))
    return 0


def _quick(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        options.work, options.results = Path(folder), Path(folder) / "quick.jsonl"
        return _run(quick_cells(), options)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("stage", nargs="?", choices=[*STAGES, REPORT])
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes; no cell is begun after them")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", type=Path, default=WORK, help="runs, pictures, caches")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cell", help="run this one cell here")
    parser.add_argument("--repeat", action="store_true", help="with --cell: compare with the stored result")
    parser.add_argument("--dry-run", action="store_true", help="list what is missing, and how long it takes")
    parser.add_argument("--quick", action="store_true", help="tiny cells in a folder that is thrown away")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
