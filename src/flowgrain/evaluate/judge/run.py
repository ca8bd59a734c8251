"""A judging from comparison to results: plan, forecast, ask what is open, write what is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowgrain.config import dump_yaml
from flowgrain.errors import DataError
from flowgrain.evaluate.comparison import Comparison
from flowgrain.evaluate.judge.config import JudgeConfig
from flowgrain.evaluate.judge.notes import planning_notes
from flowgrain.evaluate.judge.pictures import PictureBook
from flowgrain.evaluate.judge.plan import Question, plan_questions, resolve
from flowgrain.evaluate.judge.prompts import record_prompts
from flowgrain.evaluate.judge.request import make_query
from flowgrain.evaluate.judge.results import Results, make_results, write_results
from flowgrain.evaluate.judge.tables import MARKDOWN_NAME, to_markdown
from flowgrain.files import atomic_write_text, remove_leftovers
from flowgrain.locks import locked
from flowgrain.vlm.answers import Query
from flowgrain.vlm.budget import Budget
from flowgrain.vlm.failures import EndpointError
from flowgrain.vlm.log import LOG_NAME, Answer, AnswerLog, read_past
from flowgrain.vlm.session import SessionResult, ask_all, make_budget, open_questions

CONFIG_NAME = "judge.yaml"
PROMPTS_NAME = "prompts"


@dataclass(frozen=True)
class Plan:
    """Everything that is to be asked, and how."""

    comparison: Comparison
    config: JudgeConfig
    """Resolved: nothing in it is left to the protocol."""
    questions: tuple[Question, ...]
    queries: tuple[Query, ...]
    """One for each key: pictures that are the same bit by bit are asked about once."""
    notes: tuple[str, ...]
    """What the user should know before it begins."""


@dataclass(frozen=True)
class Forecast:
    """What is still to be asked, before asking it."""

    questions: int
    """All of the plan that differ."""
    open: int
    pictures: int
    """Pictures that the open questions send, references included."""
    tokens_in: int
    tokens_out: int
    cost: float | None
    """None without prices."""
    spent: float
    """By earlier sessions."""
    killed: int
    """Open questions that were being asked when an earlier session was killed."""
    measured: bool
    """Whether earlier answers have measured what questions take."""


class JudgeObserver:
    """Hears how it goes; this one does nothing."""

    def forecast(self, forecast: Forecast) -> None:
        """Called once, before the first question."""

    def answered(self, answer: Answer, spent: float, expected_left: float) -> None:
        """Called after each question; costs of all sessions so far, and of what is still open (0 without prices)."""


@dataclass(frozen=True)
class JudgeOutcome:
    """How a session went and what is known after it."""

    session: SessionResult
    results: Results


def make_plan(comparison: Comparison, config: JudgeConfig) -> Plan:
    """Plan without asking anything. Raises ConfigError for settings that do not fit, DataError for bad pictures."""
    config = resolve(comparison, config)
    book = PictureBook(config.pictures)
    questions = plan_questions(comparison, config, book)
    different = {question.key: question for question in questions}
    queries = tuple(make_query(question, book) for question in different.values())
    return Plan(comparison, config, questions, queries, planning_notes(comparison, config, questions, book))


def dry_run(plan: Plan, out: Path, retry_failed: bool = False) -> Forecast:
    """The forecast of :func:`judge`; nothing is asked or written."""
    past = read_past(out / LOG_NAME)
    budget = make_budget(plan.config.budget, past, plan.queries)
    return _forecast(plan, open_questions(plan.queries, past, retry_failed), past.killed, budget)


def judge(
    plan: Plan,
    out: Path,
    observer: JudgeObserver,
    should_stop: Callable[[], bool] = lambda: False,
    retry_failed: bool = False,
) -> JudgeOutcome:
    """Ask what is open, write log and results into ``out``.

    Raises FolderError where another judge holds ``out``, ConfigError for a missing key, EndpointError for an endpoint
    that cannot be used (what was answered before is in the results), DataError for a damaged log or a full disk.
    """
    with locked(out):
        try:
            return _judge(plan, out, observer, should_stop, retry_failed)
        except OSError as error:
            raise DataError(f"{error.filename or out}: cannot be written ({error.strerror}); go on later") from None


def _judge(
    plan: Plan, out: Path, observer: JudgeObserver, should_stop: Callable[[], bool], retry_failed: bool
) -> JudgeOutcome:
    remove_leftovers(out)
    atomic_write_text(out / CONFIG_NAME, dump_yaml(plan.config))
    record_prompts(out / PROMPTS_NAME, {(q.mode, q.dimension.name): q.prompts for q in plan.questions})
    log = AnswerLog(out / LOG_NAME)
    try:
        session = _ask(plan, log, observer, should_stop, retry_failed)
    except EndpointError:
        _results(plan, log, out)
        raise
    finally:
        log.close()
    return JudgeOutcome(session, _results(plan, log, out))


def _ask(
    plan: Plan, log: AnswerLog, observer: JudgeObserver, should_stop: Callable[[], bool], retry_failed: bool
) -> SessionResult:
    config = plan.config
    budget = make_budget(config.budget, log.past, plan.queries)
    still_open = open_questions(plan.queries, log.past, retry_failed)
    observer.forecast(_forecast(plan, still_open, log.past.killed, budget))
    if not still_open:
        return SessionResult()
    left = {query.key: query.estimated_in for query in still_open}
    tokens_left = sum(left.values())

    def on_answer(answer: Answer) -> None:
        nonlocal tokens_left
        if answer.status != "stopped":
            tokens_left -= left.pop(answer.key)
        observer.answered(answer, budget.spent, budget.expected_cost(tokens_left, len(left)))

    return ask_all(still_open, log, budget, config.endpoint, config.asking, should_stop, on_answer)


def _forecast(plan: Plan, still_open: Sequence[Query], killed: Sequence[str], budget: Budget) -> Forecast:
    wanted = {query.key for query in still_open}
    shown = {question.key: len(question.shown) + len(question.references) for question in plan.questions}
    estimated = sum(query.estimated_in for query in still_open)
    usage = budget.expected_usage(estimated, len(still_open))
    return Forecast(
        questions=len(plan.queries),
        open=len(still_open),
        pictures=sum(count for key, count in shown.items() if key in wanted),
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        cost=budget.expected_cost(estimated, len(still_open)) if budget.priced else None,
        spent=budget.spent,
        killed=len(wanted.intersection(killed)),
        measured=budget.measured,
    )


def _results(plan: Plan, log: AnswerLog, out: Path) -> Results:
    results = make_results(plan.comparison, plan.config, plan.questions, log.answers, log.past.killed)
    write_results(out, results)
    atomic_write_text(out / MARKDOWN_NAME, to_markdown(results))
    return results
