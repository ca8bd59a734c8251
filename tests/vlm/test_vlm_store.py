"""Answers on disk: whole, shared, never lost to a kill, and the money of all who share them counted."""

import json
import multiprocessing
import os
import sqlite3
import threading

import pytest

from flowgrain.vlm.answers import Query, Reply
from flowgrain.vlm.budget import Account, Budget, OutOfBudget, Usage
from flowgrain.vlm.config import BudgetConfig
from flowgrain.vlm.store import ASKERS_NAME, STORE_NAME, AnswerStore, StoreError

ODD = "caf\u00e9 \u2028 line \x85 separators \U0001f98a"


def query(key, tokens=10):
    return Query(key, {"image": ODD}, tokens, lambda: [], None, lambda text: {}, lambda problem: problem)


def reply(status="answered", cost=0.0, requests=1):
    answer = {"x": 1} if status == "answered" else None
    return Reply(status, answer, [ODD], "", "m", "r", Account(requests, [], 20, 2, False, cost), 0.5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vlm"


@pytest.fixture
def opened(folder):
    """purpose -> store; all are closed."""
    stores = []

    def go(purpose="boxes", place=folder):
        stores.append(AnswerStore(place, purpose))
        return stores[-1]

    yield go
    for store in stores:
        store.close()


@pytest.mark.parametrize("memory", [False, True])
def test_what_is_answered_is_found_by_everyone_who_comes_later(opened, folder, memory):
    place = None if memory else folder
    store = opened(place=place)
    keys = [f"k{number}" for number in range(1200)]
    assert store.claim(keys).mine == set(keys)
    for key in keys[:3]:
        store.asking(query(key), 0.5)
        store.answered(query(key), reply())
    store.release(keys)
    for later in (store, store if memory else opened("captions")):
        claims = later.claim(keys)
        assert list(claims.found) == keys[:3] and claims.found["k0"].raw == (ODD,)
        assert claims.found["k0"].about == {"image": ODD} and claims.mine == set(keys[3:])
        later.release(keys[3:])


def test_what_another_is_asking_is_left_to_it_until_it_gives_up_or_dies(opened):
    first, second = opened(), opened()
    assert first.claim(["a", "b"]).mine == {"a", "b"}
    claims = second.claim(["a", "b", "c"])
    assert (claims.mine, claims.elsewhere) == ({"c"}, {"a", "b"})
    first.release(["b"])
    assert second.claim(["a", "b"]).mine == {"b"}
    first.answered(query("a"), reply())
    assert list(second.claim(["a"]).found) == ["a"]
    second.close()
    assert first.claim(["b", "c"]).mine == {"b", "c"}


@pytest.mark.parametrize("status", ["unreachable", "stopped"])
def test_what_is_not_for_good_is_no_answer_and_hides_none(opened, status):
    store = opened()
    store.answered(query("a"), reply(status))
    assert store.claim(["a"]).mine == {"a"}
    store.answered(query("a"), reply("refused"))
    store.answered(query("a"), reply(status))
    assert store.claim(["a"]).found["a"].status == "refused"
    assert store.claim(["a"], again={"a"}).mine == {"a"}
    store.answered(query("a"), reply())
    assert store.claim(["a"], again={"a"}).found["a"].status == "answered"


def test_money_is_that_of_everyone(opened):
    config = BudgetConfig(price_in=1.0, price_out=1.0, max_cost=0.001)
    first, second = (Budget(config, ledger=opened()) for _ in range(2))
    most = first.reserve(500, 300)
    assert most == pytest.approx(0.0008) and not second.affords(100, 101) and second.affords(100, 99)
    with pytest.raises(OutOfBudget, match=r"could cost 0\.0008"):
        second.reserve(500, 300)
    first.settle(most, None)
    assert second.reserve(500, 300) == most


def test_what_was_spent_counts_in_later_sessions_with_or_without_a_cap(folder):
    for cap in (None, 10.0):
        store = AnswerStore(folder, "boxes")
        budget = Budget(BudgetConfig(price_in=1e6, price_out=1e6, max_cost=cap), ledger=store)
        before = budget.spent
        reserved = budget.reserve(1, 1)
        budget.settle(reserved, Usage(1, 1))
        assert budget.spent == before + 2.0
        store.close()
    assert before == 2.0 and not list((folder / ASKERS_NAME).iterdir())


def test_what_was_measured_is_known_to_later_sessions_of_the_same_purpose(opened, monkeypatch):
    store = opened()
    for number in range(30):
        store.answered(query(f"k{number}"), reply(requests=1 if number % 2 else 2))
    assert len(opened().measured()) == 15 and opened("captions").measured() == []
    monkeypatch.setattr("flowgrain.vlm.store._MEASURED", 4)
    assert len(store.measured()) == 4 and store.measured()[0][0] == 10 and store.measured()[0][1].tokens_in == 20


def _hold(folder, ready, answered):
    store = AnswerStore(folder, "boxes")
    budget = Budget(BudgetConfig(price_in=1.0, price_out=1.0, max_cost=1.0), ledger=store)
    store.claim(["a", "b", "c"])
    for key in "ab":
        store.asking(query(key), 0.25)
    budget.reserve(500, 300)
    store.answered(query("b"), reply())
    answered.set()
    ready.wait()


def test_what_a_killed_process_held_is_free_and_its_questions_count_at_what_they_were_to_cost(folder, opened):
    context = multiprocessing.get_context("forkserver")
    ready, answered = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(folder, ready, answered))
    process.start()
    assert answered.wait(60)
    store = opened()
    claims = store.claim(["a", "b", "c"])
    assert (list(claims.found), claims.mine, claims.elsewhere) == (["b"], set(), {"a", "c"})
    process.kill()
    process.join()
    assert store.claim(["a", "c"]).mine == {"a", "c"}
    assert store.taken() == (0.25, 0.0)
    assert [place.name for place in (folder / ASKERS_NAME).iterdir()] == [store.id]
    assert opened().taken() == (0.25, 0.0)


def test_threads_may_share_it(opened):
    store = opened()
    budget = Budget(BudgetConfig(price_in=1e6, price_out=0.0, max_cost=1e9), ledger=store)

    def work(name):
        for number in range(10):
            key = f"{name}-{number}"
            store.asking(query(key), 1.0)
            budget.settle(budget.reserve(1, 0), Usage(1, 0))
            store.answered(query(key), reply(cost=1.0))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.taken() == (40.0, 0.0)
    assert len(store.claim([f"{name}-{number}" for name in "abcd" for number in range(10)]).found) == 40


def test_a_damaged_file_is_one_clear_line_and_is_left_alone(folder):
    folder.mkdir()
    (folder / STORE_NAME).write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreError, match=r"answers\.sqlite: damaged, or not a file of answers"):
        AnswerStore(folder, "boxes")
    assert (folder / STORE_NAME).read_bytes() == b"nonsense" * 1000


def test_a_line_that_is_no_answer_is_one_clear_line(opened, folder):
    store = opened()
    store.answered(query("a"), reply())
    with sqlite3.connect(folder / STORE_NAME) as base:
        base.execute("update answers set answer = '{}'")
    with pytest.raises(StoreError, match="damaged"):
        store.claim(["a"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be used"):
        AnswerStore(tmp_path / "vlm", "boxes")


def test_a_full_disk_is_one_clear_line_and_nothing_of_the_answer_is_there(opened, folder):
    store = opened()
    store.answered(query("a"), reply())
    store._base.execute("pragma max_page_count = 1")  # as if the disk were full
    big = Reply("answered", {"x": "y" * 200_000}, [], "", "m", "r", Account(), 0.5)
    with pytest.raises(StoreError, match=r"cannot be used \(database or disk is full\); free some space"):
        store.answered(query("b"), big)
    assert list(store.claim(["a", "b"]).found) == ["a"]


def test_answers_are_json_that_any_reader_of_the_file_understands(opened, folder):
    opened().answered(query("a"), reply())
    with sqlite3.connect(folder / STORE_NAME) as base:
        ((text,),) = base.execute("select answer from answers where status = 'answered'").fetchall()
    assert json.loads(text)["raw"] == [ODD]
