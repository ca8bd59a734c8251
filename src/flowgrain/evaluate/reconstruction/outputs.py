"""The files of a measurement: the metric table, a line for each picture, and the sheet of extremes."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flowgrain.data.images import open_image
from flowgrain.evaluate.reconstruction.base import PairScore
from flowgrain.evaluate.reconstruction.folder import Source
from flowgrain.evaluate.reconstruction.measure import ArmValues
from flowgrain.evaluate.reconstruction.pictures import Preparation
from flowgrain.evaluate.reconstruction.sheet import Example, reconstruction_sheet
from flowgrain.evaluate.results import MetricTable, write_results
from flowgrain.files import atomic_write_bytes, atomic_write_text

PICTURES_NAME, SHEET_NAME = "pictures.csv", "sheet.png"
EXTREMES = 4
"""Worst and best pictures on the sheet, each."""


def write_outputs(
    out: Path,
    table: MetricTable,
    arms: Mapping[str, ArmValues],
    folders: Mapping[str, Path],
    sources: Sequence[Source],
    preparation: Preparation,
    ranked_by: PairScore,
) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``metrics.md``, ``pictures.csv`` and ``sheet.png`` into ``out``.

    ``ranked_by`` decides which pictures the sheet shows; ``sources`` are in the order of every arm's rows.
    """
    write_results(out, table)
    atomic_write_text(out / PICTURES_NAME, picture_lines(arms))
    order = ranking(arms, ranked_by)
    shown = min(EXTREMES, len(order) // 2)
    worst, best = ([sources[row] for row in rows] for rows in (order[:shown], order[::-1][:shown]))

    def example(source: Source) -> Example:
        row = next(iter(arms.values())).keys.index(source.key)
        return Example(
            title=source.key,
            original=preparation(open_image(source.path)),
            reconstructions=[open_image(folders[arm] / source.reconstruction) for arm in arms],
            captions=[_caption(values, row) for values in arms.values()],
        )

    sheet = reconstruction_sheet(
        list(arms), [example(source) for source in worst], [example(source) for source in best], ranked_by.title
    )
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    atomic_write_bytes(out / SHEET_NAME, buffer.getvalue())


def ranking(arms: Mapping[str, ArmValues], score: PairScore) -> list[int]:
    """Rows from the worst to the best by the mean of a score over arms; undefined ones are left out."""
    values: Float[np.ndarray, " n"] = np.mean([rows.values[score.title] for rows in arms.values()], axis=0)
    order = np.argsort(values if score.higher_is_better else -values, kind="stable")
    return [int(row) for row in order if not np.isnan(values[row])]


def picture_lines(arms: Mapping[str, ArmValues]) -> str:
    """CSV with a line for every arm and picture and a column for every score."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    titles = list(next(iter(arms.values())).values)
    writer.writerow(["arm", "picture", *titles])
    for arm, rows in arms.items():
        for row, key in enumerate(rows.keys):
            writer.writerow([arm, key, *(repr(float(rows.values[title][row])) for title in titles)])
    return stream.getvalue()


def _caption(arm: ArmValues, row: int) -> str:
    pixels = "  ".join(f"{title} {arm.values[title][row]:.4g}" for title in ("PSNR", "SSIM") if title in arm.values)
    distances = "  ".join(f"{title} {values[row]:.4g}" for title, values in arm.values.items() if "LPIPS" in title)
    return f"{pixels}\n{distances}"
