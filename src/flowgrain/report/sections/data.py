"""What was trained on: slices in numbers, and a contact sheet."""

from flowgrain.report.arms import DataInfo, SheetRow
from flowgrain.report.figures import bar_figure
from flowgrain.report.page import Block, Figure, FigureRow, GridRow, Paragraph, PictureStrips, Section, Table
from flowgrain.report.pictures import picture_tile


def data_section(data: DataInfo) -> Section:
    """Slices by level, slices per root, the contact sheet with captions, and what was rejected."""
    total = sum(data.slices_by_level.values())
    blocks: list[Block] = [_counts(data)]
    if data.sheet:
        blocks.append(_sheet(data.sheet))
    if data.rejected:
        blocks.append(_rejected(data))
    if data.credit:
        blocks.append(Paragraph(f"Pictures: {data.credit}", "note"))
    return Section(
        "data",
        "Data",
        f"{data.name}: {data.roots} source pictures (roots) were cut into {total} slices of "
        f"{len(data.slices_by_level)} level{'s' if len(data.slices_by_level) != 1 else ''}.",
        tuple(blocks),
    )


def _counts(data: DataInfo) -> FigureRow:
    levels = ", ".join(f"{level} {count}" for level, count in data.slices_by_level.items())
    per_root = {str(k): count for k, count in data.slices_per_root.items()}
    histogram = ", ".join(f"{count} roots with {k}" for k, count in per_root.items())
    return FigureRow(
        "Slices.",
        "First how many slices each level has, then how many slices come from one root.",
        (
            Figure(
                bar_figure("Slices by level", data.slices_by_level, "level", "number of slices"),
                f"Slices by level: {levels}.",
            ),
            Figure(
                bar_figure("Slices per root", per_root, "slices cut from one root", "number of roots"),
                f"Slices per root: {histogram}.",
            ),
        ),
    )


def _sheet(sheet: tuple[SheetRow, ...]) -> PictureStrips:
    rows = tuple(
        GridRow(
            row.root,
            tuple(
                picture_tile(path, f"{level} slice of {row.root}", f"{level}: {caption}")
                for path, level, caption in row.slices
            ),
        )
        for row in sheet
    )
    return PictureStrips(
        "Contact sheet.",
        "Each box is one root with its slices from coarse to fine and the caption that each is trained with; roots "
        "are spread evenly over the data set.",
        rows,
    )


def _rejected(data: DataInfo) -> Table:
    return Table(
        "Not cut.",
        "Boxes that were found but not used, by reason.",
        ("reason", "boxes"),
        tuple((reason, str(count)) for reason, count in data.rejected.items()),
        numeric=frozenset({1}),
    )
