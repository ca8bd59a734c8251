"""The tables and figures of ``docs/results/granularity.md``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import figures
from .arms import ABLATED, ARMS, BASE, CHECKPOINTS, CONFIRMED, FEW, IMPROVED, N1, VARIED, adapter_of
from .cells import Model
from .claims import (
    CLOSE,
    DETAIL,
    LOSSES,
    MEASURES,
    WHOLE,
    At,
    Compared,
    Measure,
    Setting,
    Store,
    compare,
    compare_all,
    level_of,
)
from .document import fill, interval, number, table
from .domains import REPORTED
from .measuring import ENCODERS
from .ranking import DIMENSION, rank_by_encoder
from .settings_report import against, seconds_blocks

FLUX, SDXL = Setting("table", "flux", "dora"), Setting("table", "sdxl", "lora")
LORA = Setting("lora", "flux", "lora")
SETTINGS: dict[str, Setting] = {"flux": FLUX, "sdxl": SDXL, "flux-lora": LORA}
SHOWN = (LOSSES[0], LOSSES[2], WHOLE[0], WHOLE[1], WHOLE[3], CLOSE[0])
"""Measures of the tables of comparisons; the heat maps hold all."""

COMPARISONS: dict[str, tuple[At, At]] = {
    "full 1x against baseline 1.5x": (At("baseline", 1.5), At("full", 1.0)),
    "full against baseline": (At("baseline", 1.0), At("full", 1.0)),
    "full against baseline, 1.5x": (At("baseline", 1.5), At("full", 1.5)),
    "full at small updates against baseline": (At("baseline", 1.0), At("full-small", 1.0)),
    "full against baseline at equal whole-picture passes": (At("baseline", 0.5), At("full", 1.5)),
    "slices against baseline": (At("baseline", 1.0), At("slices", 1.0)),
    "slices against baseline at equal whole-picture passes": (At("baseline", 0.5), At("slices", 1.5)),
    "tuples against random slices (24 an update)": (At("slices-large", 1.0), At("tuples", 1.0)),
    "tuples against tuples of unrelated roots": (At("unrelated", 1.0), At("tuples", 1.0)),
    "tuples against random slices (8 or 9 an update)": (At("slices", 1.0), At("tuples-small", 1.0)),
    "24 random slices an update against 8": (At("slices", 1.0), At("slices-large", 1.0)),
    "modulation without tuples": (At("slices", 1.0), At("modulation", 1.0)),
    "modulation with tuples (24 an update)": (At("tuples", 1.0), At("full", 1.0)),
    "modulation with tuples (9 an update)": (At("tuples-small", 1.0), At("full-small", 1.0)),
    "improved settings against full at small updates": (At("full-small", 1.0), At(IMPROVED, 1.0)),
    "improved settings against baseline": (At("baseline", 1.0), At(IMPROVED, 1.0)),
    "full against w/o tuples": (At("modulation", 1.0), At("full", 1.0)),
}
"""First, then second; differences are second less first. At 1.0 N1 where nothing else is said."""

FOUR = (At("baseline", 1.0), At("baseline", 1.5), At("full", 1.0), At("full", 1.5))
"""What the paper's raters ranked (section 4.3)."""
ABLATION = (At("full", 1.0), At("modulation", 1.0), At("tuples", 1.0))
"""Table 2: full, w/o tuple-wise optimization, w/o scale-adaptive modulation."""


def write_report(
    records: Mapping[str, Any],
    pictures: Mapping[str, Any],
    rates: Mapping[str, Any],
    seconds: Mapping[str, Any],
    page: Path,
    images: Path,
    work: Path,
) -> list[str]:
    """Fill the page's tables and draw its figures; the blocks that the page does not use."""
    store = Store(records, pictures)
    blocks = {"rates": _rates(rates), "about": _about(pictures)}
    images.mkdir(parents=True, exist_ok=True)
    for name, setting in SETTINGS.items():
        if not store.domains(setting):
            continue
        blocks[f"losses-{name}"] = _losses(store, setting, rates["rates"])
        blocks[f"pictures-{name}"] = _pictures(store, setting)
        found = {title: compare_all(store, setting, [pair], SHOWN) for title, pair in COMPARISONS.items()}
        found = {title: parts for title, parts in found.items() if parts}
        blocks[f"claims-{name}"] = _claims(found)
        blocks[f"first-{name}"] = _first_places(store, setting, FOUR)
        blocks[f"ablation-{name}"] = _first_places(store, setting, ABLATION)
        _draw(store, setting, name, found, images)
    for model in ("flux", "sdxl"):
        setting = Setting("few", model, adapter_of(model))
        if store.domains(setting):
            blocks[f"few-{model}"] = _few(store, setting)
    tried = {"vary": tuple(VARIED), "confirm": tuple(CONFIRMED)}
    for stage, arms in tried.items():
        setting = Setting(stage, "flux", "dora")
        if store.domains(setting):
            blocks[stage] = against(store, setting, "full-small", arms)
    blocks |= seconds_blocks(store, SETTINGS, seconds)
    _sheets(store, images, work)
    return fill(page, blocks)


def _rates(rates: Mapping[str, Any]) -> str:
    rows = []
    for name, losses in rates["losses"].items():
        chosen = f"{rates['rates'][name]:g}"
        tried = {rate: f"{rate}: {number(losses[rate]['macro'], 4)}" for rate in sorted(losses, key=float)}
        tried[chosen] = f"**{tried[chosen]}**"
        everything = min(losses, key=lambda rate: float(np.mean(list(losses[rate].values()))))
        rows.append([name.replace("/", ", "), ", ".join(tried.values()), everything])
    return table(["model, adapter, arm", "macro loss by learning rate", "best by all levels"], rows)


def _about(pictures: Mapping[str, Any]) -> str:
    found = [record for key, record in sorted(pictures.items()) if key.startswith("about/")]
    rows = [
        [
            record["key"].removeprefix("about/"),
            str(record["references"]),
            number(record["real_alignment"], 3),
            f"{record['real_retrieval_top5']:.0%} of {record['candidates']}",
        ]
        for record in found
    ]
    return table(["domain", "real pictures", "their prompt alignment", "own caption among the nearest five"], rows)


def _losses(store: Store, setting: Setting, rates: Mapping[str, float]) -> str:
    rows = []
    for arm in ARMS[setting.model]:
        cells = [cell for d in store.domains(setting) for cell in store.cells(setting, d, arm).values()]
        if not cells:
            continue
        records = [store.records[cell.key] for cell in cells]
        last = records[0]["validation"][-1]["slices"]
        values = [number(level_of(store, setting, At(arm, f), m), 4) for f in (1.0, 1.5) for m in LOSSES]
        seconds = np.median([record["training_seconds"] / last for record in records])
        rate = rates.get(f"{setting.model}/{setting.adapter}/{arm}")
        rows.append(
            [arm, f"{last / records[0]['updates']:.1f}", "" if rate is None else f"{rate:g}", *values,
             f"{len(cells)}", f"{seconds:.3f}"]
        )  # fmt: skip
    levels = ["macro", "meso", "micro"]
    header = ["arm", "slices an update", "rate", *(f"{m} 1x" for m in levels), *(f"{m} 1.5x" for m in levels)]
    return table([*header, "runs", "s a slice"], rows)


def _pictures(store: Store, setting: Setting) -> str:
    measures = (*WHOLE, *CLOSE, *DETAIL)
    columns = [At(arm, fraction) for arm in ARMS[setting.model] for fraction in (1.0, 1.5)]
    columns = [at for at in columns if level_of(store, setting, at, WHOLE[0]) is not None]
    columns = [at for at in columns if at.fraction == 1.0 or at.arm in ("baseline", "full")]
    rows = [
        [measure.name, *(number(level_of(store, setting, at, measure), min(measure.digits, 3)) for at in columns)]
        for measure in measures
    ]
    return table(["measure", *map(str, columns)], rows)


def _claims(found: Mapping[str, Sequence[Compared]]) -> str:
    rows = [
        [title, *(next((_cell(one) for one in parts if one.measure == m), "") for m in SHOWN)]
        for title, parts in found.items()
    ]
    names = [f"{m.name} ({'lower' if m.better == 'lower' else 'higher'} is better)" for m in SHOWN]
    return table(["second against first: second less first", *names], rows)


def _cell(one: Compared) -> str:
    sign = 1 if one.measure.better == "higher" else -1
    better = sum(sign * part.value > 0 for part in one.by_domain.values())
    return f"{interval(one.whole, min(one.measure.digits, 4))}, {better} of {len(one.by_domain)}"


def _first_places(store: Store, setting: Setting, variants: Sequence[At]) -> str:
    rows = []
    for encoder in ENCODERS:
        summary = rank_by_encoder(store, setting, variants, encoder)
        if summary is None:
            continue
        groups = {"all": summary.first_place[DIMENSION], **summary.first_place_by_dataset[DIMENSION]}
        for name, rates in groups.items():
            shown = [
                f"{rates[str(at)].value:.0%}"
                + ("" if rates[str(at)].low is None else f" [{rates[str(at)].low:.0%}, {rates[str(at)].high:.0%}]")
                for at in variants
            ]
            rows.append([f"{encoder}, {name}", *shown])
    return table(["ranked by, domain", *map(str, variants)], rows)


def _few(store: Store, setting: Setting) -> str:
    rows = []
    for arm in FEW:
        at = [At(arm, fraction) for fraction in CHECKPOINTS]
        losses = [number(level_of(store, setting, one, LOSSES[0]), 4) for one in at]
        micro = number(level_of(store, setting, At(arm, 1.0), LOSSES[2]), 4)
        cosine = number(level_of(store, setting, At(arm, 1.0), WHOLE[0]), 3)
        rows.append([arm, *losses, micro, cosine])
    pairs = {"full less baseline, best macro loss of the curve": _best_difference(store, setting)}
    text = table(["arm", *(f"macro {fraction:g}x" for fraction in CHECKPOINTS), "micro 1x", "own cosine 1x"], rows)
    return text + "\n\n" + "\n".join(f"{title}: {value}." for title, value in pairs.items() if value)


def _best_difference(store: Store, setting: Setting) -> str | None:
    """Every arm at its own best checkpoint, chosen on the same held-out pictures for both."""
    best = {}
    for arm in ("baseline", "full"):
        found = {f: level_of(store, setting, At(arm, f), LOSSES[0]) for f in CHECKPOINTS}
        known = {f: value for f, value in found.items() if value is not None}
        if not known:
            return None
        best[arm] = At(arm, min(known, key=lambda f: known[f]))
    one = compare(store, setting, best["baseline"], best["full"], LOSSES[0])
    return None if one is None else f"{interval(one.whole, 5)} ({best['full']} against {best['baseline']})"


def _draw(store: Store, setting: Setting, name: str, found: Mapping[str, Sequence[Compared]], images: Path) -> None:
    for title, slug in (("full against baseline", "equal"), ("full 1x against baseline 1.5x", "efficient")):
        parts = compare_all(store, setting, [COMPARISONS[title]], MEASURES)
        if parts:
            figures.heat_map(parts, f"{setting.model}: {title}", images / f"granularity-{name}-{slug}.png")
    if found:
        figures.effects(found, images / f"granularity-{name}-effects.png")
    arms = ABLATED if setting is LORA else tuple(ARMS[setting.model])
    panels = {
        f"{setting.model}: {measure.name}": {arm: _curve(store, setting, arm, measure) for arm in arms}
        for measure in LOSSES
    }
    panels = {title: {arm: c for arm, c in curves.items() if len(c[0]) > 1} for title, curves in panels.items()}
    if all(panels.values()):
        figures.learning_curves(panels, "slices", images / f"granularity-{name}-curves.png")


def _curve(store: Store, setting: Setting, arm: str, measure: Measure) -> tuple[list[float], list[float]]:
    points = {fraction: level_of(store, setting, At(arm, fraction), measure) for fraction in (0.0, *CHECKPOINTS)}
    known = {fraction: value for fraction, value in points.items() if value is not None}
    return [fraction * N1 for fraction in known], list(known.values())


def _sheets(store: Store, images: Path, work: Path) -> None:
    from .domains import open_domain
    from .measuring import drawn_pictures
    from .running import held_out_picture, pictures_folder

    models: tuple[Model, ...] = ("flux", "sdxl")
    for model in models:
        setting = SETTINGS[model]
        rows: list[tuple[str, list[Path | None]]] = []
        for name in REPORTED:
            domain = open_domain(name, work)
            cells = {arm: store.cells(setting, name, arm).get(0) for arm in (BASE, "baseline", "full")}
            if not all(cells.values()):
                continue
            folders = [
                pictures_folder(cells[arm], work, fraction)
                for arm, fraction in ((BASE, None), *((at.arm, at.fraction) for at in FOUR))
            ]
            drawn = [drawn_pictures(folder, domain)["whole"] for folder in folders if folder.exists()]
            if len(drawn) < len(folders):
                continue
            for place, prompt in enumerate(domain.shown_prompts[:3]):
                files = [one.files[one.prompts.index(prompt) + place % 5] for one in drawn]
                rows.append((prompt, [held_out_picture(domain, work, prompt), *files]))
        if rows:
            columns = ["real", "base", *(str(at) for at in FOUR)]
            figures.sheet(rows, columns, images / f"granularity-{model}-sheet.png")
