"""How far the judge agrees with people, or with another judge, on the same items."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from flowgrain.errors import DataError
from flowgrain.evaluate.comparison import Comparison
from flowgrain.evaluate.judge.results import RANKINGS_NAME, Results
from flowgrain.evaluate.judge.tables import MARKDOWN_NAME, to_markdown
from flowgrain.evaluate.ranking.groups import group_agreement
from flowgrain.evaluate.ranking.records import Ranking, read_rankings
from flowgrain.evaluate.ranking.summary import GroupAgreement
from flowgrain.files import atomic_write_bytes, atomic_write_text

AGREEMENT_NAME = "agreement.json"
_LIST = TypeAdapter(list[GroupAgreement])


def read_people(place: Path) -> tuple[Ranking, ...]:
    """The rankings of a study (its folder, or that of its results), of another judge, or of a file.

    Raises DataError where there are none.
    """
    for path in (place, place / RANKINGS_NAME, place / "results" / RANKINGS_NAME):
        if path.is_file():
            return read_rankings(path)
    raise DataError(f"{place}: no {RANKINGS_NAME} here; 'flowgrain study results' writes that of a study")


def agree(judge: Sequence[Ranking], people: Sequence[Ranking], comparison: Comparison) -> list[GroupAgreement]:
    """Agreement on all dimensions together, and on each that both were asked about.

    Raises DataError where the judge has no rankings (scores alone order nothing) or the two share no item.
    """
    if not judge:
        raise DataError("the judge has ranked nothing yet: agreement needs rankings or pairwise choices")
    agreements = [group_agreement(judge, people, comparison.variants)]
    asked = [{ranking.dimension for ranking in rankings} for rankings in (judge, people)]
    shared = [d.name for d in comparison.protocol.judge_dimensions if all(d.name in names for names in asked)]
    if shared and (len(asked[0]) > 1 or len(asked[1]) > 1):
        agreements += [group_agreement(judge, people, comparison.variants, dimensions=(name, name)) for name in shared]
    return agreements


def write_agreement(folder: Path, results: Results, agreements: Sequence[GroupAgreement]) -> None:
    """Write ``agreement.json``, and the Markdown with the agreement added."""
    atomic_write_text(folder / MARKDOWN_NAME, to_markdown(results, agreements))
    atomic_write_bytes(folder / AGREEMENT_NAME, _LIST.dump_json(list(agreements), indent=2) + b"\n")
