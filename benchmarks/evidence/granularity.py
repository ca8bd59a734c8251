"""The experiment of Semantic Granularity Alignment (sections 4.1-4.5, Tables 1 and 2) on the embedded models.

Stages, in order: rates (the learning rate of every arm, on domains kept aside), choose-rates, table (all arms on the
reported domains), lora (the ablation with LoRA), few (16 pictures), measure (pictures on packaged encoders), report.
Every run is one cell; finished cells are in the results file and are not run again.

    python benchmarks/evidence/granularity.py table --budget 60          # go on for an hour
    python benchmarks/evidence/granularity.py --cell table/flux/dora/openmoji/tuples/seed0 --repeat
    python benchmarks/evidence/granularity.py rates --dry-run
    python benchmarks/evidence/granularity.py --quick                    # a small design, as a check of the machinery

``--repeat`` runs a cell again, compares it with the stored one and does not touch the results.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from experiment.arms import DESIGNS, STAGES, arm_of, cells_of, cuts_of, fractions_of, quick_cells, rates_path, tuned
from experiment.cells import Cell
from experiment.pool import run_and_report
from experiment.repeating import compare
from experiment.results import ROOT, append, read

RESULTS = Path(__file__).parent / "results" / "granularity.jsonl"
WORK = ROOT / "build" / "evidence"
CHOOSE, SECONDS, MEASURE, REPORT = "choose-rates", "seconds", "measure", "report"
PAGE = ROOT / "docs" / "results" / "granularity.md"
IMAGES = ROOT / "docs" / "images"


def main() -> int:
    """Run a stage, one cell, or the small check; ends with one JSON line."""
    options = _options()
    if options.quick:
        return _quick(options)
    cells = {cell.key: cell for stage in STAGES for cell in cells_of(stage, options.results)}
    cells |= {cell.key: cell for cell in quick_cells()}
    if options.cell:
        if options.cell not in cells:
            raise SystemExit(f"no cell '{options.cell}'; --dry-run with a stage lists them")
        return _one(cells[options.cell], options)
    if options.stage is None:
        raise SystemExit("name a stage (rates, choose-rates, table, ...), a --cell, or --quick")
    if options.stage == CHOOSE:
        return _choose(options)
    if options.stage == SECONDS:
        return _seconds(options)
    if options.stage == MEASURE:
        _measure([cell for key, cell in cells.items() if key in read(options.results)], options.work, options.results)
        return 0
    if options.stage == REPORT:
        return _report(options)
    wanted = [cell for cell in cells.values() if cell.stage == options.stage and options.only in cell.key]
    done = read(options.results)
    missing = [cell for cell in wanted if cell.key not in done]
    print(f"{options.stage}: {len(wanted)} cells, {len(missing)} to run", flush=True)
    if options.dry_run:
        print("\n".join(cell.key for cell in missing))
        return 0
    return _run(missing, options)


def _run(missing: list[Cell], options: argparse.Namespace) -> int:
    from experiment.domains import open_domain
    from experiment.running import prepare

    for name in dict.fromkeys(cell.domain for cell in missing):
        own = [cell for cell in missing if cell.domain == name]
        prepare(open_domain(name, options.work), {cell.images for cell in own}, options.work, cuts_of(own))
    return run_and_report("granularity", Path(__file__), [cell.key for cell in missing], options)


def _choose(options: argparse.Namespace) -> int:
    from experiment.measuring import write_json
    from experiment.rates import chosen_rates

    chosen = chosen_rates(tuned(), read(options.results))
    write_json(rates_path(options.results), chosen)
    missing = ["/".join(triple) for triple in tuned() if "/".join(triple) not in chosen["rates"]]
    print(json.dumps({"rates": chosen["rates"], "missing": missing}))
    return 0


def _seconds(options: argparse.Namespace) -> int:
    from experiment.measuring import write_json
    from experiment.seconds import seconds_over_baseline

    found = {model: seconds_over_baseline(model, 12, options.work) for model in ("flux", "sdxl")}
    write_json(options.results.with_name("seconds.json"), found)
    print(json.dumps({"seconds a slice over the baseline's": found}))
    return 0


def _report(options: argparse.Namespace) -> int:
    from experiment.granularity_report import write_report

    pictures = read(pictures_path(options.results))
    rates = json.loads(rates_path(options.results).read_text(encoding="utf-8"))
    timed = options.results.with_name("seconds.json")
    seconds = json.loads(timed.read_text(encoding="utf-8")) if timed.exists() else {}
    unused = write_report(read(options.results), pictures, rates, seconds, PAGE, IMAGES, options.work)
    print(json.dumps({"page": str(PAGE.relative_to(ROOT)), "blocks not used": unused}))
    return 0


def pictures_path(results: Path) -> Path:
    """Where measures of pictures are kept: beside the results."""
    return results.with_name(results.stem + "-pictures.jsonl")


def _one(cell: Cell, options: argparse.Namespace) -> int:
    from experiment.domains import open_domain
    from experiment.running import prepare, run, tidy

    work = options.work
    if options.repeat:
        work = Path(tempfile.mkdtemp(prefix="repeat-", dir=_made(work)))
    domain = open_domain(cell.domain, options.work)
    prepare(domain, [cell.images], work, cuts_of([cell]))
    design = DESIGNS[cell.stage]
    record = run(cell, arm_of(cell), design, domain, work)
    if options.repeat:
        print(json.dumps(compare(cell, read(options.results).get(cell.key), record)))
        return 0
    _measure([cell], work, options.results)
    append(options.results, record)
    tidy(cell, design, work)
    return 0


def _measure(cells: list[Cell], work: Path, results: Path) -> None:
    """Measure the pictures of cells that are drawn and not measured yet."""
    from experiment.domains import open_domain
    from experiment.measuring import ENCODERS, DomainMeasures, measure_cell, picture_key

    path = pictures_path(results)
    done = read(path)
    for name in dict.fromkeys(cell.domain for cell in cells):
        measures = None
        for cell in (cell for cell in cells if cell.domain == name):
            fractions = fractions_of(cell)
            missing = [f for f in fractions if picture_key(cell, f, "whole") not in done]
            if missing and measures is None:
                measures = DomainMeasures(open_domain(name, work), ENCODERS, work)
                append(path, measures.about())
            for record in measure_cell(cell, missing, measures) if missing and measures else ():
                append(path, record)


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
    parser.add_argument("stage", nargs="?", choices=[*STAGES, CHOOSE, SECONDS, MEASURE, REPORT])
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes; no cell is begun after them")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", type=Path, default=WORK, help="runs, pictures, caches")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cell", help="run this one cell here")
    parser.add_argument("--repeat", action="store_true", help="with --cell: compare with the stored result")
    parser.add_argument("--dry-run", action="store_true", help="list what is missing")
    parser.add_argument("--quick", action="store_true", help="two tiny cells in a folder that is thrown away")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
