"""The image domains of the evidence: three that the package embeds, and others that are fetched and kept aside.

Settings are chosen on the domains kept aside and reported on the embedded ones. All share their concepts: what is held
out of one is held out of all, so that a prompt never names a thing that any setting was chosen on.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowgrain.data.images import list_images
from flowgrain.demo.domains import Domain, load_domain

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from assets_build import packages, vocabulary
from assets_build.icon_sets import IconSet

REPORTED = ("fluent3d", "openmoji", "streamline")
"""Embedded; the final tables are made on these and nothing is chosen on them."""
CHOOSING = ("fxemoji", "noto-v1")
"""Learning rates and improved settings are chosen on these."""
CONFIRMING = ("emojione-v1", "contrast")
"""Improved settings must hold on these before they become defaults."""

_TEMPLATE = "fluent3d"
_SIZE = 384


@dataclass(frozen=True)
class _Source:
    title: str
    author: str
    licence: str
    package: packages.Package


_SOURCES = {
    "fxemoji": _Source(
        "Firefox OS Emoji",
        "Mozilla",
        "Apache-2.0",
        packages.Package(
            "npm",
            "@iconify-json/fxemoji",
            "1.2.2",
            "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        ),
    ),
    "noto-v1": _Source(
        "Noto Emoji, first version (blobs)",
        "Google Inc",
        "Apache-2.0",
        packages.Package(
            "npm",
            "@iconify-json/noto-v1",
            "1.2.5",
            "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        ),
    ),
    "emojione-v1": _Source(
        "Emoji One, first version",
        "Emoji One",
        "CC-BY-SA-4.0",
        packages.Package(
            "npm",
            "@iconify-json/emojione-v1",
            "1.2.3",
            "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        ),
    ),
    "contrast": _Source(
        "Fluent Emoji High Contrast",
        "Microsoft Corporation",
        "MIT",
        packages.Package(
            "npm",
            "@iconify-json/fluent-emoji-high-contrast",
            "1.2.6",
            "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
        ),
    ),
}


def open_domain(name: str, work: Path) -> Domain:
    """An embedded domain, or one of the others, fetched and drawn under ``work`` on first use."""
    if name not in _SOURCES:
        return load_domain(name)
    folder = work / "domains" / name
    if not (folder / "domain.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write(name, work, folder)
    about = json.loads((folder / "domain.json").read_text(encoding="utf-8"))
    credit = f"{about['title']} by {about['author']}, {about['licence']}"
    return Domain(name, about["title"], about["trigger"], credit, folder)


def _write(name: str, work: Path, folder: Path) -> None:
    """Pictures and captions of the concepts that the embedded domains have, split as they are."""
    source = _SOURCES[name]
    packages.fetch(work, (source.package,))
    icons = IconSet.read(packages.unpacked(work, source.package))
    template = load_domain(_TEMPLATE)
    names = {key.replace("-", ""): key for key in sorted([*icons.icons, *icons.aliases], reverse=True)}
    trigger = f"{name} style"
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts = {}
    for part, pictures in (("train", template.train), ("holdout", template.holdout)):
        (partial / part).mkdir(parents=True)
        concepts = [path.stem for path in list_images(pictures) if path.stem.replace("-", "") in names]
        counts[part] = len(concepts)
        for concept in concepts:
            pixels = icons.render(names[concept.replace("-", "")], _SIZE)
            Image.fromarray(pixels).save(partial / part / f"{concept}.png")
            caption = vocabulary.caption(concept, trigger)
            (partial / part / f"{concept}.txt").write_text(caption + "\n", encoding="utf-8")
    for file in ("prompts.txt", "prompts_closeup.txt"):
        text = (template.folder / file).read_text(encoding="utf-8")
        (partial / file).write_text(text.replace(template.trigger, trigger), encoding="utf-8")
    about = {
        "title": source.title,
        "author": source.author,
        "licence": source.licence,
        "trigger": trigger,
        "package": f"{source.package.name}@{source.package.version}",
        "sha256": source.package.sha256,
        "counts": counts,
    }
    (partial / "domain.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)
