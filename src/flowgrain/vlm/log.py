"""The log of a session: every question before it is asked and after it is answered, on disk before it counts.

A question that was being asked when the process was killed is asked again, once for each kill; the log tells which.
"""

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from flowgrain.config import Config
from flowgrain.errors import DataError
from flowgrain.vlm.answers import Query, Reply, Status

LOG_NAME = "log.jsonl"


class Asking(Config):
    """A question is about to be asked."""

    event: Literal["asking"] = "asking"
    key: str
    time: str
    expected_cost: float = Field(description="what the question is expected to cost; counted if the process dies")


class Answer(Config):
    """What became of a question."""

    event: Literal["answer"] = "answer"
    key: str
    time: str = Field(description="UTC, ISO 8601")
    status: Status
    answer: dict[str, Any] | None = Field(description="as it was read and checked; null without a usable answer")
    problem: str = Field(description="why there is no answer")
    raw: tuple[str, ...] = Field(description="what the model said, each time it was asked")
    about: dict[str, Any] = Field(description="what the question is about")
    request: str = Field(description="SHA-256 of the messages that were sent first")
    served_model: str = Field(description="model that the endpoint says has answered")
    requests: int = Field(ge=0, description="requests that were sent, repairs and retries included")
    troubles: tuple[str, ...] = Field(description="why requests had to be retried")
    estimated_in: int = Field(ge=0, description="input tokens of one request by the forecast's rule")
    tokens_in: int = Field(ge=0)
    tokens_out: int = Field(ge=0)
    tokens_estimated: bool = Field(description="whether some tokens are estimated, not reported by the endpoint")
    cost: float = Field(ge=0)
    seconds: float = Field(ge=0)

    @property
    def is_final(self) -> bool:
        """Whether the model (or the endpoint, about this request) has had its say."""
        return self.status not in ("unreachable", "stopped")


_LINE: TypeAdapter[Asking | Answer] = TypeAdapter(Asking | Answer)


@dataclass
class Past:
    """What a log says about earlier sessions."""

    answers: dict[str, Answer] = field(default_factory=dict)
    """The last answer to each question."""
    killed: list[str] = field(default_factory=list)
    """Keys of questions that were being asked when a process died, one entry a time."""
    spent: float = 0.0
    """Cost of everything in the log; of questions cut short by a kill, what they were expected to cost."""


class QuestionLog(ABC):
    """Hears of every question before it is asked and after it is answered, from any number of threads."""

    @property
    @abstractmethod
    def killed(self) -> Collection[str]:
        """Keys of questions that were being asked when an earlier process died."""

    @abstractmethod
    def asking(self, query: Query, expected_cost: float) -> None:
        """Note a question before it is asked."""

    @abstractmethod
    def answered(self, query: Query, reply: Reply) -> Answer:
        """Note what became of a question."""


def read_past(path: Path) -> Past:
    """Read a log without opening it for writing; a torn last line is left out. Raises DataError for a bad line."""
    return _past(_entries(path, _whole_lines(path)[0]))


def make_answer(query: Query, reply: Reply) -> Answer:
    """What is kept of a question and what became of it."""
    account = reply.account
    return Answer(
        key=query.key,
        time=_now(),
        status=reply.status,
        answer=reply.answer,
        problem=reply.problem,
        raw=tuple(reply.raw),
        about=dict(query.about),
        request=reply.request,
        served_model=reply.served_model,
        requests=account.requests,
        troubles=tuple(account.troubles),
        estimated_in=query.estimated_in,
        tokens_in=account.tokens_in,
        tokens_out=account.tokens_out,
        tokens_estimated=account.estimated,
        cost=account.cost,
        seconds=round(reply.seconds, 3),
    )


class AnswerLog(QuestionLog):
    """Appends whole lines, synced one by one; the torn last line of a killed process is cut off on opening.

    One process at a time (:mod:`flowgrain.locks`), any number of threads. Raises DataError for a bad line and for
    a full disk.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines, size = _whole_lines(path)
        self._path = path
        self._lock = threading.Lock()
        self.past = _past(_entries(path, lines))
        self.answers: dict[str, Answer] = dict(self.past.answers)
        """The last answer to each question, this session's included."""
        self._file = path.open("ab", buffering=0)
        self._file.truncate(size)

    @property
    def killed(self) -> Collection[str]:
        """See :class:`QuestionLog`."""
        return self.past.killed

    def asking(self, query: Query, expected_cost: float) -> None:
        """See :class:`QuestionLog`."""
        self._append(Asking(key=query.key, time=_now(), expected_cost=expected_cost))

    def answered(self, query: Query, reply: Reply) -> Answer:
        """See :class:`QuestionLog`."""
        answer = make_answer(query, reply)
        self._append(answer)
        return answer

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, entry: Asking | Answer) -> None:
        line = (entry.model_dump_json() + "\n").encode()
        with self._lock:
            start, rest = self._file.seek(0, os.SEEK_END), memoryview(line)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError as error:
                self._file.truncate(start)
                raise DataError(
                    f"{self._path}: cannot be written ({error.strerror}); free some space and go on"
                ) from None
            if isinstance(entry, Answer):
                self.answers[entry.key] = entry


def _past(entries: Iterator[Asking | Answer]) -> Past:
    past = Past()
    open_questions: dict[str, float] = {}
    for entry in entries:
        if isinstance(entry, Asking):
            if entry.key in open_questions:
                past.killed.append(entry.key)
                past.spent += open_questions[entry.key]
            open_questions[entry.key] = entry.expected_cost
        else:
            open_questions.pop(entry.key, None)
            past.answers[entry.key] = entry
            past.spent += entry.cost
    past.killed += open_questions
    past.spent += sum(open_questions.values())
    return past


def _whole_lines(path: Path) -> tuple[list[bytes], int]:
    """(lines, bytes up to the end of the last whole one): what comes after was cut short by a kill."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    size = data.rfind(b"\n") + 1
    return data[:size].split(b"\n")[:-1], size


def _entries(path: Path, lines: Sequence[bytes]) -> Iterator[Asking | Answer]:
    for number, line in enumerate(lines, start=1):
        try:
            yield _LINE.validate_python(json.loads(line))
        except (ValueError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise DataError(
                f"{path}:{number}: not a line of this log ({reason}); restore the file, or ask anew with another --out"
            ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
