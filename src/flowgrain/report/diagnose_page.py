"""The page of a diagnosis, from ``diagnose.json`` alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowgrain.report import (
    diagnose_gradients,
    diagnose_interference,
    diagnose_kernel,
    diagnose_path,
    diagnose_smoothness,
)
from flowgrain.report.page import Block, Bullets, Code, Details, Numbers, Page, Paragraph, Section, Table
from flowgrain.report.wording import NONE, duration, number

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """What the page makes of one section of the file."""

    title: str
    sections: Callable[[Document], tuple[Section, ...]]
    finding: Callable[[Document], list[str]]
    """What the numbers say, one sentence each, for the summary."""


PARTS: dict[str, Part] = {
    "interference": Part("Interference of the data", diagnose_interference.sections, diagnose_interference.finding),
    "gradients": Part("Gradients of the levels", diagnose_gradients.sections, diagnose_gradients.finding),
    "kernel": Part("Local kernel", diagnose_kernel.sections, diagnose_kernel.finding),
    "path": Part("Training path", diagnose_path.sections, diagnose_path.finding),
    "smoothness": Part("Smoothness of the target", diagnose_smoothness.sections, diagnose_smoothness.finding),
}
"""By the section's name in the file, in the order of the page."""


def diagnose_page(document: Document) -> Page:
    """Summary, measured parts, and how it was made."""
    run = document["run"]
    parts = [section for name in PARTS for section in _part(document, name)]
    return Page(
        title=f"The geometry of {run['name']}",
        subtitle=f"{run['adapter']} on {run['model']}: what {run['updates_logged']} updates did, measured afterwards",
        sections=(_summary(document), *parts, _settings(document)),
    )


def summary_lines(document: Document) -> list[str]:
    """What the parts found, one sentence a line."""
    lines = []
    for name, part in PARTS.items():
        entry = document["sections"].get(name)
        if entry is not None and entry["values"] is not None:
            lines += part.finding(entry["values"])
    return lines


def _part(document: Document, name: str) -> tuple[Section, ...]:
    part = PARTS[name]
    entry = document["sections"].get(name)
    if entry is None:
        return ()
    if entry["values"] is None:
        text = f"This run cannot tell: {entry['reason']}."
        return (Section(name, part.title, "Not measured.", (Paragraph(text, "warning"),)),)
    return part.sections(entry["values"])


def _summary(document: Document) -> Section:
    run = document["run"]
    missing = [part.title for name, part in PARTS.items() if name not in document["sections"]]
    blocks: list[Block] = [
        Numbers(
            (
                (str(len(run["points"]) - 1), "checkpoints, and the model without adapter"),
                (number(run["measured_slices"], 0), "training slices" + _of_all(run)),
                (number(run["trainable_parameters"], 0), "trained parameters"),
            )
        ),
        Bullets(tuple(summary_lines(document)) or ("Nothing was measured yet.",)),
        Paragraph(
            "Intervals are 95 %, by resampling source pictures; a sentence claims no more than its interval. The "
            "paper is "
            "Semantic Granularity Alignment; its equations are named where they are used. Interference of the data "
            "(how "
            "targets overlap) is not conflict of gradients (what updates do to each other): the second has its own "
            "part.",
            "note",
        ),
    ]
    if missing:
        blocks.append(Paragraph(f"Not measured in this diagnosis: {', '.join(missing)} (--sections).", "note"))
    return Section(
        "summary", "Summary", "What was found, in words; every figure below says how to read it.", tuple(blocks)
    )


def _of_all(run: Document) -> str:
    return "" if run["measured_slices"] == run["slices"] else f" of {number(run['slices'], 0)}"


def _settings(document: Document) -> Section:
    run, config = document["run"], document["config"]
    levels = ", ".join(f"{count} {level}" for level, count in run["slices_by_level"].items())
    average = "moving average of the weights (what pictures are drawn with)" if run["moving_average"] else "the weights"
    rows = [
        ("states", ", ".join(point["name"] for point in run["points"])),
        ("weights of a checkpoint", average),
        ("adapter", run["adapter"] + ("" if run["rank"] is None else f", rank {run['rank']}")),
        ("slices by level", levels),
        ("held-out slices", NONE if run["held_out_slices"] is None else number(run["held_out_slices"], 0)),
        ("updates are made of", "whole roots" if run["grouping"] == "root" else "single slices"),
        ("device and precision", f"{run['device']}, {run['precision']}"),
        ("seed", str(config["seed"])),
        ("flowgrain", document["flowgrain"]),
    ]
    times = [
        (PARTS[name].title, duration(entry["seconds"])) for name, entry in document["sections"].items() if name in PARTS
    ]
    settings = "\n".join(f"{key}: {value}" for key, value in config.items())
    return Section(
        "settings",
        "How this was made",
        "What was measured and with which settings; diagnose.json beside this page has every number.",
        (
            Table("Run and measurement.", "What the figures are of.", ("what", "value"), tuple(rows)),
            Table("Time.", "Seconds that each part took.", ("part", "time"), tuple(times), numeric=frozenset({1})),
            Details("Settings", (Code("Settings.", "As in diagnose.json.", settings),)),
        ),
    )
