"""What follows from rankings and scores, as one file that the report reads: every number with its interval.

Maps go from a dimension's name to its numbers. A dimension that nobody answered has no entry, and a variant that was
never shown on it has none in the dimension's map. Where rankings of several dimensions were given, the maps also hold
:data:`POOLED`, all of them together. docs/ranking.md says what each number means and when it may be read.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from flowgrain.config import Config
from flowgrain.errors import DataError
from flowgrain.files import atomic_write_text

POOLED = "all dimensions"
"""Key of the rankings of all dimensions together; no dimension can have this name, as names hold no spaces."""

Cluster = Literal["prompt", "rater", "crossed"]
"""What intervals draw with replacement: prompts, raters, or both at once."""


class Estimate(Config):
    """A number with its interval."""

    value: float
    low: float | None = Field(description="lower end; none where fewer than two clusters (or no variation) allow one")
    high: float | None = Field(description="upper end; none where the lower one is")
    n: int = Field(ge=0, description="answers (or items, or pairs of answers) that the value is a mean over")


class RankDistribution(Config):
    """How often a variant took each rank; a tier of tied variants shares the ranks that it spans evenly."""

    mean_rank: Estimate = Field(description="1 is best")
    shares: tuple[Estimate, ...] = Field(description="share of rank 1, 2, ...; they sum to 1")


class WinRate(Config):
    """How often ``first`` was put before ``second`` in the answers that compare the two; a tie counts half."""

    first: str
    second: str
    rate: Estimate = Field(description="0 to 1; one minus it is the rate of second over first")
    ties: int = Field(ge=0, description="how many of the n answers put both in one tier")


class Strengths(Config):
    """Strengths on a scale on which only differences mean something; natural logarithms, mean zero over variants."""

    bradley_terry: dict[str, Estimate] = Field(description="log strength by variant, from pairs")
    plackett_luce: dict[str, Estimate] = Field(description="log strength by variant, from whole rankings")
    worth: dict[str, Estimate] = Field(
        description="Plackett-Luce probability of coming first when all variants are shown; they sum to 1"
    )


class Difference(Config):
    """``second`` minus ``first`` on the same questions, with a test that there is none."""

    first: str
    second: str
    difference: Estimate
    p_value: float = Field(ge=0, le=1)
    p_holm: float = Field(ge=0, le=1, description="p_value corrected by Holm's method over the pairs of this map entry")
    level: float = Field(
        gt=0, lt=1, description="confidence level of the interval; supported means p_holm <= 1 - level"
    )

    @property
    def supported(self) -> bool:
        """Whether the data support a difference, the number of pairs looked at taken into account."""
        return self.p_holm <= 1 - self.level + 1e-12

    @property
    def ahead(self) -> str | None:
        """The variant that is higher where a difference is supported, else None."""
        if not self.supported or self.difference.value == 0:
            return None
        return self.second if self.difference.value > 0 else self.first


class PositionBias(Config):
    """Whether the place at which a picture was shown helped it to come first."""

    rates: tuple[Estimate, ...] = Field(
        description="share of first places that went to place 1, 2, ... (left to right)"
    )
    expected: tuple[float, ...] = Field(description="the same shares if places had no influence")
    statistic: float = Field(ge=0, description="chi-square distance of the two")
    p_value: float = Field(gt=0, le=1, description="permutation test: shown orders are exchanged among the answers")
    level: float = Field(gt=0, lt=1)

    @property
    def found(self) -> bool:
        """Whether the data support that places had an influence."""
        return self.p_value <= 1 - self.level + 1e-12


class Agreement(Config):
    """How far raters agree on the questions that at least two of them answered; none where there are none."""

    questions: int = Field(ge=0, description="questions that at least two raters answered")
    raters: int = Field(ge=0, description="raters of these questions")
    kendalls_w: Estimate | None = Field(description="Kendall's W, mean over questions; 0 to 1")
    kendalls_w_by_chance: float | None = Field(description="what W is on average if nobody agrees: mean of 1 / raters")
    kendall_tau: Estimate | None = Field(description="mean tau-b over pairs of raters; -1 to 1, 0 by chance")
    spearman: Estimate | None = Field(description="mean rank correlation over pairs of raters; -1 to 1, 0 by chance")
    alpha_ranks: Estimate | None = Field(
        description="Krippendorff's alpha of the ranks, ordinal; 1 agreed, 0 by chance"
    )
    alpha_first: Estimate | None = Field(description="Krippendorff's alpha of who came first, nominal")
    fleiss_kappa: Estimate | None = Field(description="Fleiss' kappa of who came first; 1 agreed, 0 by chance")


class Consistency(Config):
    """How far a rater who saw a question again answered the same; n counts pairs of answers."""

    same_first: Estimate = Field(description="share of pairs with the same first place")
    kendall_tau: Estimate | None = Field(description="mean tau-b of the pairs; none if all of them hold only ties")


class Repeats(Config):
    """Consistency of repeated questions, apart for pictures in other places and pictures in the same places."""

    changed_order: Consistency | None
    same_order: Consistency | None


class Scores(Config):
    """Scores from 0 to 100."""

    mean: dict[str, Estimate] = Field(description="by variant")
    differences: tuple[Difference, ...] = Field(description="of the wanted pairs, over scores of the same questions")


class Counts(Config):
    """How much was answered."""

    rankings: int = Field(ge=0)
    scores: int = Field(ge=0)
    raters: int = Field(ge=0)
    items: int = Field(ge=0, description="(data set, prompt, seed) with at least one answer")
    prompts: int = Field(ge=0, description="(data set, prompt) with at least one answer")


class GroupAgreement(Config):
    """How far two groups of raters (a judge and people) agree on the items that both answered."""

    groups: tuple[str, str]
    dimensions: tuple[str, str] = Field(description="dimension that each group answered")
    items: int = Field(ge=0)
    kendall_tau: Estimate | None = Field(description="mean over items of tau-b between the groups' mean ranks")
    same_first: Estimate | None = Field(description="share of items with the same favourite; ties count in parts")
    same_first_by_chance: float | None = Field(description="the same share if favourites were matched at random")
    strength_correlation: Estimate | None = Field(
        description="Pearson correlation over variants of the groups' Plackett-Luce log strengths"
    )


class RankingSummary(Config):
    """Everything that is reported about the rankings of one source."""

    version: Literal[1] = 1
    source: Literal["judge", "study"]
    variants: tuple[str, ...]
    datasets: tuple[str, ...] = Field(description="data sets with at least one answer, sorted")
    dimensions: tuple[str, ...] = Field(description="dimensions that were asked, in order; without POOLED")
    counts: Counts
    cluster: Cluster = Field(description="what the intervals draw; agreement and repeats draw prompts always")
    level: float = Field(gt=0, lt=1, description="confidence level of every interval")
    resamples: int = Field(ge=1)
    seed: int
    first_place: dict[str, dict[str, Estimate]] = Field(
        description="dimension -> variant -> share of the answers showing it that put it first; ties in parts"
    )
    first_place_by_dataset: dict[str, dict[str, dict[str, Estimate]]] = Field(
        description="dimension -> data set -> variant"
    )
    first_place_differences: dict[str, tuple[Difference, ...]] = Field(description="dimension -> wanted pairs")
    rank_distribution: dict[str, dict[str, RankDistribution]] = Field(description="dimension -> variant")
    pairwise: dict[str, tuple[WinRate, ...]] = Field(description="dimension -> all pairs that were compared")
    strengths: dict[str, Strengths] = Field(description="dimension -> strengths of the variants shown")
    position_bias: dict[str, PositionBias] = Field(description="dimension -> bias")
    agreement: dict[str, Agreement] = Field(
        description="dimension -> agreement; only where two raters share a question"
    )
    repeats: dict[str, Repeats] = Field(description="dimension -> consistency; only where a question was repeated")
    scores: dict[str, Scores] = Field(description="dimension -> scores; only where there are any")
    warnings: tuple[str, ...] = Field(default=(), description="one sentence each, for the reader of the numbers")


def write_summary(path: Path, summary: RankingSummary) -> None:
    """Write as indented JSON, the file replaced whole."""
    atomic_write_text(path, summary.model_dump_json(indent=2) + "\n")


def read_summary(path: Path) -> RankingSummary:
    """The summary of a file; raises DataError naming what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        return RankingSummary.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise DataError(f"{path}: not a summary of rankings ({where}: {first['msg']})") from None
