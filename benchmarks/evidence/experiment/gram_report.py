"""The tables and figures of ``docs/results/gram.md``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from . import figures, gram_figures
from .claims import At, Compared, Measure, Store, level_of
from .document import fill, interval, number, table
from .domains import REPORTED
from .gram_design import (
    ALIGNED,
    ARMS,
    BASELINE,
    BOTH,
    HOST,
    LADDERS,
    OTHER,
    PAIRED,
    TERMS,
    VARIANTS,
    WAVELET,
    Kind,
    by_weight,
    prior_of,
)
from .gram_measures import (
    BANDS,
    COMPRESSION,
    COSINE,
    COSINE_VIT,
    FRECHET,
    GLCM,
    HIGH,
    KERNEL,
    KERNEL_VIT,
    LAST,
    LOSS,
    LOW,
    MAIN,
    STRUCTURE,
    TITLES,
    band,
    better,
    denoised,
    difference,
    drawn,
    open_store,
    settings_of,
    worse,
)
from .gram_vae_report import vae_blocks
from .running import BASE

LADDER = (WAVELET, *(by_weight(kind, weight) for kind, weights in LADDERS.items() for weight in weights))
PICTURES = (COSINE, COSINE_VIT, KERNEL, KERNEL_VIT, FRECHET)
BOTH_MEASURES = (*PICTURES, *STRUCTURE, denoised(HIGH, None), denoised(LOW, None))
"""Without losses: those of different latents do not compare."""


def write_report(records: Mapping[str, Any], page: Path, images: Path, work: Path) -> list[str]:
    """Fill the page's tables and draw its figures; the blocks that the page does not use."""
    images.mkdir(parents=True, exist_ok=True)
    blocks = {"cost": _cost(records), "about": _about(records)}
    store = open_store(records, TERMS)
    if store.domains(settings_of(TERMS)):
        blocks |= {
            "levels": _levels(store),
            "weights": _differences(store, TERMS, BASELINE, LADDER, (LOSS, *PICTURES)),
            "structure": _differences(store, TERMS, BASELINE, LADDER, _structure_measures()),
            "noise-levels": _differences(store, TERMS, BASELINE, LADDER, tuple(band(name) for name in BANDS)),
            "degrades": _degrades(store),
            "pull": _pull(records),
            "variants": _variants(store),
            "variants-host": _differences(store, TERMS, HOST, tuple(VARIANTS), MAIN),
        }
        gram_figures.ladders(store, _pulls(records), images / "gram-weights.png")
        _sheet(store, images, work)
    both = open_store(records, BOTH)
    if any(record.get("cell", {}).get("stage") == BOTH for record in records.values()):
        others = [name for name in PAIRED if name != BASELINE]
        blocks["both"] = _differences(both, BOTH, BASELINE, others, BOTH_MEASURES)
        blocks["both-control"] = _differences(both, BOTH, "tuned-vae", ("vae",), BOTH_MEASURES)
    blocks |= vae_blocks(records, images, work)
    return fill(page, blocks)


def _structure_measures() -> tuple[Measure, ...]:
    return (denoised(LOW, "mobilenet"), *STRUCTURE, denoised(HIGH, None), COMPRESSION, GLCM)


def _cost(records: Mapping[str, Any]) -> str:
    """Core seconds by kind of cell."""
    groups: dict[str, list[float]] = {}
    for record in records.values():
        if "core_seconds" not in record:
            continue
        cell = record["cell"]
        name = f"vae {cell['compression']}" if cell["stage"] == "vae" else cell["stage"]
        untrained = cell["arm"] in (BASE, "off-the-shelf")
        groups.setdefault(f"{name}, not trained" if untrained else name, []).append(record["core_seconds"])
    rows = [
        [name, str(len(found)), number(mean(found), 0), number(sum(found) / 3600, 1)]
        for name, found in sorted(groups.items())
    ]
    return table(["cells", "number", "core seconds each", "core hours"], rows)


def _about(records: Mapping[str, Any]) -> str:
    found = [record for key, record in sorted(records.items()) if key.startswith("about/")]
    rows = [[r["key"].removeprefix("about/"), str(r["references"]), str(r["candidates"])] for r in found]
    return table(["domain", "real pictures that distances are to", "held-out ones"], rows)


def _levels(store: Store) -> str:
    """Means themselves, of every arm."""
    measures = (LOSS, *PICTURES, *STRUCTURE, denoised(HIGH, None), COMPRESSION, GLCM)
    rows = []
    for arm in (BASE, *ARMS):
        values = [level_of(store, settings_of(TERMS), At(arm, LAST), measure) for measure in measures]
        if any(value is not None for value in values):
            rows.append([arm, *(number(v, min(m.digits, 4)) for v, m in zip(values, measures, strict=True))])
    return table(["arm", *(measure.name for measure in measures)], rows)


def _differences(store: Store, stage: str, first: str, arms: Sequence[str], measures: Sequence[Measure]) -> str:
    rows = []
    for arm in arms:
        found = [difference(store, stage, first, arm, measure) for measure in measures]
        if any(found):
            rows.append([arm, *("" if one is None else _cell(one) for one in found)])
    names = [f"{m.name} ({m.better} is better)" for m in measures]
    return table([f"less {first}", *names], rows)


def _cell(one: Compared) -> str:
    sign = 1 if one.measure.better == "higher" else -1
    ahead = sum(sign * part.value > 0 for part in one.by_domain.values())
    return f"{interval(one.whole, min(one.measure.digits, 4))}, {ahead} of {len(one.by_domain)}"


def _degrades(store: Store) -> str:
    """By measure and kind: the weights at which an arm is behind the baseline, and at which it is ahead."""
    rows = []
    for measure in MAIN:
        row = [measure.name]
        for kind, weights in LADDERS.items():
            found = {w: difference(store, TERMS, BASELINE, by_weight(kind, w), measure) for w in weights}
            known = {weight: one for weight, one in found.items() if one is not None}
            behind = ", ".join(f"{weight:g}" for weight, one in known.items() if worse(one)) or "none"
            ahead = ", ".join(f"{weight:g}" for weight, one in known.items() if better(one)) or "none"
            row += [behind if known else "", ahead if known else ""]
        rows.append(row)
    titles = [f"{kind} {side}" for kind in LADDERS for side in ("behind at", "ahead at")]
    return table(["measure", *titles], rows)


def _pulls(records: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Arm -> means over domains of the pull's ratio and cosine, at start and end."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records.values():
        if "pull" in record and record["cell"]["stage"] == TERMS:
            found.setdefault(record["cell"]["arm"], []).append(record["pull"])
    return {
        arm: {
            f"{when} {what}": mean(one[when][what] for one in parts)
            for when in ("start", "end")
            for what in ("ratio", "cosine")
        }
        for arm, parts in found.items()
    }


def _pull(records: Mapping[str, Any]) -> str:
    pulls, rows = _pulls(records), []
    for arm, values in sorted(pulls.items(), key=lambda item: list(ARMS).index(item[0])):
        watched = [r["watched"] for r in records.values() if r.get("cell", {}).get("arm") == arm and "watched" in r]
        kind: Kind = ALIGNED[arm].kind
        last = [mean(one[name] for one in watched) for name in (kind, f"{kind}.similarity")]
        rows.append([arm, *(number(values[key], 3) for key in values), *(number(value, 3) for value in last)])
    header = ["arm", "pull at the start", "its cosine", "pull at the end", "its cosine", "term's value at the end",
              "similarity to the prior at the end"]  # fmt: skip
    return table(header, rows)


def _variants(store: Store) -> str:
    """Priors, taps and grids against the baseline; structure in the encoder that the arm did not train with."""
    measures = (LOSS, *PICTURES)
    rows = []
    for arm in (HOST, *VARIANTS):
        unseen = OTHER[prior_of(arm) or ""]
        own = (*measures, denoised(HIGH, unseen), drawn(unseen))
        found = [difference(store, TERMS, BASELINE, arm, measure) for measure in own]
        if any(found):
            rows.append([arm, *("" if one is None else _cell(one) for one in found), TITLES[unseen]])
    names = [f"{m.name} ({m.better} is better)" for m in measures]
    structure = [f"denoised from {HIGH:g}: structure", "drawn: structure", "structure in"]
    return table([f"less {BASELINE}", *names, *structure], rows)


def _sheet(store: Store, images: Path, work: Path) -> None:
    from .domains import open_domain
    from .measuring import drawn_pictures
    from .running import held_out_picture, pictures_folder

    shown = (BASE, BASELINE, by_weight("gram", 2.5), by_weight("gram", 12.5), by_weight("irepa", 0.5),
             by_weight("irepa", 2.5), by_weight("irepa", 12.5), by_weight("repa", 2.5))  # fmt: skip
    rows: list[tuple[str, list[Path | None]]] = []
    for name in REPORTED:
        domain = open_domain(name, work)
        cells = [store.cells(settings_of(TERMS), name, arm).get(0) for arm in shown]
        folders = [
            pictures_folder(cell, work, None if cell.arm == BASE else LAST) for cell in cells if cell is not None
        ]
        if len(folders) < len(shown) or not all(folder.exists() for folder in folders):
            continue
        kept = [drawn_pictures(folder, domain)["whole"] for folder in folders]
        for place, prompt in enumerate(domain.shown_prompts[:3]):
            files = [one.files[one.prompts.index(prompt) + place % 5] for one in kept]
            rows.append((prompt, [held_out_picture(domain, work, prompt), *files]))
    if rows:
        figures.sheet(rows, ["real", *shown], images / "gram-sheet.png")
