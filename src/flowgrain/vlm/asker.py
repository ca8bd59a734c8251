"""Questions about the pictures of a data set: answered from the store where it can be, else by the model."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain.errors import ConfigError, FlowgrainError
from flowgrain.vlm.answers import Query, Status
from flowgrain.vlm.budget import Budget
from flowgrain.vlm.config import BudgetConfig, EndpointConfig
from flowgrain.vlm.failures import BudgetError, require_openai
from flowgrain.vlm.log import Answer
from flowgrain.vlm.session import End, Session
from flowgrain.vlm.settings import AskingSettings
from flowgrain.vlm.store import AnswerStore

_POLL = 0.2
"""Seconds between looks at what other processes are asking."""
_KEPT = "what was answered is kept"


@dataclass(frozen=True)
class Spending:
    """What asking has taken in one process; add those of several."""

    questions: int = 0
    """Put to the model, whatever became of them."""
    cached: int = 0
    """Answered from the store."""
    failed: int = 0
    """Questions without a usable answer, those of the store included."""
    requests: int = 0
    """Sent for the questions: repairs and retries included."""
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    """Whether some tokens are estimated: a request was lost, or the endpoint reports none."""
    cost: float = 0.0
    """0 without prices."""

    def __add__(self, other: "Spending") -> "Spending":
        return Spending(
            self.questions + other.questions,
            self.cached + other.cached,
            self.failed + other.failed,
            self.requests + other.requests,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.estimated or other.estimated,
            self.cost + other.cost,
        )

    def __sub__(self, other: "Spending") -> "Spending":
        """What was spent since ``other``."""
        return Spending(
            self.questions - other.questions,
            self.cached - other.cached,
            self.failed - other.failed,
            self.requests - other.requests,
            self.tokens_in - other.tokens_in,
            self.tokens_out - other.tokens_out,
            self.estimated,
            self.cost - other.cost,
        )


@dataclass(frozen=True)
class AskingForecast:
    """What questions would take, by the rule of :mod:`flowgrain.vlm.images`, if none were answered before."""

    questions: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None
    """None without prices."""

    def __add__(self, other: "AskingForecast") -> "AskingForecast":
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return AskingForecast(
            self.questions + other.questions,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True)
class Unanswered:
    """A picture about which a model gave no usable answer."""

    name: str
    """The source picture's."""
    status: Status
    reason: str

    @property
    def final(self) -> bool:
        """Whether the model (or a filter) had its say; False where the endpoint failed and a later run asks again."""
        return self.status not in ("unreachable", "stopped")

    @property
    def code(self) -> str:
        """Short name for counting."""
        return f"vlm_{self.status}"


def question_key(kind: str, texts: Sequence[str], pictures: Sequence[bytes], settings: AskingSettings) -> str:
    """Hash of all that an answer depends on: what is said, the pictures as sent, the model and how it is sampled."""
    identity = required_endpoint(settings, "").identity()
    shown = [hashlib.sha256(picture).hexdigest() for picture in pictures]
    parts = [kind, list(texts), shown, settings.pictures.detail, identity]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def required_endpoint(settings: AskingSettings, where: str) -> EndpointConfig:
    """The endpoint of ``settings``; raises ConfigError where there is none."""
    if settings.endpoint is None:
        raise ConfigError(
            f"{where}no model is named; set vlm.endpoint.model (and base_url) for all that ask one, or endpoint here"
        )
    return settings.endpoint


def forecast(questions: int, tokens_in: int, budget: BudgetConfig) -> AskingForecast:
    """What ``questions`` of ``tokens_in`` input tokens together would take."""
    purse = Budget(budget)
    usage = purse.expected_usage(tokens_in, questions)
    cost = purse.expected_cost(tokens_in, questions) if purse.priced else None
    return AskingForecast(questions, usage.tokens_in, usage.tokens_out, cost)


class Asker:
    """Asks the model of ``settings`` what the store in ``cache`` (None: in memory) does not hold.

    Nothing is opened before the first question. ``kind`` names what is asked, such as boxes.
    """

    def __init__(self, settings: AskingSettings, kind: str, cache: Path | None):
        """Raises ConfigError where no endpoint is configured."""
        self._endpoint = required_endpoint(settings, "")
        self._settings, self._cache = settings, cache
        self._purpose = json.dumps([kind, self._endpoint.identity()], sort_keys=True)
        self._store: AnswerStore | None = None
        self._session: Session | None = None
        self._failed_now: set[str] = set()
        """Keys without a usable answer of this process: with retry_failed they are asked once more, not for ever."""
        self._unanswered: list[Unanswered] = []
        self.spending = Spending()

    def close(self) -> None:
        """Close the connections and the store; a later question opens them again."""
        if self._session is not None:
            self._session.close()
        if self._store is not None:
            self._store.close()
        self._session = self._store = None

    def ask(self, queries: Sequence[Query]) -> dict[str, Answer]:
        """The answer to each query, by its key; one whose status is ``unreachable`` is not for good.

        Raises EndpointError where the endpoint cannot be used, BudgetError at a limit of cost or questions, ConfigError
        for a missing key, StoreError for a store that cannot be used. All that was answered until then is in the store.
        """
        if not queries:
            return {}
        store = self._opened()
        wanted = {query.key: query for query in queries}
        answers: dict[str, Answer] = {}
        asked: set[str] = set()
        while left := [key for key in wanted if key not in answers]:
            again = set(left) - self._failed_now if self._settings.retry_failed else set()
            claims = store.claim(left, again)
            answers |= claims.found
            try:
                fresh = self._put(store, [wanted[key] for key in left if key in claims.mine])
            finally:
                store.release(claims.mine)
            answers |= fresh
            asked |= fresh.keys()
            if claims.elsewhere:
                time.sleep(_POLL)
        self._count(queries, answers, asked)
        return answers

    def answers(self, queries: Sequence[tuple[str, Query]]) -> list[dict[str, Any] | None]:
        """:meth:`ask` of (name of a picture, query) pairs: what each answer holds, None where none can be used.

        Those are told by :meth:`take_unanswered`.
        """
        by_key = self.ask([query for _, query in queries])
        found = [(name, by_key[query.key]) for name, query in queries]
        self._unanswered += [Unanswered(name, a.status, a.problem) for name, a in found if a.answer is None]
        return [answer.answer for _, answer in found]

    def take_unanswered(self) -> list[Unanswered]:
        """The pictures without a usable answer since the last call."""
        taken, self._unanswered = self._unanswered, []
        return taken

    def _opened(self) -> AnswerStore:
        if self._store is None:
            self._store = AnswerStore(self._cache, self._purpose)
        return self._store

    def _put(self, store: AnswerStore, queries: Sequence[Query]) -> dict[str, Answer]:
        """Ask the model; answers by key."""
        answers: dict[str, Answer] = {}
        if not queries:
            return answers
        if self._session is None:
            budget = Budget(self._settings.budget, ledger=store)
            for estimated_in, usage in store.measured():
                budget.observe(estimated_in, usage)
            require_openai("vlm")
            self._session = Session(store, budget, self._endpoint, self._settings.asking)

        def take(answer: Answer) -> None:
            self._spend(answer)
            if answer.status != "stopped":
                answers[answer.key] = answer
            if answer.status != "answered":
                self._failed_now.add(answer.key)

        result = self._session.run(queries, lambda: False, take)
        if len(answers) < len(queries):
            raise self._out(result.end, store)
        return answers

    def _out(self, end: End, store: AnswerStore) -> FlowgrainError:
        if end == "max-questions":
            return BudgetError(
                f"stopped after max_questions ({self._settings.asking.max_questions}); {_KEPT}, run the same command "
                "to go on"
            )
        return BudgetError(
            f"stopped: the next question to {self._endpoint.model} could cost more than is left of max_cost "
            f"({self._settings.budget.max_cost:g}, {store.taken()[0]:.4g} spent); {_KEPT}, raise budget.max_cost and "
            "run the same command to go on"
        )

    def _spend(self, answer: Answer) -> None:
        self.spending += Spending(
            questions=int(answer.status != "stopped"),
            requests=answer.requests,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
            estimated=answer.tokens_estimated,
            cost=answer.cost,
        )

    def _count(self, queries: Sequence[Query], answers: dict[str, Answer], asked: set[str]) -> None:
        failed = sum(answers[query.key].status != "answered" for query in queries)
        self.spending += Spending(cached=len(queries) - len(asked), failed=failed)
