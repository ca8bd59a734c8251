"""No question is paid for twice: not in one process, not in two at once, not after a kill at any moment."""

import hashlib
import multiprocessing
import sys
import threading
import time

import pytest
from fake_endpoint import Fail, FakeEndpoint, Say

from flowgrain.errors import ConfigError, MissingExtraError
from flowgrain.vlm.answers import Query, read_object
from flowgrain.vlm.asker import Asker, AskingForecast, Spending, question_key
from flowgrain.vlm.failures import BudgetError
from flowgrain.vlm.settings import VlmConfig
from flowgrain.vlm.store import AnswerStore

FINE = Say('{"x": 1}')
CONCURRENCY = 3


def settings(url, **more):
    endpoint = {"model": "fake", "base_url": url, "first_wait": 0.0, "max_answer_tokens": 50}
    asking = {"concurrency": CONCURRENCY, "repairs": 0} | more.pop("asking", {})
    return VlmConfig(endpoint=endpoint, asking=asking, **more)


def queries(names, tokens=100):
    def make(name):
        return Query(
            key=hashlib.sha256(str(name).encode()).hexdigest(),
            about={"image": f"{name}.png"},
            estimated_in=tokens,
            messages=lambda: [{"role": "user", "content": [{"type": "text", "text": f"question {name}"}]}],
            schema=None,
            read=lambda text: read_object(text, {"x": "a number"}),
            repair=lambda problem: problem,
        )

    return [make(name) for name in names]


def ask_in_batches(url, folder, names, more):
    """What a worker process does."""
    asker = Asker(settings(url, **more), "things", folder)
    for start in range(0, len(names), CONCURRENCY):
        try:
            asker.ask(queries(names[start : start + CONCURRENCY]))
        except BudgetError:
            break
    asker.close()


@pytest.fixture
def start(tmp_path):
    """(url, names, settings) -> a process that asks into the shared folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowgrain.vlm.asker", "openai"])
    started = []

    def go(url, names, **more):
        started.append(context.Process(target=ask_in_batches, args=(url, tmp_path / "vlm", list(names), more)))
        started[-1].start()
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.join()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def answered(folder, names):
    store = AnswerStore(folder, "looking")
    claims = store.claim([query.key for query in queries(names)])
    store.close()
    return len(claims.found)


def test_two_processes_that_want_the_same_answers_pay_for_each_once(start, tmp_path):
    def behave(call):
        time.sleep(0.05)
        return FINE

    with FakeEndpoint(behave) as endpoint:
        processes = [start(endpoint.url, order) for order in (range(30), range(29, -1, -1), range(30))]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert len(endpoint.calls) == 30 == answered(tmp_path / "vlm", range(30))


def test_killed_and_started_again_no_answered_question_is_asked_twice(start, tmp_path):
    def behave(call):
        time.sleep(0.03)
        return FINE

    with FakeEndpoint(behave) as endpoint:
        known = 0
        for stop_at in (7, 16, 25):
            process = start(endpoint.url, range(40))
            wait_for(lambda stop_at=stop_at: len(endpoint.calls) >= stop_at)
            process.kill()
            process.join()
            wait_for(lambda: endpoint.at_once == 0)  # the server still answers what the process had sent
            assert answered(tmp_path / "vlm", range(40)) > known
            known = answered(tmp_path / "vlm", range(40))
        process = start(endpoint.url, range(40))
        process.join(60)
        assert process.exitcode == 0 and answered(tmp_path / "vlm", range(40)) == 40
        # what was in flight at a kill is asked again, nothing else is
        assert len(endpoint.calls) <= 40 + 3 * CONCURRENCY and max(endpoint.counts.values()) <= 4


def test_the_cap_is_that_of_all_processes(start, tmp_path):
    def behave(call):
        time.sleep(0.02)
        return FINE

    budget = {"price_in": 1.0, "price_out": 1.0, "max_cost": 0.0021}  # a question costs 0.00011, at most 0.00015
    with FakeEndpoint(behave) as endpoint:
        ranges = range(40), range(100, 140), range(200, 240)
        processes = [start(endpoint.url, names, budget=budget) for names in ranges]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    store = AnswerStore(tmp_path / "vlm", "looking")
    spent, reserved = store.taken()
    store.close()
    assert spent == pytest.approx(len(endpoint.calls) * 0.00011) and reserved == pytest.approx(0.0)
    assert 0.0021 - 3 * 3 * 0.00015 < spent <= 0.0021


def test_a_question_that_another_gives_up_is_asked_by_the_one_that_waits(tmp_path):
    other = AnswerStore(tmp_path, "things")
    other.claim([queries(["a"])[0].key])
    threading.Timer(0.5, other.close).start()
    with FakeEndpoint(lambda call: FINE) as endpoint:
        asker = Asker(settings(endpoint.url), "things", tmp_path)
        begun = time.monotonic()
        answers = asker.ask(queries(["a", "b"]))
        assert {answer.status for answer in answers.values()} == {"answered"} and time.monotonic() - begun >= 0.4
        asker.close()
    assert asker.spending.questions == 2


def test_an_error_gives_back_what_was_claimed(tmp_path):
    with FakeEndpoint(lambda call: Fail(401)) as endpoint:
        asker = Asker(settings(endpoint.url), "things", tmp_path)
        with pytest.raises(Exception, match="refuses"):
            asker.ask(queries("abcdef"))
        endpoint.behave = lambda call: FINE
        other = Asker(settings(endpoint.url), "things", tmp_path)
        assert len(other.ask(queries("abcdef"))) == 6
        asker.close()
        other.close()


def test_failed_questions_are_asked_again_only_where_that_is_asked_for_and_once(tmp_path):
    with FakeEndpoint(lambda call: Say("dunno")) as endpoint:
        for more, calls in (({}, 2), ({}, 2), ({"retry_failed": True}, 4)):
            asker = Asker(settings(endpoint.url, **more), "things", tmp_path)
            for _ in range(2):
                assert {a.status for a in asker.ask(queries("ab")).values()} == {"unusable"}
            assert len(endpoint.calls) == calls
            asker.close()
        assert asker.spending == Spending(2, 2, 4, 2, 200, 20)


def test_with_a_cap_a_later_process_knows_what_questions_take(tmp_path):
    budget = {"price_in": 1.0, "price_out": 1.0, "max_cost": 0.01}
    with FakeEndpoint(lambda call: Say('{"x": 1}', usage=(4000, 10))) as endpoint:  # forty times the forecast
        for _ in range(2):
            asker = Asker(settings(endpoint.url, budget=budget), "things", tmp_path)
            with pytest.raises(BudgetError):
                asker.ask(queries("abcdef"))
            asker.close()
        assert len(endpoint.calls) == 2


def test_in_memory_nothing_is_left_and_nothing_is_paid_twice(tmp_path):
    with FakeEndpoint(lambda call: FINE) as endpoint:
        asker = Asker(settings(endpoint.url), "things", None)
        for _ in range(2):
            assert len(asker.ask(queries("aba"))) == 2
        assert len(endpoint.calls) == 2 and asker.spending.cached == 4
        asker.close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_opened_before_the_first_question_and_closing_is_not_the_end(tmp_path):
    with FakeEndpoint(lambda call: FINE) as endpoint:
        asker = Asker(settings(endpoint.url), "things", tmp_path)
        assert asker.ask([]) == {} and not list(tmp_path.iterdir())
        for name in "ab":
            asker.ask(queries(name))
            asker.close()
            asker.close()
        assert asker.spending.questions == 2
    with pytest.raises(ConfigError, match="no model is named"):
        Asker(VlmConfig(), "things", None)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"flowgrain\[vlm\]"):
        Asker(settings("http://localhost/v1"), "things", None).ask(queries("a"))


def test_the_key_of_a_question_is_all_that_its_answer_depends_on():
    def key(kind="k", texts=("a", "b"), shown=(b"1", b"2"), **more):
        return question_key(kind, texts, shown, settings("http://x/v1", **more))

    base = key()
    assert key(budget={"price_in": 1.0, "price_out": 1.0}, retry_failed=True, asking={"repairs": 5}) == base
    others = [
        key("l"),
        key(texts=("ab", "")),
        key(texts=("b", "a")),
        key(shown=(b"2", b"1")),
        key(shown=(b"12",)),
        key(pictures={"detail": "low"}),
    ]
    assert len({base, *others}) == 7


def test_sums():
    assert sum(
        [Spending(1, 2, 3, 4, 5, 6, False, 0.5), Spending(1, 1, 1, 1, 1, 1, True, 0.25)], Spending()
    ) == Spending(2, 3, 4, 5, 6, 7, True, 0.75)
    assert (AskingForecast(1, 2, 3) + AskingForecast(1, 2, 3)).cost is None
    assert (AskingForecast(1, 2, 3, 0.5) + AskingForecast(1, 2, 3)).cost == 0.5


def test_pictures_go_as_jpeg_unless_said_otherwise():
    assert VlmConfig().pictures.format == VlmConfig(pictures={"max_side": 64}).pictures.format == "jpeg"
    assert VlmConfig(pictures={"format": "png"}).pictures.format == "png"
