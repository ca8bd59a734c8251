"""``plan.json``: what participants can be shown, variants as numbers; ``key.json``: which number is which variant.

The server reads the plan alone. The key may lie somewhere else until the study is closed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from flowgrain.config import Config
from flowgrain.errors import DataError
from flowgrain.evaluate.study.assignment import Assigner, Design

STUDY_NAME = "study.yaml"
PLAN_NAME = "plan.json"
KEY_NAME = "key.json"
MEDIA = "media"
VERSION = 1
SECONDS_PER_PICTURE = 4.0
"""Per picture and dimension; for the estimate of the time that a study takes."""

ModelT = TypeVar("ModelT", bound=Config)


class Picture(Config):
    """A file of ``media/``, under a random name."""

    name: str = Field(pattern=r"^[0-9a-f]{32}\.(png|webp)$")
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class PlannedItem(Config):
    """One item of the comparison."""

    key: str
    dataset: str
    description: str
    prompt: str
    seed: int
    references: tuple[Picture, ...]
    pictures: tuple[Picture, ...]
    """By the number of the variant."""


class Check(Config):
    """An item whose picture of the variant ``degraded`` is blurred and noisy."""

    item: int
    pictures: tuple[Picture, ...]
    degraded: int


class Practice(Config):
    """The first item: one picture at falling sharpness. It is not counted."""

    prompt: str
    pictures: tuple[Picture, ...]


class Plan(Config):
    """A ``plan.json``."""

    version: int
    study: str = Field(description="a random name of the study")
    seed: str = Field(min_length=32, description="of the assignment and of the opaque keys")
    variants: int = Field(ge=2)
    items: tuple[PlannedItem, ...] = Field(min_length=1)
    checks: tuple[Check, ...]
    practice: Practice
    per_participant: int
    repeated: int
    participants: int
    assignment_sha256: str = Field(description="Assigner.digest of all participants")

    @property
    def design(self) -> Design:
        """What the assignment depends on."""
        return Design(
            seed=self.seed,
            strata=strata([(item.dataset, item.prompt) for item in self.items]),
            variants=self.variants,
            per_participant=self.per_participant,
            degraded=tuple(check.degraded for check in self.checks),
            repeated=self.repeated,
        )

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture that the study shows, each once, in the order of the names."""
        shown = [*self.practice.pictures, *(picture for check in self.checks for picture in check.pictures)]
        for item in self.items:
            shown += [*item.references, *item.pictures]
        return tuple(sorted({picture.name: picture for picture in shown}.values(), key=lambda picture: picture.name))

    @property
    def positions(self) -> int:
        """Items that one participant answers, checks and repeats included, practice not."""
        return self.per_participant + len(self.checks) + self.repeated


class Key(Config):
    """A ``key.json``."""

    variants: tuple[str, ...] = Field(description="names, by number")
    order: tuple[str, ...] = Field(description="names, in the order of the comparison")
    pairs: tuple[tuple[str, str], ...] = Field(description="of names, whose differences are tested")
    nonce: str = Field(description="keeps the hash of this file from telling anything")


def minutes(positions: int, variants: int, dimensions: int) -> int:
    """Estimated minutes for one participant, at ``SECONDS_PER_PICTURE``."""
    return max(1, round(positions * variants * dimensions * SECONDS_PER_PICTURE / 60))


def strata(items: Sequence[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    """(data set, prompt) of each item as numbers, in the order in which they first appear."""
    datasets: dict[str, int] = {}
    prompts: dict[tuple[str, str], int] = {}
    return tuple(
        (datasets.setdefault(dataset, len(datasets)), prompts.setdefault((dataset, prompt), len(prompts)))
        for dataset, prompt in items
    )


def read_plan(folder: Path) -> Plan:
    """The plan of a study folder; raises DataError where it is broken or where this version would assign otherwise."""
    plan = read_model(Plan, folder / PLAN_NAME)
    if plan.version != VERSION:
        raise DataError(f"{folder / PLAN_NAME}: version {plan.version}; this flowgrain reads version {VERSION}")
    if Assigner(plan.design).digest(plan.participants) != plan.assignment_sha256:
        raise DataError(
            f"{folder / PLAN_NAME}: the assignment that was sealed is not what this flowgrain computes; use the "
            "version that made the study"
        )
    return plan


def read_model(schema: type[ModelT], path: Path) -> ModelT:
    """A JSON file of a study; raises DataError naming the file and the first problem."""
    try:
        return schema.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; 'flowgrain study new' makes a study") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from None
