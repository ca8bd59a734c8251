"""Many questions, several at once: none twice, none past the budget, all in the log, stoppable at any moment."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Literal

from flowgrain.vlm.answers import Query, Reply, ask
from flowgrain.vlm.budget import Budget, Usage
from flowgrain.vlm.client import ChatClient
from flowgrain.vlm.config import AskingConfig, BudgetConfig, EndpointConfig
from flowgrain.vlm.failures import EndpointError
from flowgrain.vlm.log import Answer, Past, QuestionLog

_POLL = 0.1
"""Seconds between looks at whether to stop."""

End = Literal["finished", "interrupted", "max-cost", "max-questions"]


@dataclass
class SessionResult:
    """How a session went."""

    end: End = "finished"
    asked: int = 0
    """Questions that were put, whatever became of them."""
    asked_again: int = 0
    """Of these, questions that were being asked when an earlier session was killed."""
    statuses: Counter[str] = field(default_factory=Counter)


def open_questions(queries: Sequence[Query], past: Past, retry_failed: bool = False) -> tuple[Query, ...]:
    """What is still to be asked; ``retry_failed`` includes what was refused, unusable or rejected."""

    def is_open(query: Query) -> bool:
        answer = past.answers.get(query.key)
        return answer is None or not answer.is_final or (retry_failed and answer.status != "answered")

    return tuple(query for query in queries if is_open(query))


def make_budget(config: BudgetConfig, past: Past, queries: Sequence[Query]) -> Budget:
    """The budget of all sessions of a log: what they spent, and what ``queries`` measured of the endpoint's tokens."""
    budget = Budget(config, past.spent)
    for query in queries:
        answer = past.answers.get(query.key)
        if answer is not None and answer.requests == 1:  # with repairs and retries, tokens are of several requests
            usage = Usage(answer.tokens_in, answer.tokens_out, reported=not answer.tokens_estimated)
            budget.observe(answer.estimated_in, usage)
    return budget


def ask_all(
    queries: Sequence[Query],
    log: QuestionLog,
    budget: Budget,
    endpoint: EndpointConfig,
    asking: AskingConfig,
    should_stop: Callable[[], bool],
    on_answer: Callable[[Answer], None],
) -> SessionResult:
    """Ask ``queries`` in their order until all are asked, the budget is spent or ``should_stop()``.

    Requests in flight are waited for, questions that wait for another attempt are left for the next session. Raises
    EndpointError where the endpoint cannot be used, or ``give_up_after`` questions in a row got no usable answer:
    after everything in flight is in the log.
    """
    session = Session(log, budget, endpoint, asking)
    try:
        return session.run(queries, should_stop, on_answer)
    finally:
        session.close()


class Session:
    """A connection to an endpoint over any number of runs; failures in a row and questions are counted over all.

    One thread runs it: it hands out questions and takes answers; workers ask and log.
    """

    def __init__(self, log: QuestionLog, budget: Budget, endpoint: EndpointConfig, asking: AskingConfig):
        """Raises ConfigError for a missing key, MissingExtraError without the client."""
        self._log, self._budget, self._asking = log, budget, asking
        self._cancel = threading.Event()
        self._client = ChatClient(endpoint, budget, self._cancel)
        self._result = SessionResult()
        self._asked = self._failures = 0
        self._error: Exception | None = None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def run(
        self, queries: Sequence[Query], should_stop: Callable[[], bool], on_answer: Callable[[Answer], None]
    ) -> SessionResult:
        """See :func:`ask_all`."""
        self._cancel.clear()
        self._result, self._error = SessionResult(), None
        waiting = deque(queries)
        running: dict[Future[Answer], Query] = {}
        with ThreadPoolExecutor(self._asking.concurrency, thread_name_prefix="asking") as workers:
            try:
                while True:
                    if should_stop():
                        self._stop("interrupted")
                    while self._may_hand_out(waiting, len(running)):
                        query = waiting.popleft()
                        running[workers.submit(self._ask, query)] = query
                    if not running:
                        break
                    done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._take(running.pop(future), future, waiting, on_answer)
            finally:
                self._cancel.set()  # before the pool waits for its threads, also on a bug of this one
        if self._error is not None:
            raise self._error
        return self._result

    def _may_hand_out(self, waiting: deque[Query], running: int) -> bool:
        if not waiting or self._result.end != "finished":
            return False
        # with a cap, the first question goes alone and measures what questions cost
        alone = self._budget.capped and not self._budget.measured
        if running >= (1 if alone else self._asking.concurrency):
            return False
        if self._asking.max_questions is not None and self._asked + running >= self._asking.max_questions:
            if not running:
                self._stop("max-questions")
            return False
        if not self._budget.affords(waiting[0].estimated_in, self._client.config.max_answer_tokens):
            if not running:  # what is in flight may turn out cheaper than what is set aside for it
                self._stop("max-cost")
            return False
        return True

    def _ask(self, query: Query) -> Answer:
        self._log.asking(query, self._budget.expected_cost(query.estimated_in))
        reply = Reply()
        try:
            ask(self._client, query, self._asking.repairs, reply)
        finally:
            answer = self._log.answered(query, reply)
        return answer

    def _take(
        self, query: Query, future: Future[Answer], waiting: deque[Query], on_answer: Callable[[Answer], None]
    ) -> None:
        try:
            answer = future.result()
        except Exception as error:  # of whatever kind: raised again when everything in flight is in the log
            self._error = self._error or error
            self._stop("interrupted")
            return
        if answer.status == "stopped" and not answer.requests:
            waiting.appendleft(query)  # asked to stop, or another question took the last of the budget first
            return
        self._asked += 1
        self._result.asked += 1
        self._result.asked_again += query.key in self._log.killed
        self._result.statuses[answer.status] += 1
        if answer.status == "stopped" and not self._cancel.is_set():
            self._stop("max-cost")  # there was no money for a repair or another attempt
        self._count_failures(answer)
        on_answer(answer)

    def _count_failures(self, answer: Answer) -> None:
        if answer.status == "stopped":
            return
        self._failures = 0 if answer.status == "answered" else self._failures + 1
        if answer.status == "unreachable" and not self._client.reached:
            self._error = self._error or EndpointError(
                f"{self._client.config.base_url} cannot be reached: {answer.problem}; check the address and the server"
            )
            self._stop("interrupted")
        if self._failures >= self._asking.give_up_after:
            self._error = self._error or EndpointError(
                f"{self._failures} questions in a row got no usable answer, the last because: {answer.problem}; all "
                "are in the log"
            )
            self._stop("interrupted")

    def _stop(self, end: End) -> None:
        """Hand out no more; questions that wait for another attempt end now."""
        if self._result.end == "finished":
            self._result.end = end
        if end == "interrupted":
            self._cancel.set()
