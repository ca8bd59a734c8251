"""Write the image domains for adaptation: three drawing styles that no model of the bundle has ever seen."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import packages, vocabulary
from .icon_sets import IconSet, on_white
from .render import base_concepts, read_sets

MAXIMUM_IMAGES = 190
HOLD_OUT_PART = 0.2
PROMPTS = 8
BYTES_PER_IMAGE = 9000
DRAWN_SIZE = 384


@dataclass(frozen=True)
class Domain:
    """One style: where it comes from and under which terms it may be passed on."""

    name: str
    title: str
    package: packages.Package
    author: str
    source: str
    licence: str
    licence_url: str
    changes: str

    @property
    def trigger(self) -> str:
        return f"{self.name} style"


FLUENT_3D = Domain(
    "fluent3d",
    "Fluent Emoji 3D",
    packages.FLUENT_3D,
    "Microsoft Corporation (packaged by LobeHub)",
    "https://github.com/microsoft/fluentui-emoji",
    "MIT",
    "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
    "a selection, flattened onto white, re-encoded as WebP",
)
OPENMOJI = Domain(
    "openmoji",
    "OpenMoji",
    packages.OPENMOJI,
    "OpenMoji, the open-source emoji and icon project (HfG Schwaebisch Gmuend)",
    "https://openmoji.org",
    "CC-BY-SA-4.0",
    "https://creativecommons.org/licenses/by-sa/4.0/",
    "a selection, rasterised at 384 px on white, encoded as WebP; these image files stay under CC-BY-SA-4.0",
)
STREAMLINE = Domain(
    "streamline",
    "Streamline Emojis",
    packages.STREAMLINE,
    "Streamline (Webalys)",
    "https://github.com/webalys-hq/streamline-vectors",
    "CC-BY-4.0",
    "https://creativecommons.org/licenses/by/4.0/",
    "a selection, rasterised at 384 px on white, encoded as WebP",
)
ALL = (FLUENT_3D, OPENMOJI, STREAMLINE)

Draw = Callable[[str], np.ndarray]


def _fluent_3d(work: Path, codes: dict[str, str]) -> dict[str, Path]:
    """Concept to picture file, through the code points that Noto's names belong to."""
    folder = packages.unpacked(work, packages.FLUENT_3D) / "assets"
    files = {path.stem.replace("-fe0f", ""): path for path in sorted(folder.glob("*.webp"))}
    return {name: files[code] for code, name in codes.items() if code in files}


def _streamline_names(icons: IconSet, concepts: set[str]) -> dict[str, str]:
    """Concept to icon name: Streamline numbers its variants ("fox-face-1"), the first of each concept is taken."""
    result: dict[str, str] = {}
    flags = set(icons.categories["Flags"])  # "turkey" is a country there
    for name in sorted(set(icons.icons) - flags):
        plain = re.sub(r"-\d+$", "", name)
        for concept in (plain, plain.removesuffix("-face")):
            if concept in concepts and concept not in result:
                result[concept] = name
                break
    return result


def _sources(work: Path) -> dict[str, tuple[dict[str, object], Draw]]:
    """For each domain: its concepts (with the key to draw from) and the function that draws one."""
    sets = read_sets(work)
    wanted = set(base_concepts(sets))
    openmoji = IconSet.read(packages.unpacked(work, packages.OPENMOJI))
    streamline = IconSet.read(packages.unpacked(work, packages.STREAMLINE))
    extra = {
        name
        for group in ("Animals & Nature", "Food & Drink", "Travel & Places")
        for name in sets["noto"].categories[group]
    }
    extra |= {name for group in ("Objects", "Activities") for name in sets["noto"].categories[group]}
    fluent = {k: v for k, v in _fluent_3d(work, sets["noto"].names_by_code).items() if k in wanted}
    return {
        "fluent3d": (fluent, lambda concept: on_white(Image.open(fluent[concept]), 256)),
        "openmoji": (
            {name: name for name in wanted if name in openmoji},
            lambda concept: openmoji.render(concept, DRAWN_SIZE),
        ),
        "streamline": (
            lines := _streamline_names(streamline, wanted | extra),
            lambda concept: streamline.render(lines[concept], DRAWN_SIZE),
        ),
    }


def _choose(available: dict[str, set[str]]) -> dict[str, list[str]]:
    """Up to MAXIMUM_IMAGES concepts a domain, those that all domains share first, then by a fixed order."""
    shared = set.intersection(*available.values())
    ordered = {
        name: sorted(concepts, key=lambda c: (c not in shared, vocabulary.rank(c)))[:MAXIMUM_IMAGES]
        for name, concepts in available.items()
    }
    return ordered


def shared_concepts(work: Path) -> set[str]:
    """The concepts that every domain draws."""
    return set.intersection(*(set(concepts) for concepts, _ in _sources(work).values()))


def _prompt_concepts(candidates: list[str], living: set[str]) -> list[str]:
    """Prompts are held out here but known to the base in its styles; living things first, whose shapes tell most."""
    return sorted(candidates, key=lambda concept: concept not in living)[:PROMPTS]


def _hold_out(chosen: list[str], shared: list[str]) -> set[str]:
    """A fifth of the concepts, taken from the shared ones first, so that the domains hold out the same things."""
    order = shared + [concept for concept in chosen if concept not in shared]
    return set(order[: round(len(chosen) * HOLD_OUT_PART)])


@dataclass(frozen=True)
class _Plan:
    """What one domain will contain."""

    chosen: list[str]
    held_out: set[str]
    prompts: list[str]
    unknown: list[str]


def write(work: Path, out: Path) -> None:
    """Write ``domains/NAME/{train,holdout}`` with captions, prompts and ``domain.json``; finished domains are kept."""
    if all((out / "domains" / domain.name / "domain.json").exists() for domain in ALL):
        print("domains are there", flush=True)
        return
    sources, sets = _sources(work), read_sets(work)
    chosen = _choose({name: set(concepts) for name, (concepts, _) in sources.items()})
    shared = sorted(set.intersection(*map(set, chosen.values())), key=vocabulary.rank)
    base = shared_concepts(work) & set(base_concepts(sets))
    taught = {concept for concept in base if not vocabulary.is_held_out(concept)}
    living = set(sets["noto"].categories["Animals & Nature"])
    prompts = _prompt_concepts([concept for concept in shared if concept in taught], living)
    for domain in ALL:
        mine = chosen[domain.name]
        plan = _Plan(mine, _hold_out(mine, shared), prompts, sorted(set(mine) - taught))
        _write_domain(out, domain, plan, sources[domain.name][1])


def _write_domain(out: Path, domain: Domain, plan: _Plan, draw: Draw) -> None:
    target = out / "domains" / domain.name
    partial = target.with_name(f".{domain.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for concept in plan.chosen:
        folder = partial / ("holdout" if concept in plan.held_out else "train")
        folder.mkdir(parents=True, exist_ok=True)
        _save_webp(Image.fromarray(draw(concept)), folder / f"{concept}.webp")
        (folder / f"{concept}.txt").write_text(vocabulary.caption(concept, domain.trigger) + "\n")
    whole = [vocabulary.caption(concept, domain.trigger) for concept in plan.prompts]
    close = [vocabulary.caption(concept, domain.trigger, "close-up") for concept in plan.prompts]
    (partial / "prompts.txt").write_text("\n".join(whole) + "\n")
    (partial / "prompts_closeup.txt").write_text("\n".join(close) + "\n")
    record = {key: value for key, value in asdict(domain).items() if key != "package"}
    record |= {
        "trigger": domain.trigger,
        "package": {"client": domain.package.client, "name": domain.package.name, "version": domain.package.version},
        "sha256": domain.package.sha256,
        "counts": {"train": len(plan.chosen) - len(plan.held_out), "holdout": len(plan.held_out)},
        "concepts_unknown_to_base": plan.unknown,
    }
    (partial / "domain.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    print(f"domain {domain.name}: {record['counts']}", flush=True)


def _save_webp(image: Image.Image, path: Path) -> None:
    """The best quality that stays within the size limit for one picture."""
    for quality in (90, 82, 74, 65, 55, 45):
        image.save(path, "WEBP", quality=quality, method=6)
        if path.stat().st_size <= BYTES_PER_IMAGE:
            return
