"""Many questions: none twice, none past the budget, as many at once as allowed, stoppable."""

import threading
import time

import pytest
from fake_endpoint import Fail, FakeEndpoint, Say

from flowgrain.errors import DataError
from flowgrain.vlm.answers import Query, read_object
from flowgrain.vlm.config import AskingConfig, BudgetConfig, EndpointConfig
from flowgrain.vlm.failures import EndpointError
from flowgrain.vlm.log import AnswerLog, read_past
from flowgrain.vlm.session import Session, ask_all, make_budget, open_questions

FINE = Say('{"x": 1}')


def queries(count, tokens=100):
    def make(number):
        return Query(
            key=f"q{number}",
            about={"number": number},
            estimated_in=tokens,
            messages=lambda: [{"role": "user", "content": [{"type": "text", "text": f"question {number}"}]}],
            schema=None,
            read=lambda text: read_object(text, {"x": "a number"}),
            repair=lambda problem: problem,
        )

    return [make(number) for number in range(count)]


@pytest.fixture
def run(tmp_path):
    """(behave, queries, ...) -> (result, endpoint, past); the log stays for the next call."""

    def go(behave, asked, budget=None, should_stop=lambda: False, retry_failed=False, attempts=2, limit=50, **asking):
        config = BudgetConfig(**(budget or {}))
        log = AnswerLog(tmp_path / "log.jsonl")
        heard = []
        with FakeEndpoint(behave) as endpoint:
            settings = EndpointConfig(
                model="fake", base_url=endpoint.url, first_wait=0.0, attempts=attempts, max_answer_tokens=limit
            )
            try:
                left = open_questions(asked, log.past, retry_failed)
                money = make_budget(config, log.past, asked)
                result = ask_all(left, log, money, settings, AskingConfig(**asking), should_stop, heard.append)
            finally:
                log.close()
                go.endpoint = endpoint
        assert len(heard) == result.asked
        return result, endpoint, read_past(tmp_path / "log.jsonl")

    return go


def test_each_question_is_asked_once_over_all_sessions(run):
    result, endpoint, _ = run(lambda call: FINE, queries(5))
    assert (result.end, result.asked, result.statuses) == ("finished", 5, {"answered": 5})
    result, endpoint, past = run(lambda call: FINE, queries(12), concurrency=3)
    assert result.asked == 7 == len(endpoint.calls) and set(endpoint.counts.values()) == {1}
    assert len(past.answers) == 12 and not past.killed


@pytest.mark.parametrize("concurrency", [1, 4])
def test_as_many_at_once_as_allowed(run, concurrency):
    together = threading.Barrier(concurrency)

    def behave(call):
        together.wait(30)  # passes only if so many are in flight at once
        return FINE

    result, endpoint, _ = run(behave, queries(8), concurrency=concurrency)
    assert result.statuses == {"answered": 8}
    assert endpoint.most_at_once == concurrency


def test_failures_of_the_model_are_final_unless_asked_for_and_of_the_endpoint_never(run):
    def behave(call):
        number = int(call.text.split()[1])
        return {0: FINE, 1: Say("dunno"), 2: Say(None, refusal="no"), 3: Fail(400), 4: Fail(500)}[number]

    result, _, _ = run(behave, queries(5), repairs=0)
    assert result.statuses == dict.fromkeys(("answered", "unusable", "refused", "rejected", "unreachable"), 1)
    result, endpoint, _ = run(behave, queries(5), repairs=0)
    assert result.asked == 1 and {call.text for call in endpoint.calls} == {"question 4"}
    result, endpoint, past = run(lambda call: FINE, queries(5), retry_failed=True)
    assert result.asked == 4 and {answer.status for answer in past.answers.values()} == {"answered"}


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("cap", [0.0009, 0.0021])
def test_the_cap_is_never_exceeded_and_used_as_far_as_it_goes(run, concurrency, cap):
    # a question uses 100 + 10 tokens at 1 a million, and could use 100 + 50
    prices = {"price_in": 1.0, "price_out": 1.0, "max_cost": cap}
    result, endpoint, past = run(lambda call: FINE, queries(60), prices, concurrency=concurrency)
    affordable = 1 + int((cap - 0.00015) / 0.00011 + 1e-6)
    assert result.end == "max-cost" and result.asked == affordable == len(endpoint.calls)
    assert past.spent <= cap
    result, _, past = run(lambda call: FINE, queries(60), prices | {"max_cost": cap + 0.0004}, concurrency=concurrency)
    assert 2 <= result.asked <= 4 and past.spent <= cap + 0.0004  # the cap is that of all sessions


def test_with_a_cap_the_first_question_goes_alone_and_measures(run):
    prices = {"price_in": 1.0, "price_out": 1.0, "max_cost": 0.01}

    def behave(call):
        time.sleep(0.05)
        return Say('{"x": 1}', usage=(4000, 10))  # forty times the forecast

    result, _, past = run(behave, queries(60), prices, concurrency=8)
    assert result.end == "max-cost" and result.asked == 2 and past.spent <= 0.01


def test_max_questions_is_of_one_session(run):
    for done in (4, 8, 10):
        result, endpoint, past = run(lambda call: FINE, queries(10), max_questions=4, concurrency=3)
        assert len(past.answers) == done
    assert result.end == "finished" and len(endpoint.calls) == 2


def test_stopping_waits_for_what_is_in_flight_and_leaves_the_rest(run):
    served = threading.Event()

    def behave(call):
        served.set()
        time.sleep(0.3)
        return FINE

    result, endpoint, past = run(behave, queries(50), should_stop=served.is_set, concurrency=4)
    assert result.end == "interrupted" and result.asked == len(endpoint.calls) <= 4
    assert all(answer.status == "answered" or not answer.requests for answer in past.answers.values())
    assert not past.killed


def test_stopping_ends_questions_that_wait_and_they_stay_open(run):
    failed = threading.Event()

    def behave(call):
        failed.set()
        return Fail(429, headers={"retry-after": "60"})

    result, _, past = run(behave, queries(3), should_stop=failed.is_set, concurrency=1)
    assert result.end == "interrupted" and result.statuses == {"stopped": 1}
    assert open_questions(queries(3), past) and not past.killed
    assert len(run(lambda call: FINE, queries(3))[1].calls) == 3


def test_a_row_of_failures_ends_the_session(run):
    def behave(call):
        return FINE if call.number < 3 else Say("dunno")

    with pytest.raises(EndpointError, match="4 questions in a row got no usable answer, the last because: it holds no"):
        run(behave, queries(40), give_up_after=4, repairs=0, concurrency=1)
    assert len(run.endpoint.calls) == 7


def test_a_server_that_was_never_there_ends_the_session_with_its_first_question(run, tmp_path):
    with FakeEndpoint(lambda call: FINE) as gone:
        pass
    log = AnswerLog(tmp_path / "log.jsonl")
    settings = EndpointConfig(model="fake", base_url=gone.url, first_wait=0.0, attempts=2)
    budget = make_budget(BudgetConfig(), log.past, [])
    with pytest.raises(EndpointError, match=r"cannot be reached: no answer in 2 attempts.*check the address"):
        ask_all(queries(40), log, budget, settings, AskingConfig(concurrency=1), lambda: False, lambda answer: None)
    log.close()
    assert len(read_past(tmp_path / "log.jsonl").answers) == 1


def test_a_session_goes_on_over_several_runs_with_its_failures_in_a_row(tmp_path):
    log, budget = AnswerLog(tmp_path / "log.jsonl"), make_budget(BudgetConfig(), read_past(tmp_path / "none"), [])
    with FakeEndpoint(lambda call: FINE if call.number < 2 else Say("dunno")) as endpoint:
        settings = EndpointConfig(model="fake", base_url=endpoint.url, first_wait=0.0)
        session = Session(log, budget, settings, AskingConfig(concurrency=1, repairs=0, give_up_after=3))
        asked = queries(9)
        heard = []
        for start in (0, 2):
            result = session.run(asked[start : start + 2], lambda: False, heard.append)
            assert (result.end, result.asked) == ("finished", 2)
        with pytest.raises(EndpointError, match="3 questions in a row"):
            session.run(asked[4:6], lambda: False, heard.append)
        session.close()
        assert len(endpoint.calls) == 5 == len(heard)
    log.close()


def test_failures_between_answers_do_not_end_it(run):
    result, _, _ = run(
        lambda call: FINE if call.number % 3 == 0 else Say("dunno"),
        queries(12),
        give_up_after=3,
        repairs=0,
        concurrency=1,
    )
    assert result.end == "finished" and result.statuses["unusable"] == 8


def test_an_endpoint_that_refuses_the_key_stops_all_and_is_logged(run, tmp_path):
    def behave(call):
        return FINE if call.number < 3 else Fail(401)

    with pytest.raises(EndpointError, match="401"):
        run(behave, queries(40), concurrency=2)
    past = read_past(tmp_path / "log.jsonl")
    assert not past.killed and sum(answer.is_final for answer in past.answers.values()) == 3


def test_an_error_of_our_own_stops_all_after_the_others_are_logged(run, tmp_path):
    broken = queries(6)

    def fail():
        raise DataError("picture.png: gone")

    broken[2] = Query("bad", {}, 10, fail, None, broken[0].read, broken[0].repair)
    with pytest.raises(DataError, match="gone"):
        run(lambda call: FINE, broken, concurrency=1)
    past = read_past(tmp_path / "log.jsonl")
    assert past.answers["bad"].status == "stopped" and len(past.answers) == 3


def test_what_was_measured_before_counts_on_resuming(run, tmp_path):
    prices = {"price_in": 1.0, "price_out": 1.0}
    run(lambda call: Say('{"x": 1}', usage=(300, 30)), queries(2), prices)
    budget = make_budget(BudgetConfig(**prices), read_past(tmp_path / "log.jsonl"), queries(4))
    assert budget.measured and budget.expected_usage(100).tokens_in == 300
    assert budget.expected_usage(200, 2).tokens_out == 60
    assert budget.spent == pytest.approx(660 / 1e6)
    other = make_budget(BudgetConfig(**prices), read_past(tmp_path / "log.jsonl"), queries(9)[4:])
    assert not other.measured and other.spent == budget.spent
