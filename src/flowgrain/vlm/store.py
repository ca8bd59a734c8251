"""Answers for whole data sets: on disk by key, shared by any number of processes, none paid for twice.

An SQLite file holds the answers, the questions in flight and the money of all who open it, so that memory stays
bounded whatever the data set. A question is claimed before it is asked: another process that wants its answer waits
for it. What a process held that died is found by its lock file (:mod:`flowgrain.locks`), which the operating system
drops; its questions are free again, and what they were expected to cost counts as spent.
"""

import shutil
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from flowgrain.errors import FlowgrainError
from flowgrain.locks import is_held, locked
from flowgrain.vlm.answers import Query, Reply
from flowgrain.vlm.budget import Ledger, Usage
from flowgrain.vlm.log import Answer, QuestionLog, make_answer

STORE_NAME = "answers.sqlite"
ASKERS_NAME = "askers"
_PATIENCE = 60.0
"""Seconds to wait for the file while other processes write to it, each for milliseconds."""
_MEASURED = 200
"""Latest answers by which a new process estimates what questions take."""
_AT_ONCE = 500
"""Keys in one query: SQLite's older versions bind 999 values."""
_SCHEMA = """
create table if not exists answers (
    key text primary key, final integer, status text, purpose text, single integer, estimated_in integer,
    tokens_in integer, tokens_out integer, estimated integer, answer text
);
create index if not exists answers_by_purpose on answers (purpose, single);
create table if not exists flights (key text primary key, asker text, expected_cost real);
create table if not exists money (asker text primary key, spent real, reserved real);
"""


class StoreError(FlowgrainError):
    """The file of answers cannot be read or written."""


@dataclass
class Claims:
    """What is known of some questions."""

    found: dict[str, Answer] = field(default_factory=dict)
    """Those that have had their say."""
    mine: set[str] = field(default_factory=set)
    """Those that this store has claimed, and is to ask or to release."""
    elsewhere: set[str] = field(default_factory=set)
    """Those that somebody else is asking."""


class AnswerStore(QuestionLog, Ledger):
    """One opening of a folder's answers, for one ``purpose`` (what is asked and of which model), any threads.

    ``folder`` None: in memory, for this process alone. Raises StoreError for a file that is damaged or cannot be
    written.
    """

    def __init__(self, folder: Path | None, purpose: str):
        self._folder, self._purpose = folder, purpose
        self._id = uuid4().hex
        self._lock = threading.RLock()
        self._held = ExitStack()
        self._closed = False
        self._path = ":memory:" if folder is None else str(folder / STORE_NAME)
        with self._errors():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._path, _PATIENCE, isolation_level=None, check_same_thread=False)
            self._held.callback(self._base.close)
            self._base.execute("pragma journal_mode = truncate")  # not WAL, which two machines cannot share
            self._base.execute("pragma synchronous = full")
            self._base.executescript(_SCHEMA)
        if folder is not None:
            with self._writing():  # nobody else takes or looks at a place meanwhile
                self._held.enter_context(locked(self._place(self._id)))
                for place in (folder / ASKERS_NAME).iterdir():
                    self._bury(place.name)

    @property
    def killed(self) -> Collection[str]:
        """See :class:`QuestionLog`; none are told apart: what a dead process had claimed is free again."""
        return ()

    @property
    def id(self) -> str:
        """Of this opening."""
        return self._id

    def close(self) -> None:
        """Let go of everything; what was claimed and not asked is free. More than once does no more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._writing():
                self._base.execute("delete from flights where asker = ?", (self._id,))
                self._inherit(self._id)
            self._held.close()
            if self._folder is not None:
                shutil.rmtree(self._place(self._id), ignore_errors=True)

    def claim(self, keys: Sequence[str], again: Collection[str] = ()) -> Claims:
        """The answers to ``keys`` that are there; the other questions are claimed where nobody else is asking them.

        Answers to keys in ``again`` count only if they are usable.
        """
        claims = Claims(found=self._find(keys, again))
        left = [key for key in keys if key not in claims.found]
        if not left:
            return claims
        with self._writing():
            claims.found |= self._find(left, again)  # answered meanwhile
            for key in left:
                if key not in claims.found:
                    self._claim(key, claims)
        return claims

    def release(self, keys: Collection[str]) -> None:
        """Give claimed questions back that were not asked."""
        if keys:
            with self._writing():
                self._base.executemany(
                    "delete from flights where key = ? and asker = ?", [(key, self._id) for key in keys]
                )

    def asking(self, query: Query, expected_cost: float) -> None:
        """See :class:`QuestionLog`."""
        with self._writing():
            self._base.execute(
                "insert or replace into flights values (?, ?, ?)", (query.key, self._id, float(expected_cost))
            )

    def answered(self, query: Query, reply: Reply) -> Answer:
        """See :class:`QuestionLog`; a question that was not answered for good is free again."""
        answer = make_answer(query, reply)
        row = (
            answer.key,
            int(answer.is_final),
            answer.status,
            self._purpose,
            int(answer.requests == 1),
            answer.estimated_in,
            answer.tokens_in,
            answer.tokens_out,
            int(answer.tokens_estimated),
            answer.model_dump_json(),
        )
        how = "replace" if answer.is_final else "ignore"
        with self._writing():
            self._base.execute(f"insert or {how} into answers values ({', '.join('?' * len(row))})", row)
            self._base.execute("delete from flights where key = ?", (query.key,))
        return answer

    def measured(self) -> list[tuple[int, Usage]]:
        """(estimated input, usage) of the latest questions of this purpose that took one request."""
        with self._errors():
            rows = self._base.execute(
                "select estimated_in, tokens_in, tokens_out, estimated from answers where purpose = ? and single = 1 "
                "order by rowid desc limit ?",
                (self._purpose, _MEASURED),
            ).fetchall()
        return [(estimated, Usage(into, out, reported=not guessed)) for estimated, into, out, guessed in rows]

    def taken(self) -> tuple[float, float]:
        """See :class:`Ledger`: of everyone who has ever used the folder."""
        with self._errors():
            spent, reserved = self._base.execute(
                "select coalesce(sum(spent), 0.0), coalesce(sum(reserved), 0.0) from money"
            ).fetchone()
        return float(spent), float(reserved)

    def set_aside(self, most: float, cap: float) -> bool:
        """See :class:`Ledger`."""
        with self._writing():
            if sum(self.taken()) + most > cap:
                return False
            self._pay(0.0, most)
            return True

    def settle(self, reserved: float, cost: float) -> None:
        """See :class:`Ledger`."""
        if reserved or cost:
            with self._writing():
                self._pay(cost, -reserved)

    def _pay(self, spent: float, reserved: float) -> None:
        self._base.execute(
            "insert into money values (?1, ?2, ?3) on conflict (asker) do update set spent = spent + ?2, "
            "reserved = reserved + ?3",
            (self._id, float(spent), float(reserved)),
        )

    def _find(self, keys: Sequence[str], again: Collection[str]) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        with self._errors():
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(part))
                rows = self._base.execute(
                    f"select key, answer from answers where final = 1 and key in ({marks})", part
                ).fetchall()
                for key, text in rows:
                    answer = Answer.model_validate_json(text)
                    if answer.status == "answered" or key not in again:
                        found[key] = answer
        return found

    def _claim(self, key: str, claims: Claims) -> None:
        row = self._base.execute("select asker from flights where key = ?", (key,)).fetchone()
        if row is not None and not self._bury(row[0]):
            claims.elsewhere.add(key)
            return
        self._base.execute("insert or replace into flights values (?, ?, 0.0)", (key, self._id))
        claims.mine.add(key)

    def _bury(self, asker: str) -> bool:
        """Free what a process held that has died, and count what it had in flight; whether it has died."""
        if asker in (self._id, "") or self._folder is None or is_held(self._place(asker)):
            return False
        (lost,) = self._base.execute(
            "select coalesce(sum(expected_cost), 0.0) from flights where asker = ?", (asker,)
        ).fetchone()
        self._base.execute("delete from flights where asker = ?", (asker,))
        self._inherit(asker, lost)
        shutil.rmtree(self._place(asker), ignore_errors=True)
        return True

    def _inherit(self, asker: str, lost: float = 0.0) -> None:
        """Add what an asker spent, and what was lost with it, to the total of the past."""
        row = self._base.execute("select spent from money where asker = ?", (asker,)).fetchone()
        spent = (0.0 if row is None else row[0]) + lost
        self._base.execute("delete from money where asker = ?", (asker,))
        if spent:
            self._base.execute(
                "insert into money values ('', ?1, 0.0) on conflict (asker) do update set spent = spent + ?1", (spent,)
            )

    def _place(self, asker: str) -> Path:
        return (self._folder or Path()) / ASKERS_NAME / asker

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, alone among all processes; nothing of it counts where it fails."""
        with self._errors():
            self._base.execute("begin immediate")
            try:
                yield
                self._base.execute("commit")
            except BaseException:
                self._base.rollback()
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except OSError as error:
            raise StoreError(f"{error.filename or self._path}: cannot be used ({error.strerror})") from None
        except sqlite3.OperationalError as error:  # a full disk, a folder that is not writable, a lock never released
            raise StoreError(
                f"{self._path}: cannot be used ({error}); free some space or make it writable, and go on"
            ) from None
        except (sqlite3.DatabaseError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise StoreError(
                f"{self._path}: damaged, or not a file of answers ({reason}); restore it, or move it away to ask anew"
            ) from None
