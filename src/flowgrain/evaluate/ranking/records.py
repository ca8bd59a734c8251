"""One answer of one rater, the form in which the judge and the human study hand on what they collected."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from flowgrain.config import Config
from flowgrain.errors import DataError
from flowgrain.files import atomic_write_text


class Ranking(Config):
    """The order in which a rater put the pictures of one item, on one dimension.

    A choice of the best alone is ``((best,), (all others))``; a choice between two with a tie is ``((a, b),)``.
    """

    item: str = Field(description="key of evaluate.comparison.Item")
    dataset: str
    prompt: str
    seed: int
    dimension: str
    rater: str = Field(description="participant, or judge model")
    repeat: int = Field(default=0, ge=0, description="how often this rater had seen the item before")
    tiers: tuple[tuple[str, ...], ...] = Field(description="variants, best first; those of one tier are tied")
    shown: tuple[str, ...] = Field(description="variants in the order of their places, left to right")

    @model_validator(mode="after")
    def _complete(self) -> "Ranking":
        ranked = [variant for tier in self.tiers for variant in tier]
        if sorted(ranked) != sorted(self.shown) or len(set(ranked)) != len(ranked) or not all(self.tiers):
            raise ValueError(f"tiers {self.tiers} must hold each of {self.shown} once and no empty tier")
        return self


class Score(Config):
    """A number that a rater gave to one picture."""

    item: str
    dataset: str
    prompt: str
    seed: int
    dimension: str
    rater: str
    repeat: int = Field(default=0, ge=0)
    variant: str
    value: float = Field(ge=0, le=100)


def write_rankings(path: Path, rankings: Iterable[Ranking]) -> None:
    """One JSON line a ranking, the file replaced whole."""
    atomic_write_text(path, "".join(ranking.model_dump_json() + "\n" for ranking in rankings))


def read_rankings(path: Path) -> tuple[Ranking, ...]:
    """The rankings of a file; raises DataError naming a bad line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    rankings = []
    for number, line in enumerate(text.split("\n"), start=1):  # prompts may hold other line breaks
        if not line:
            continue
        try:
            rankings.append(Ranking.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"{path}:{number}: not a ranking ({error.errors()[0]['msg']})") from None
    return tuple(rankings)
