"""The data report of a decomposed data set: one page that says what is in it and where it wastes pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from flowgrain.config import Config
from flowgrain.files import atomic_write_text, atomic_writer
from flowgrain.report.page import Page, without_empty
from flowgrain.report.sections.slices_captions import captions_section
from flowgrain.report.sections.slices_counts import counts_section
from flowgrain.report.sections.slices_duplicates import duplicates_section
from flowgrain.report.sections.slices_forecast import forecast_section
from flowgrain.report.sections.slices_rejects import rejects_section
from flowgrain.report.sections.slices_roots import roots_section
from flowgrain.report.sections.slices_settings import settings_section
from flowgrain.report.sections.slices_sizes import sizes_section
from flowgrain.report.sections.slices_summary import summary_section
from flowgrain.report.slices_tiles import Tiles, plain
from flowgrain.report.wording import counted, number
from flowgrain.slices.advice import advise
from flowgrain.slices.advising import Advice
from flowgrain.slices.duplicates import near_groups
from flowgrain.slices.statistics import Statistics, read_statistics, views_at
from flowgrain.slices.store import STATE
from flowgrain.slices.tuning import Forecast

REPORT_NAME = "report.html"
_NOTES = "report.json"


class RunNotes(Config):
    """What the records of a data set do not say of the run that made it; kept beside them."""

    origins: dict[str, str] | None = Field(default=None, description="where each setting came from, by dotted key")
    forecast: Forecast | None = Field(default=None, description="of a sample: what all images would take")


def write_slices_page(
    folder: Path, notes: RunNotes | None = None, *, out: Path | None = None, title: str | None = None
) -> Path:
    """Write ``DATASET/report.html`` (or ``out``) from a data set's records; returns where.

    ``notes`` of the run that has just ended are remembered for later calls without. The same data set gives the same
    bytes. Raises :class:`flowgrain.errors.DataError` where the folder holds no finished data set.
    """
    if notes is not None:
        atomic_write_text(folder / STATE / _NOTES, notes.model_dump_json() + "\n")
    page = slices_page(folder, notes or _recalled(folder), title)
    path = out or folder / REPORT_NAME
    with atomic_writer(path) as stream:
        stream.write(page.render().encode("utf-8", "replace"))
    return path


def slices_page(folder: Path, notes: RunNotes, title: str | None = None) -> Page:
    """The page. Raises :class:`flowgrain.errors.DataError` where the folder holds no finished data set."""
    statistics, about = read_statistics(folder)
    groups = near_groups(
        np.frombuffer(statistics.hashes, dtype=np.uint64),
        np.frombuffer(statistics.owners, dtype=np.uint32).astype(np.int64),
    )
    views = views_at(folder, statistics, (place for group in groups.groups for place in group.members))
    twins = tuple(views[place] for place in groups.groups[0].members) if groups.count else ()
    forecast = notes.forecast
    factor = forecast.images / forecast.sampled if forecast is not None else 1.0
    tiles = Tiles(folder)
    advice = (*_gaps(statistics, about), *advise(statistics, groups, twins, factor))
    sections = [
        None if forecast is None else forecast_section(statistics, forecast),
        summary_section(statistics, advice, tiles),
        roots_section(statistics, advice, tiles),
        counts_section(statistics),
        sizes_section(statistics, tiles),
        rejects_section(statistics, tiles),
        duplicates_section(statistics, groups, views, tiles),
        captions_section(statistics, tiles),
        settings_section(statistics.config, about, notes.origins),
    ]
    if tiles.missing:
        sections[1] = summary_section(statistics, (_missing(tiles), *advice), tiles)
    name = plain(str(about.get("source", "")))
    return Page(
        title or f"Slices of {name}",
        f"{counted(statistics.images, 'image')} cut into {counted(statistics.slices, 'slice')} of "
        f"{counted(len(statistics.levels), 'level')}.",
        without_empty(sections),
    )


def _gaps(statistics: Statistics, about: Mapping[str, object]) -> tuple[Advice, ...]:
    """A warning where the records are not those that the manifest was written from."""
    counts = about.get("counts")
    told = counts.get("images") if isinstance(counts, dict) else None
    if told in (None, statistics.images):
        return ()
    return (
        Advice(
            "unfinished",
            "the data set is not finished",
            f"The manifest speaks of {told} images, {number(statistics.images, 0)} are recorded: a run was interrupted "
            "or is under way.",
            "Run the same decompose command again; it goes on where it stopped.",
        ),
    )


def _missing(tiles: Tiles) -> Advice:
    names = ", ".join(dict.fromkeys(tiles.missing[:3]))
    return Advice(
        "missing_files",
        f"{number(len(tiles.missing), 0)} of {number(tiles.shown, 0)} slice files looked at are missing or damaged",
        f"For example {names}.",
        "Run the same decompose command again; it writes what is not there.",
    )


def _recalled(folder: Path) -> RunNotes:
    try:
        return RunNotes.model_validate_json((folder / STATE / _NOTES).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return RunNotes()  # made by a program, not by the command line, or by another version
