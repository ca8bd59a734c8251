"""Tables and connections. A commit returns when the data is on the disk: that is what an acknowledgement means.

SQLite runs with a write-ahead log and ``synchronous=FULL`` (the log is synced at every commit) and takes the write lock
when a writing transaction begins. PostgreSQL runs with ``synchronous_commit`` on, whatever its configuration says.
Times are milliseconds since 1970 in UTC.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from flowgrain.errors import ConfigError, MissingExtraError

try:
    from sqlalchemy import (
        BigInteger,
        Column,
        Connection,
        Engine,
        ForeignKey,
        Integer,
        MetaData,
        String,
        Table,
        Text,
        UniqueConstraint,
        create_engine,
        event,
        make_url,
    )
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError
except ImportError:
    raise MissingExtraError("sqlalchemy", "study", "the human study") from None

DATABASE_NAME = "study.db"
BUSY_MILLISECONDS = 5000
"""How long a request waits for another one's write before it is told to try again."""

# errors are logged: they must not hold answers or ids
_POOL: dict[str, Any] = {"pool_size": 20, "pool_timeout": BUSY_MILLISECONDS / 1000, "hide_parameters": True}

# SQLite lets those who wait for its lock try again at random times, and some wait very long: threads take turns instead
_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()

metadata = MetaData()

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("schema_version", Integer, nullable=False),
    Column("seal", String(64), nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
)
participants = Table(
    "participants",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(16), nullable=False, unique=True),
    Column("number", Integer, unique=True),  # of the assignment, given at consent
    Column("external_id", String(64), unique=True),
    Column("session_sha256", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("consented_at", BigInteger),
    Column("consent_sha256", String(64)),
    Column("finished_at", BigInteger),
    Column("completion_code", String(16)),
    Column("withdrawn_at", BigInteger),
)
tokens = Table(
    "tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("participant", ForeignKey("participants.id"), nullable=False, index=True),
    Column("expires_at", BigInteger, nullable=False),
)
views = Table(
    "views",
    metadata,
    Column("participant", ForeignKey("participants.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
)
answers = Table(
    "answers",
    metadata,
    Column("participant", ForeignKey("participants.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("client_answer_id", String(64), nullable=False),
    Column("content", Text, nullable=False),
    Column("active_ms", BigInteger, nullable=False),
    Column("elapsed_ms", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    UniqueConstraint("participant", "client_answer_id"),
)


def database_url(text: str | None, folder: Path) -> URL:
    """The database that ``--database`` names; ``study.db`` of the folder where it is not given.

    Raises ConfigError for what is no URL of SQLite or PostgreSQL; the message holds no password.
    """
    if text is None:
        return URL.create("sqlite", database=str(folder / DATABASE_NAME))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError("--database: not a URL; for example postgresql://user@host/name") from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite")
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    shown = url.render_as_string(hide_password=True)
    raise ConfigError(f"--database {shown}: use sqlite:///FILE or postgresql://user@host/name")


def connect(url: URL) -> Engine:
    """An engine with durable commits. Raises MissingExtraError where the driver is not installed."""
    if url.drivername == "sqlite":
        return _sqlite(url)
    try:
        engine = create_engine(url, pool_pre_ping=True, **_POOL)
    except ModuleNotFoundError:
        raise MissingExtraError("psycopg", "postgres", "a study on PostgreSQL") from None

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"SET lock_timeout = {BUSY_MILLISECONDS}")
        connection.commit()

    return engine


def _sqlite(url: URL) -> Engine:
    path = Path(str(url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # answers are for their owner's eyes; the log inherits it
    engine = create_engine(url, connect_args={"timeout": BUSY_MILLISECONDS / 1000}, **_POOL)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    _turns[engine] = threading.Lock()
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that will write; it is durable when the block is left."""
    with _turn(engine), engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    turn = _turns.get(engine)
    if turn is None:  # PostgreSQL, which locks rows
        yield
        return
    if not turn.acquire(timeout=BUSY_MILLISECONDS / 1000):
        raise PoolTimeoutError("too many others are writing")
    try:
        yield
    finally:
        turn.release()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads one state of the database."""
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection
