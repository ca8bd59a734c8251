"""An inspection as text for a terminal, as JSON for programs and as an HTML page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

from flowgrain.check.findings import Finding, Inspection
from flowgrain.report.page import Block, Bullets, Page, Paragraph, Section, Table
from flowgrain.report.wording import duration

_SHOWN_FILES = 5


def as_json(inspection: Inspection) -> str:
    """All facts and findings, every file listed."""
    return json.dumps(asdict(inspection), indent=2, ensure_ascii=False) + "\n"


def as_text(inspection: Inspection) -> str:
    """A page of text; of long lists of files the first few, the JSON form has all."""
    lines = [f"check of {inspection.subject}", ""]
    for title, items in facts(inspection):
        lines += [f"{title}:", *(f"  {item}" for item in items), ""]
    lines.append("findings:" if inspection.findings else "findings: none")
    for finding in inspection.findings:
        lines.append(f"  {finding.severity}: {finding.message}")
        lines += [f"    {name}" for name in _files(finding)]
    return "\n".join(lines) + "\n"


def as_page(inspection: Inspection, more: Sequence[Section] = ()) -> Page:
    """The same as a page of the report, with sections that only a page can hold."""
    return Page(
        title="Data check",
        subtitle=inspection.subject,
        sections=(
            Section(
                "findings", "Findings", "Every problem with the files that it is about, the gravest first.",
                tuple(_finding_blocks(inspection)),
            ),
            Section(
                "arithmetic", "Arithmetic", "From images to slices, to updates, to the end of the budget.",
                (*(Bullets(tuple(items)) for _, items in facts(inspection)),),
            ),
            Section(
                "shapes", "Shapes", "Slices of one shape share micro-batches; rare shapes make small ones.",
                (_bucket_table(inspection),),
            ),
            *more,
        ),
    )  # fmt: skip


def facts(inspection: Inspection) -> Iterator[tuple[str, list[str]]]:
    """Titled lists of sentences with numbers."""
    yield "data", list(_data_facts(inspection))
    if inspection.schedule is not None:
        yield "updates", list(_schedule_facts(inspection))
    yield (
        "shapes",
        [
            f"{row.width}x{row.height}: {row.slices} slices ("
            + ", ".join(f"{count} {level}" for level, count in row.by_level.items())
            + ")"
            for row in inspection.buckets
        ],
    )
    yield "disk", list(_storage_facts(inspection))


def _data_facts(inspection: Inspection) -> Iterator[str]:
    counts = inspection.arithmetic
    yield f"{counts.images + counts.held_out_images + counts.quarantined} pictures found"
    if counts.quarantined:
        yield f"- {counts.quarantined} unreadable, left out"
    if counts.held_out_images:
        yield f"- {counts.held_out_images} held out ({counts.held_out_slices} slices)"
    yield f"= {counts.images} pictures to train on"
    levels = ", ".join(f"{count} {level}" for level, count in counts.slices_by_level.items())
    if counts.distinct_slices != counts.slices:
        yield f"= {counts.distinct_slices} slices, with their repeats {counts.slices}"
    yield f"= {counts.roots} roots, {counts.slices} slices ({levels})"
    sizes = ", ".join(f"{count} roots of {size}" for size, count in counts.roots_by_size.items())
    yield f"slices per root: {sizes}"
    if len(counts.slices_by_source) > 1:
        yield "by source: " + ", ".join(f"{name} {count}" for name, count in counts.slices_by_source.items())


def _schedule_facts(inspection: Inspection) -> Iterator[str]:
    plan = inspection.schedule
    if plan is None:
        return
    yield f"{plan.units} {plan.unit} / {plan.batch_size} an update = {plan.updates} updates an epoch"
    if plan.last_update_units != plan.batch_size:
        yield f"the last update of an epoch has {plan.last_update_units} {plan.unit}"
    if plan.dropped_slices:
        yield f"{plan.dropped_slices} slices are not used in an epoch (tuples.drop_last); others the next time"
    yield (f"{plan.micro_batches} micro-batches of at most {plan.micro_batch} slices, filled to {plan.fill:.0%}")
    if plan.epochs is not None and plan.total_updates is not None and plan.total_slices is not None:
        yield (
            f"budget: {plan.epochs:.1f} epochs = {plan.total_updates:.0f} updates = "
            f"{plan.total_slices:.0f} slice passes"
        )
    if plan.seconds is not None:
        yield f"training time: {duration(plan.seconds)}"
    elif plan.epochs is not None:
        yield "training time: not known before one update ran; 'flowgrain train RECIPE --trial-update' measures it"


def _storage_facts(inspection: Inspection) -> Iterator[str]:
    disk = inspection.storage
    where = f"in {disk.cache_folder}" if disk.cache_folder else "in memory"
    yield f"encoded pictures: at most {size(disk.latents)} {where}"
    if disk.embeddings is not None:
        yield f"encoded captions: about {size(disk.embeddings)} {where}"
    if disk.checkpoint is not None and disk.checkpoints is not None:
        total = size(disk.checkpoint * disk.checkpoints)
        yield f"checkpoints: {size(disk.checkpoint)} each, at most {disk.checkpoints} kept = {total}"
    yield f"free on the disk: {size(disk.free)}"


def size(count: int) -> str:
    """Bytes in the binary unit that fits."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _files(finding: Finding) -> list[str]:
    shown = list(islice(finding.files, _SHOWN_FILES))
    rest = len(finding.files) - len(shown)
    return [*shown, f"... and {rest} more"] if rest else shown


def _finding_blocks(inspection: Inspection) -> Iterator[Block]:
    if not inspection.findings:
        yield Paragraph("Nothing to report.")
    for finding in inspection.findings:
        tone = "plain" if finding.severity == "note" else "warning"
        yield Paragraph(f"{finding.severity.capitalize()}: {finding.message}", tone)
        if finding.files:
            yield Bullets(finding.files)


def _bucket_table(inspection: Inspection) -> Table:
    levels = tuple(inspection.arithmetic.slices_by_level)
    rows = tuple(
        (f"{row.width}x{row.height}", str(row.slices), *(str(row.by_level.get(level, 0)) for level in levels))
        for row in inspection.buckets
    )
    return Table(
        "Slices by shape.", "Width and height in pixels, then how many slices have that shape, by level.",
        ("shape", "slices", *levels), rows, numeric=frozenset(range(1, 2 + len(levels))),
    )  # fmt: skip
