"""From the log to the files that others read: rankings, scores, their statistics, and how the judging went."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from flowgrain.config import Config
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.comparison import Comparison
from flowgrain.evaluate.judge.config import JudgeConfig
from flowgrain.evaluate.judge.modes import MODES
from flowgrain.evaluate.judge.plan import Question
from flowgrain.evaluate.ranking.records import Ranking, Score, write_rankings
from flowgrain.evaluate.ranking.summarise import summarise
from flowgrain.evaluate.ranking.summary import RankingSummary, write_summary
from flowgrain.files import atomic_write_text
from flowgrain.vlm.log import Answer

RANKINGS_NAME = "rankings.jsonl"
SCORES_NAME = "scores.jsonl"
SUMMARY_NAME = "summary.json"
JUDGING_NAME = "judging.json"


class Judging(Config):
    """How a judging went: ``judging.json``."""

    rater: str
    model: str
    served_models: tuple[str, ...] = Field(description="models that the endpoint says have answered")
    questions: int = Field(ge=0, description="planned")
    answers: dict[str, int] = Field(description="planned questions by what became of them; open: not asked yet")
    repaired: int = Field(ge=0, description="answered questions whose first answer could not be used")
    retried: int = Field(ge=0, description="requests that the endpoint failed")
    asked_again: int = Field(ge=0, description="questions that were being asked when a judge was killed")
    tokens_in: int = Field(ge=0, description="of the whole log, answers to other settings included, as the next two")
    tokens_out: int = Field(ge=0)
    cost: float | None = Field(description="in the currency of the prices; null without prices")
    tokens_estimated: bool = Field(description="whether some of these tokens are estimated")
    left_out: int = Field(ge=0, description="answers in the log to other settings than these, not in the results")

    @property
    def failed(self) -> int:
        """Questions that have been asked and have no usable answer."""
        return sum(count for status, count in self.answers.items() if status not in ("answered", "open"))


@dataclass(frozen=True)
class Results:
    """What the answers so far amount to."""

    rankings: tuple[Ranking, ...]
    scores: tuple[Score, ...]
    summary: RankingSummary
    judging: Judging


def collect(
    questions: Sequence[Question], answers: Mapping[str, Answer], rater: str
) -> tuple[tuple[Ranking, ...], tuple[Score, ...]]:
    """The records of all answered questions, in the plan's order."""
    rankings, scores = [], []
    for question in questions:
        answer = answers.get(question.key)
        if answer is None or answer.status != "answered" or answer.answer is None:
            continue
        item = question.item
        about = {
            "item": item.key,
            "dataset": item.dataset,
            "prompt": item.prompt,
            "seed": item.seed,
            "dimension": question.dimension.name,
            "rater": rater,
            "repeat": question.repeat,
        }
        if question.mode == "score":
            scores.append(Score(**about, variant=question.shown[0], value=answer.answer["score"]))
        else:
            tiers = MODES[question.mode].tiers(answer.answer, question.shown)
            rankings.append(Ranking(**about, tiers=tiers, shown=question.shown))
    return tuple(rankings), tuple(scores)


def make_results(
    comparison: Comparison,
    config: JudgeConfig,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    killed: Sequence[str],
) -> Results:
    """Records and statistics of the answers to ``questions``."""
    rankings, scores = collect(questions, answers, config.rater_name)
    summary = summarise(
        rankings,
        scores,
        source="judge",
        dimensions=[dimension.name for dimension in comparison.protocol.judge_dimensions],
        variants=comparison.variants,
        pairs=None if isinstance(config.pairs, str) else config.pairs,
        bootstrap=Bootstrap(config.resamples, config.level, config.seed),
    )
    return Results(rankings, scores, summary, _judging(config, questions, answers, killed))


def write_results(out: Path, results: Results) -> None:
    """Write all files of the results, each replaced whole."""
    write_rankings(out / RANKINGS_NAME, results.rankings)
    atomic_write_text(out / SCORES_NAME, "".join(score.model_dump_json() + "\n" for score in results.scores))
    write_summary(out / SUMMARY_NAME, results.summary)
    atomic_write_text(out / JUDGING_NAME, results.judging.model_dump_json(indent=2) + "\n")


def _judging(
    config: JudgeConfig, questions: Sequence[Question], answers: Mapping[str, Answer], killed: Sequence[str]
) -> Judging:
    keys = {question.key for question in questions}
    own = [answers[key] for key in keys if key in answers]
    everything = list(answers.values())
    statuses = Counter(answers[question.key].status if question.key in answers else "open" for question in questions)
    return Judging(
        rater=config.rater_name,
        model=config.endpoint.model,
        served_models=tuple(sorted({answer.served_model for answer in own if answer.served_model})),
        questions=len(questions),
        answers=dict(sorted(statuses.items())),
        repaired=sum(answer.status == "answered" and len(answer.raw) > 1 for answer in own),
        retried=sum(len(answer.troubles) for answer in own),
        asked_again=sum(key in keys for key in killed),
        tokens_in=sum(answer.tokens_in for answer in everything),
        tokens_out=sum(answer.tokens_out for answer in everything),
        cost=None if config.budget.price_in is None else sum(answer.cost for answer in everything),
        tokens_estimated=any(answer.tokens_estimated for answer in everything),
        left_out=sum(key not in keys for key in answers),
    )
