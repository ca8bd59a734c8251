"""What was acknowledged is there, once, whatever happens to the server, the disk or the database."""

import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, event, text

from flowgrain.evaluate.study import database
from flowgrain.evaluate.study.folder import open_study

BINARIES = Path("/usr/lib/postgresql/15/bin")
SERVE = "from flowgrain.cli.study import study; study()"
PEOPLE = 20
PATIENCE = 60.0
"""Seconds after which a participant gives up and the test fails."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Server:
    """``flowgrain study serve`` in a process that can be killed and started again at the same address."""

    def __init__(self, folder, url):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-c", SERVE, "serve", str(folder), "--port", str(self.port),
                         "--address-rate", "100000", "--entry-rate", "100000"]  # fmt: skip
        self._command += ["--database", url] if url else []
        self._process = None

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            if self._process.poll() is not None:
                raise AssertionError(self._process.stderr.read())
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.address}/api/study").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def stop(self):
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.communicate(timeout=20)


class Stubborn(threading.Thread):
    """A participant who tries every request again until it is answered, and keeps what was acknowledged."""

    def __init__(self, address, number, enough):
        super().__init__(daemon=True)
        self.random = random.Random(number)
        self.address, self.number, self.enough = address, number, enough
        self.acknowledged = {}  # client_answer_id -> (position, revision, order of slots)
        self.sent = set()
        self.failure = None

    def run(self):
        try:
            with httpx.Client(base_url=self.address, timeout=10) as client:
                self.client = client
                self.take_part()
        except BaseException as error:
            self.failure = error

    def take_part(self):
        token = self.ask("POST", "/api/enter", {})["token"]
        self.client.headers["Authorization"] = f"Bearer {token}"
        self.ask("POST", "/api/consent", {"sha256": self.ask("GET", "/api/state")["consent"]["sha256"]})
        while (item := self.ask("GET", "/api/state")["item"]) is not None:
            self.answer(item)
            if self.random.random() < 0.3:
                self.look_back(item["position"])
            if item["position"] == 3:
                while not self.enough.is_set():
                    self.look_back(3)
        self.code = self.ask("GET", "/api/done")["completion_code"]

    def look_back(self, reached):
        self.answer(self.ask("GET", f"/api/items/{self.random.randint(0, reached)}"))
        time.sleep(0.02)

    def answer(self, item):
        slots = [picture["slot"] for picture in item["pictures"]]
        self.random.shuffle(slots)
        identity = f"person-{self.number}-{len(self.sent)}"
        self.sent.add(identity)
        body = {"item": item["key"], "answers": {"overall": [[slot] for slot in slots]}, "active_ms": 1,
                "client_answer_id": identity}  # fmt: skip
        receipt = self.ask("POST", "/api/answer", body)
        if self.random.random() < 0.2:
            assert self.ask("POST", "/api/answer", body) == receipt
        places = {picture["slot"]: place for place, picture in enumerate(item["pictures"])}
        self.acknowledged[identity] = (receipt["position"], receipt["revision"], [[places[slot]] for slot in slots])

    def ask(self, method, path, body=None):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                answer = self.client.request(method, path, json=body)
                if answer.status_code in (200, 201):
                    return answer.json()
                assert answer.status_code in (429, 503), answer.text
            time.sleep(self.random.uniform(0.02, 0.1))
        raise AssertionError(f"{path}: no answer in {PATIENCE} seconds")


def besiege(study, url, blows):
    """20 participants while each of ``blows`` strikes the server in turn; then everything is counted."""
    server = Server(study.folder, url)
    enough = threading.Event()
    people = [Stubborn(server.address, number, enough) for number in range(PEOPLE)]
    try:
        server.start()
        for who in people:
            who.start()
        pauses = random.Random(0)
        for blow in blows:
            wait_for_answers(people, PEOPLE)
            time.sleep(pauses.uniform(0, 0.5))
            blow(server)
        wait_for_answers(people, PEOPLE)
        enough.set()
        for who in people:
            who.join(timeout=2 * PATIENCE)
    finally:
        enough.set()
        server.stop()
    assert [who.failure for who in people if who.failure] == [] and not any(who.is_alive() for who in people)
    count(study, url, people)


def wait_for_answers(people, more):
    """Until ``more`` answers than now are acknowledged: blows fall while people answer, however slow the machine."""
    before = sum(len(who.acknowledged) for who in people)
    until = time.monotonic() + PATIENCE
    while sum(len(who.acknowledged) for who in people) < before + more:
        assert time.monotonic() < until and not any(who.failure for who in people), [who.failure for who in people]
        time.sleep(0.01)


def kill(server):
    server.kill()
    time.sleep(0.1)
    server.start()


def count(study, url, people):
    """No acknowledged answer is lost or doubled, and nothing is there that nobody sent."""
    opened = open_study(study.folder, url)
    collected = opened.store.collected()
    opened.store.engine.dispose()
    stored = {}
    for row in collected.answers:
        stored.setdefault(row.client_answer_id, []).append((row.position, row.revision, row.content))
    assert {identity for identity, rows in stored.items() if len(rows) != 1} == set()
    for who in people:
        for identity, (position, revision, tiers) in who.acknowledged.items():
            assert stored[identity] == [(position, revision, json.dumps({"overall": tiers}, separators=(",", ":")))]
    assert set(stored) == {identity for who in people for identity in who.acknowledged}
    assert set(stored) <= {identity for who in people for identity in who.sent}
    agreed = [row for row in collected.participants if row.number is not None]
    assert sorted(row.number for row in agreed) == list(range(PEOPLE))
    assert {row.completion_code for row in agreed} == {who.code for who in people}
    revisions = {}
    for row in collected.answers:
        revisions.setdefault((row.participant, row.position), []).append(row.revision)
    assert all(sorted(found) == list(range(1, len(found) + 1)) for found in revisions.values())
    assert len(revisions) == PEOPLE * 7


@pytest.fixture(scope="session")
def cluster():
    """A private PostgreSQL 15 on 127.0.0.1, started as a user that may, with its files in a folder of its own."""
    if not (BINARIES / "initdb").exists():
        pytest.skip("Debian's postgresql-15 is not installed")
    as_user = []
    folder = Path(tempfile.mkdtemp(prefix="flowgrain-postgres-"))
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            owner = pwd.getpwnam("nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_user = ["runuser", "-u", owner.pw_name, "--"]
    port = free_port()

    def run(program, *arguments):
        subprocess.run([*as_user, str(BINARIES / program), *arguments], check=True, cwd=folder, capture_output=True)

    data, log = str(folder / "data"), str(folder / "log")
    run("initdb", "-D", data, "-A", "trust", "-U", "study", "--locale=C", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c synchronous_commit=off"
    start = ("-D", data, "-l", log, "-w", "-t", "60", "-o", options)
    run("pg_ctl", "start", *start)
    yield f"postgresql://study@127.0.0.1:{port}", lambda: run("pg_ctl", "restart", "-m", "immediate", *start)
    run("pg_ctl", "stop", "-D", data, "-m", "immediate", "-w")
    shutil.rmtree(folder)


@pytest.fixture
def postgres(cluster, request):
    """(URL of a new database, function that kills the database server and starts it again)."""
    address, restart = cluster
    name = f"study_{abs(hash(request.node.name))}"
    admin = create_engine(
        f"{address.replace('postgresql', 'postgresql+psycopg')}/postgres", isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"{address}/{name}", restart


def test_twenty_people_and_a_server_that_is_killed(make_study):
    besiege(make_study(), None, [kill] * 3)


@pytest.mark.slow
def test_twenty_people_and_a_server_that_is_killed_often(make_study):
    besiege(make_study(), None, [kill] * 15)


def test_twenty_people_on_postgresql(make_study, postgres):
    url, restart = postgres
    besiege(make_study(), url, [kill, lambda _server: restart(), kill])


@pytest.mark.slow
def test_twenty_people_on_postgresql_for_long(make_study, postgres):
    url, restart = postgres
    besiege(make_study(), url, [kill, lambda _server: restart()] * 6)


def test_postgresql_commits_synchronously_whatever_its_configuration_says(postgres):
    engine = database.connect(database.database_url(postgres[0], Path()))
    with database.reading(engine) as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
    engine.dispose()


def test_a_sitting_on_postgresql(make_study, postgres, client_of, person):
    study = open_study(make_study(exclusions={"min_median_seconds": 0, "max_failed_checks": 9}).folder, postgres[0])
    client = client_of(study)
    anna, berta = person(client), person(client)
    anna.finish()
    item = anna.get("/api/items/2").json()
    first = anna.answer(item, [[0, 1], [2], [3]], answer_id="a-second-thought")
    assert first.json()["revision"] == 2
    assert anna.answer(item, [[0, 1], [2], [3]], answer_id="a-second-thought").json() == first.json()
    berta.finish(stop_after=2)
    assert berta.post("/api/withdraw", {"confirm": True}).status_code == 200
    from flowgrain.evaluate.study.results import compute_results

    facts = compute_results(study).facts
    assert (facts.participants, facts.finished, facts.withdrawn, facts.counted) == (1, 1, 1, 1)
    study.store.engine.dispose()


def test_sqlite_is_opened_durably(make_study):
    study = make_study()
    with database.reading(study.store.engine) as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


def test_withdrawn_answers_are_not_left_in_the_file(make_study, client_of, person):
    study = make_study()
    anna = person(client_of(study))
    anna.finish(stop_after=4)
    stored = study.store.collected().answers[2].client_answer_id.encode()
    anna.post("/api/withdraw", {"confirm": True})
    study.store.engine.dispose()  # the last connection writes the log into the file and deletes it
    assert stored not in (study.folder / "study.db").read_bytes()
    assert not (study.folder / "study.db-wal").exists()


def test_a_full_disk_is_said_and_loses_nothing(make_study, client_of, person):
    study = make_study()
    anna = person(client_of(study))
    anna.finish(stop_after=2)
    item = anna.state()["item"]
    before = [tuple(row) for row in study.store.collected().answers]

    @event.listens_for(study.store.engine, "checkout")
    def limit(connection, _record, _proxy):
        connection.execute("PRAGMA max_page_count = 1")  # SQLite then says that the disk is full, at once

    filled = 0
    while (answer := anna.answer(item, answer_id=f"while-full-{filled:08d}-{'x' * 40}")).status_code == 200:
        filled += 1
        assert filled < 200
    assert (answer.status_code, answer.json()["error"]) == (503, "try_again")
    assert int(answer.headers["retry-after"]) >= 1
    assert anna.get("/api/state").status_code == 200  # reading goes on
    event.remove(study.store.engine, "checkout", limit)
    study.store.engine.dispose()
    later = anna.answer(item, answer_id=f"while-full-{filled:08d}-{'x' * 40}")
    assert later.status_code == 200 and later.json()["revision"] == filled + 1
    after = [tuple(row) for row in study.store.collected().answers]
    assert after[: len(before)] == before and len(after) == len(before) + filled + 1


def test_a_locked_database_is_said_and_loses_nothing(make_study, client_of, person, monkeypatch):
    monkeypatch.setattr(database, "BUSY_MILLISECONDS", 100)
    study = make_study()
    anna = person(client_of(study))
    anna.finish(stop_after=1)
    item = anna.state()["item"]
    holder = sqlite3.connect(study.folder / "study.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    refused = anna.answer(item, answer_id="while-it-is-locked")
    assert (refused.status_code, refused.json()["error"]) == (503, "try_again")
    assert client_of(study).post("/api/enter", json={}).status_code == 503
    assert anna.get("/api/state").status_code == 200
    holder.execute("ROLLBACK")
    holder.close()
    assert anna.answer(item, answer_id="while-it-is-locked").json()["revision"] == 1


def test_a_bug_is_one_line_for_the_participant(make_study, client_of, person, monkeypatch):
    study = make_study()
    anna = person(client_of(study))
    monkeypatch.setattr(type(study.store), "closed", lambda self: 1 / 0)
    answer = anna.get("/api/state")
    assert answer.status_code == 500 and answer.json()["error"] == "internal" and "Zero" not in answer.text
