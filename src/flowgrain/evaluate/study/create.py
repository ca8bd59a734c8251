"""Making a study: choosing items, re-encoding pictures, hiding which variant is which, sealing."""

import json
import os
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowgrain.config import dump_yaml
from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import Comparison, Dataset, Item, Reference
from flowgrain.evaluate.study.assignment import Assigner, Design, spread
from flowgrain.evaluate.study.config import StudyConfig
from flowgrain.evaluate.study.pictures import PictureWriter, degrade, same_size
from flowgrain.evaluate.study.plan import (
    KEY_NAME,
    MEDIA,
    PLAN_NAME,
    STUDY_NAME,
    VERSION,
    Check,
    Key,
    Picture,
    Plan,
    PlannedItem,
    Practice,
    read_plan,
    strata,
)
from flowgrain.evaluate.study.seal import seal
from flowgrain.files import atomic_directory, atomic_write_text

DEFAULT_PER_PARTICIPANT = 40
MOST_VARIANTS = 26
_PRACTICE = {
    "en": "For practice: one picture, more and less sharp. The sharpest one is the best.",
    "de": "Zur Übung: ein Bild, mehr und weniger scharf. Das schärfste ist das beste.",
}


@dataclass(frozen=True)
class Draft:
    """A study that is decided but not written."""

    comparison: Comparison
    config: StudyConfig
    items: tuple[Item, ...]
    seed: str

    @property
    def design(self) -> Design:
        """Its assignment, checks left out: they are chosen when the study is written."""
        return Design(
            seed=self.seed,
            strata=strata([(item.dataset, item.prompt) for item in self.items]),
            variants=len(self.comparison.variants),
            per_participant=self.config.per_participant,
            degraded=(),
            repeated=self.config.attention.repeated,
        )


def draft_study(comparison: Comparison, config: StudyConfig, items: int | None) -> Draft:
    """Choose ``items`` of the comparison, spread evenly over data sets and prompts; all where None.

    Raises ConfigError for impossible numbers, DataError for fewer than two or more than 26 variants.
    """
    variants = comparison.variants
    if not 2 <= len(variants) <= MOST_VARIANTS:
        raise DataError(f"{len(variants)} variant(s): a study compares 2 to {MOST_VARIANTS} of them")
    every = comparison.items()
    if items is not None and not 1 <= items <= len(every):
        raise ConfigError(f"--items {items}: the comparison has {len(every)}")
    if config.per_participant > (items or len(every)):
        raise ConfigError(f"--per-participant {config.per_participant}: the study has {items or len(every)} items")
    order = spread(strata([(item.dataset, item.prompt) for item in every]), random.Random(secrets.randbits(128)))
    return Draft(comparison, config, tuple(every[i] for i in sorted(order[:items])), secrets.token_hex(16))


def create_study(draft: Draft, out: Path, progress: Callable[[int, int], None]) -> str:
    """Write the study folder and return its seal. Raises ConfigError where ``out`` exists; DataError for a picture."""
    if out.exists():
        raise ConfigError(f"{out} exists; a sealed study is never changed: choose another --out, or remove it yourself")
    names = list(draft.comparison.variants)
    secrets.SystemRandom().shuffle(names)
    with atomic_directory(out) as folder:
        writer = PictureWriter(folder, draft.config.pictures)
        items = []
        for number, item in enumerate(draft.items):
            items.append(_planned(draft, item, names, writer))
            progress(number + 1, len(draft.items))
        checks = _checks(draft, names, writer)
        plan = Plan(
            version=VERSION,
            study=secrets.token_hex(6),
            seed=draft.seed,
            variants=len(names),
            items=tuple(items),
            checks=checks,
            practice=_practice(draft, len(names), writer),
            per_participant=draft.config.per_participant,
            repeated=draft.config.attention.repeated,
            participants=draft.config.participants,
            assignment_sha256="",
        )
        digest = Assigner(plan.design).digest(plan.participants)
        plan = plan.model_copy(update={"assignment_sha256": digest})
        key = Key(
            variants=tuple(names),
            order=draft.comparison.variants,
            pairs=draft.comparison.pairs,
            nonce=secrets.token_hex(16),
        )
        atomic_write_text(folder / STUDY_NAME, dump_yaml(draft.config))
        atomic_write_text(folder / PLAN_NAME, json.dumps(plan.model_dump(mode="json"), indent=1, ensure_ascii=False))
        atomic_write_text(folder / KEY_NAME, json.dumps(key.model_dump(mode="json"), indent=1, ensure_ascii=False))
        os.chmod(folder / KEY_NAME, 0o600)
        return seal(folder)


def megabytes_to_load(folder: Path) -> float:
    """Megabytes of pictures that one participant loads, on average."""
    plan = read_plan(folder)
    bytes_of = {picture.name: (folder / MEDIA / picture.name).stat().st_size for picture in plan.pictures}
    every = sum(bytes_of[p.name] for item in plan.items for p in (*item.references, *item.pictures))
    extra = [*plan.practice.pictures, *(p for check in plan.checks for p in check.pictures)]
    return (every * plan.per_participant / len(plan.items) + sum(bytes_of[p.name] for p in extra)) / 1e6


def _planned(draft: Draft, item: Item, names: list[str], writer: PictureWriter) -> PlannedItem:
    dataset = next(d for d in draft.comparison.datasets if d.name == item.dataset)
    return PlannedItem(
        key=item.key,
        dataset=item.dataset,
        description=dataset.description,
        prompt=item.prompt,
        seed=item.seed,
        references=tuple(writer.once(reference.path) for reference in _references(draft, dataset, item)),
        pictures=tuple(writer.write(image) for image in _load(item, names, writer)),
    )


def _load(item: Item, names: list[str], writer: PictureWriter) -> list[Image.Image]:
    paths = [item.pictures[name] for name in names]
    return same_size([writer.load(path) for path in paths], paths)


def _references(draft: Draft, dataset: Dataset, item: Item) -> list[Reference]:
    """The reference with the item's own caption, where there is one, then others at random, the same for everybody."""
    own = dataset.own_reference(item.prompt)
    others = [reference for reference in dataset.references if reference != own]
    random_ = random.Random(f"{draft.seed} references {item.key}")
    chosen = random_.sample(others, min(len(others), draft.config.references))
    return ([own, *chosen] if own else chosen)[: draft.config.references]


def _checks(draft: Draft, names: list[str], writer: PictureWriter) -> tuple[Check, ...]:
    """Items at random; the pictures are written anew, so that names do not tell which items are checks."""
    random_ = secrets.SystemRandom()
    chosen = random_.sample(range(len(draft.items)), min(draft.config.attention.degraded, len(draft.items)))
    chosen += random_.choices(range(len(draft.items)), k=draft.config.attention.degraded - len(chosen))
    checks = []
    for index in chosen:
        worst = random_.randrange(len(names))
        images = _load(draft.items[index], names, writer)
        images[worst] = degrade(images[worst], 1.0, random_.getrandbits(32))
        checks.append(Check(item=index, pictures=tuple(map(writer.write, images)), degraded=worst))
    return tuple(checks)


def _practice(draft: Draft, variants: int, writer: PictureWriter) -> Practice:
    """One picture at falling sharpness: it shows what to do and says nothing about any variant."""
    references = [reference for dataset in draft.comparison.datasets for reference in dataset.references]
    if references:
        path = secrets.choice(references).path
    else:
        path = secrets.choice(list(secrets.choice(draft.items).pictures.values()))
    image = writer.load(path)
    levels = [degrade(image, level / (variants - 1), secrets.randbits(32)) for level in range(variants)]
    pictures: tuple[Picture, ...] = tuple(map(writer.write, levels))
    return Practice(prompt=_PRACTICE[draft.config.language], pictures=pictures)
