"""What participants did, in the database. Every function is one transaction; what it returns is durable.

Raises :class:`Refusal` for what a participant may not do; errors of the database itself come through.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, insert, inspect, select, update

from flowgrain.errors import DataError
from flowgrain.evaluate.study.database import (
    answers,
    metadata,
    participants,
    reading,
    study,
    tokens,
    views,
    writing,
)
from flowgrain.evaluate.study.refusal import Refusal

SCHEMA_VERSION = 1
DAY_MS = 24 * 60 * 60 * 1000
ENTRIES_PER_PLACE = 10
"""How many may open the study for each who may take part; the place is taken at consent."""
_CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"


@dataclass(frozen=True)
class Participant:
    """Whom a token belongs to."""

    id: int
    name: str
    number: int | None
    """Of the assignment; None before consent."""
    finished: bool
    completion_code: str | None
    external_id: str | None


@dataclass(frozen=True)
class Submission:
    """One answer as it arrives; ``content`` is canonical, so that a replay compares equal."""

    position: int
    client_answer_id: str
    content: str
    active_ms: int


@dataclass(frozen=True)
class Receipt:
    """What is acknowledged, the same for every replay."""

    position: int
    revision: int
    client_answer_id: str
    received_at: int


@dataclass(frozen=True)
class Collected:
    """Everything that the database holds, at one moment."""

    opened_at: int
    closed_at: int | None
    participants: tuple[Row[Any], ...]
    views: tuple[Row[Any], ...]
    answers: tuple[Row[Any], ...]


class Store:
    """The database of one study."""

    def __init__(self, engine: Engine, places: int, token_days: float = 60.0):
        self.engine = engine
        self._places = places
        self._token_ms = round(token_days * DAY_MS)

    def open(self, seal: str, create: bool) -> None:
        """Make the tables where there are none (if ``create``) and store the seal; later it must be the same.

        Raises DataError where the database belongs to another study, or holds none.
        """
        shown = self.engine.url.render_as_string(hide_password=True)
        if not create and not inspect(self.engine).has_table(study.name):
            raise DataError(f"{shown}: holds no study; 'flowgrain study serve' opens one, --database names another one")
        metadata.create_all(self.engine)
        with writing(self.engine) as connection:
            row = connection.execute(select(study)).one_or_none()
            if row is None:
                values = {"id": 1, "schema_version": SCHEMA_VERSION, "seal": seal, "opened_at": now()}
                connection.execute(insert(study).values(values))
                return
        if row.schema_version != SCHEMA_VERSION:
            raise DataError(f"{shown}: version {row.schema_version}; this flowgrain reads version {SCHEMA_VERSION}")
        if row.seal != seal:
            raise DataError(
                f"{shown} was opened with the seal {row.seal}, the study has {seal}: the seal is broken, or the "
                "database belongs to another study"
            )

    def closed(self) -> bool:
        """Whether the study was closed."""
        with reading(self.engine) as connection:
            return connection.execute(select(study.c.closed_at)).scalar_one() is not None

    def close(self) -> bool:
        """Take no answer from now on; False where it was closed before."""
        with writing(self.engine) as connection:
            open_ = study.c.closed_at.is_(None)
            return connection.execute(update(study).where(open_).values(closed_at=now())).rowcount == 1

    def full(self) -> bool:
        """Whether every place is taken."""
        with reading(self.engine) as connection:
            return self._next_number(connection) >= self._places

    def invite(self, count: int) -> list[str]:
        """``count`` new participants; their tokens, which are stored as hashes only."""
        with writing(self.engine) as connection:
            self._lock_study(connection)
            if self._entries(connection) + count > self._places * ENTRIES_PER_PLACE:
                raise Refusal("full")
            return [self._new_token(connection, self._new_participant(connection)) for _ in range(count)]

    def enter(self) -> str:
        """A new participant's token."""
        with writing(self.engine) as connection:
            self._lock_study(connection)
            self._check_room(connection)
            return self._new_token(connection, self._new_participant(connection))

    def enter_external(self, external_id: str, session: str | None) -> str:
        """A token for the participant with this id of a recruiting service.

        Who comes back must show the session that the first entry had: an id alone is known to others.
        """
        digest = None if session is None else _sha256(session)
        with writing(self.engine) as connection:
            self._lock_study(connection)
            row = connection.execute(
                select(participants).where(participants.c.external_id == external_id)
            ).one_or_none()
            if row is None:
                self._check_room(connection)
                return self._new_token(connection, self._new_participant(connection, external_id, digest))
            if digest is None or row.session_sha256 != digest:
                raise Refusal("already_started")
            return self._new_token(connection, row.id)

    def participant(self, token: str) -> Participant:
        """Whose token it is; Refusal ``bad_token`` for an unknown or expired one."""
        query = (
            select(participants)
            .join(tokens, tokens.c.participant == participants.c.id)
            .where(tokens.c.sha256 == _sha256(token), tokens.c.expires_at > now())
        )
        with reading(self.engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise Refusal("bad_token")
        finished = row.finished_at is not None
        return Participant(row.id, row.name, row.number, finished, row.completion_code, row.external_id)

    def consent(self, participant: int, sha256: str) -> int:
        """Store the agreement and give the participant the next number of the assignment, once."""
        with writing(self.engine) as connection:
            self._lock_study(connection)
            row = _lock(connection, participant)
            if row.number is not None:
                return row.number
            _check_open(connection)
            number = self._next_number(connection)
            if number >= self._places:
                raise Refusal("full")
            code = "".join(secrets.choice(_CODE_LETTERS) for _ in range(8))
            values = {
                "number": number,
                "consented_at": now(),
                "consent_sha256": sha256,
                "completion_code": f"{code[:4]}-{code[4:]}",
            }
            connection.execute(update(participants).where(participants.c.id == participant).values(values))
            return number

    def reached(self, participant: int) -> int:
        """The first position without an answer."""
        with reading(self.engine) as connection:
            return _reached(connection, participant)

    def view(self, participant: int, position: int) -> str | None:
        """Note that a position is shown; the content of its latest answer.

        The first showing is stored once. It is read first, so that reloading a page writes nothing.
        """
        where = (views.c.participant == participant, views.c.position == position)
        with reading(self.engine) as connection:
            seen = connection.execute(select(views).where(*where)).one_or_none()
            latest = connection.execute(
                select(answers.c.content)
                .where(answers.c.participant == participant, answers.c.position == position)
                .order_by(answers.c.revision.desc())
                .limit(1)
            ).scalar_one_or_none()
        if seen is None or latest is not None:
            with writing(self.engine) as connection:
                _lock(connection, participant)
                _note_view(connection, participant, position)
        return latest

    def record(self, participant: int, submission: Submission, last: int) -> Receipt:
        """Store an answer, or find that it is stored already. ``last`` is the position that ends the sitting."""
        with writing(self.engine) as connection:
            row = _lock(connection, participant)
            replayed = _replayed(connection, participant, submission)
            if replayed is not None:
                return replayed
            _check_open(connection)
            if row.number is None:
                raise Refusal("wrong_step")
            if submission.position > _reached(connection, participant):
                raise Refusal("not_found")
            receipt = _insert_answer(connection, participant, submission)
            if submission.position == last and row.finished_at is None:
                finished = update(participants).where(participants.c.id == participant)
                connection.execute(finished.values(finished_at=receipt.received_at))
            return receipt

    def withdraw(self, participant: int) -> None:
        """Delete what a participant did and the ids; the row with its number stays, so that it is not given again."""
        with writing(self.engine) as connection:
            _lock(connection, participant)
            for table in (answers, views, tokens):
                connection.execute(delete(table).where(table.c.participant == participant))
            forgotten = {
                "external_id": None,
                "session_sha256": None,
                "consented_at": None,
                "consent_sha256": None,
                "finished_at": None,
                "completion_code": None,
                "withdrawn_at": now(),
            }
            connection.execute(update(participants).where(participants.c.id == participant).values(forgotten))

    def collected(self) -> Collected:
        """Everything, for the results."""
        with reading(self.engine) as connection:
            opened_at, closed_at = connection.execute(select(study.c.opened_at, study.c.closed_at)).one()
            return Collected(
                opened_at,
                closed_at,
                tuple(connection.execute(select(participants).order_by(participants.c.id))),
                tuple(connection.execute(select(views).order_by(views.c.participant, views.c.position))),
                tuple(
                    connection.execute(
                        select(answers).order_by(answers.c.participant, answers.c.position, answers.c.revision)
                    )
                ),
            )

    def _lock_study(self, connection: Connection) -> None:
        connection.execute(select(study.c.id).with_for_update())

    def _next_number(self, connection: Connection) -> int:
        return connection.execute(select(func.coalesce(func.max(participants.c.number), -1))).scalar_one() + 1

    def _entries(self, connection: Connection) -> int:
        return connection.execute(select(func.count()).select_from(participants)).scalar_one()

    def _check_room(self, connection: Connection) -> None:
        _check_open(connection)
        if self._next_number(connection) >= self._places:
            raise Refusal("full")
        if self._entries(connection) >= self._places * ENTRIES_PER_PLACE:
            raise Refusal("full")

    def _new_participant(
        self, connection: Connection, external_id: str | None = None, session_sha256: str | None = None
    ) -> int:
        values = {
            "name": f"p-{secrets.token_hex(5)}",
            "external_id": external_id,
            "session_sha256": session_sha256,
            "created_at": now(),
        }
        return connection.execute(insert(participants).values(values).returning(participants.c.id)).scalar_one()

    def _new_token(self, connection: Connection, participant: int) -> str:
        token = secrets.token_urlsafe(24)
        values = {"sha256": _sha256(token), "participant": participant, "expires_at": now() + self._token_ms}
        connection.execute(insert(tokens).values(values))
        return token


def now() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def _lock(connection: Connection, participant: int) -> Row[Any]:
    """The participant's row, held until the transaction ends; Refusal where they withdrew meanwhile."""
    row = connection.execute(
        select(participants).where(participants.c.id == participant).with_for_update()
    ).one_or_none()
    if row is None or row.withdrawn_at is not None:
        raise Refusal("bad_token")
    return row


def _check_open(connection: Connection) -> None:
    if connection.execute(select(study.c.closed_at)).scalar_one() is not None:
        raise Refusal("closed")


def _reached(connection: Connection, participant: int) -> int:
    """Positions are answered in order, so the highest one tells."""
    query = select(func.coalesce(func.max(answers.c.position), -1)).where(answers.c.participant == participant)
    return connection.execute(query).scalar_one() + 1


def _note_view(connection: Connection, participant: int, position: int) -> int:
    """Insert or refresh a view; returns when the position was first shown."""
    moment = now()
    where = (views.c.participant == participant, views.c.position == position)
    first = connection.execute(select(views.c.first_at).where(*where)).scalar_one_or_none()
    if first is None:
        values = {"participant": participant, "position": position, "first_at": moment, "last_at": moment}
        connection.execute(insert(views).values(values))
        return moment
    connection.execute(update(views).where(*where).values(last_at=moment))
    return first


def _replayed(connection: Connection, participant: int, submission: Submission) -> Receipt | None:
    same_id = (answers.c.participant == participant, answers.c.client_answer_id == submission.client_answer_id)
    row = connection.execute(select(answers).where(*same_id)).one_or_none()
    if row is None:
        return None
    if Submission(row.position, row.client_answer_id, row.content, submission.active_ms) != submission:
        raise Refusal("answer_id_reused")
    return Receipt(row.position, row.revision, row.client_answer_id, row.received_at)


def _insert_answer(connection: Connection, participant: int, submission: Submission) -> Receipt:
    """The next revision. Active time is at most what passed since the position was first shown."""
    at = (answers.c.participant == participant, answers.c.position == submission.position)
    revision = connection.execute(select(func.count()).select_from(answers).where(*at)).scalar_one() + 1
    shown_at = (views.c.participant == participant, views.c.position == submission.position)
    shown = connection.execute(select(views.c.first_at, views.c.last_at).where(*shown_at)).one_or_none()
    moment = now()
    first, latest = (moment, moment) if shown is None else (shown.first_at, shown.last_at)
    if shown is None:
        _note_view(connection, participant, submission.position)
    values = {
        "participant": participant,
        "position": submission.position,
        "revision": revision,
        "client_answer_id": submission.client_answer_id,
        "content": submission.content,
        "active_ms": max(0, min(submission.active_ms, moment - first)),
        "elapsed_ms": max(0, moment - (first if revision == 1 else latest)),
        "received_at": moment,
    }
    connection.execute(insert(answers).values(values))
    return Receipt(submission.position, revision, submission.client_answer_id, moment)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
