"""A request persists where that can help, gives up where it cannot, and never shows the key."""

import email.utils
import json
import sys
import threading
import time

import pytest
from fake_endpoint import Fail, FakeEndpoint, Hang, Raw, Reset, Say
from pydantic import ValidationError

from flowgrain.errors import ConfigError, MissingExtraError
from flowgrain.vlm.budget import Account, Budget, OutOfBudget
from flowgrain.vlm.client import ChatClient
from flowgrain.vlm.config import OPENAI_URL, BudgetConfig, EndpointConfig
from flowgrain.vlm.failures import EndpointError, Rejected, Stopped, Unreachable, retry_after

KEY = "sk-a-secret-that-nobody-may-see"
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "which?"}]}]
SCHEMA = {"name": "x", "strict": True, "schema": {"type": "object", "properties": {}}}


def script(*steps):
    """Answers in this order, the last one for ever."""
    return lambda call: steps[min(call.number, len(steps) - 1)]


def ask(endpoint, budget=None, schema=None, stop=None, **settings):
    defaults = {"model": "fake", "base_url": endpoint.url, "first_wait": 0.0, "timeout": 5.0}
    config = EndpointConfig(**{**defaults, **settings})
    account = Account()
    client = ChatClient(config, budget or Budget(BudgetConfig()), stop or threading.Event())
    try:
        return client.complete(MESSAGES, schema, 50, account), account
    finally:
        client.close()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Fail(429), "429"),
        (Fail(500), "500"),
        (Fail(503), "503"),
        (Fail(408), "408"),
        (Reset(), "connection lost"),
        (Raw(b"<html>log in</html>", "text/html"), "malformed"),
        (Raw(b"{nonsense"), "malformed"),
        (Raw(b"{}"), "malformed"),
        (Raw(b'{"choices": []}'), "malformed"),
        (Raw(b"[1, 2]"), "malformed"),
        (Raw(b'{"error": {"message": "overloaded"}}'), "overloaded"),
        (Hang(4.0), "timeout"),
    ],
)
def test_what_may_pass_is_tried_again(trouble, reason):
    with FakeEndpoint(script(trouble, trouble, Say("fine"))) as endpoint:
        completion, account = ask(endpoint, timeout=1.0 if isinstance(trouble, Hang) else 5.0)
    assert completion.text == "fine"
    assert account.requests == len(endpoint.calls) == 3
    assert [reason in trouble for trouble in account.troubles] == [True, True]


def test_attempts_are_bounded():
    with FakeEndpoint(script(Fail(500))) as endpoint:
        with pytest.raises(Unreachable, match=r"4 attempts.*500"):
            ask(endpoint, attempts=4)
        assert len(endpoint.calls) == 4


def test_a_server_that_is_not_there_is_unreachable():
    with FakeEndpoint(script(Say("x"))) as endpoint:
        pass
    budget = Budget(BudgetConfig(price_in=1.0, price_out=1.0))
    with pytest.raises(Unreachable, match="connection lost"):
        ask(endpoint, budget, attempts=2)
    assert budget.spent == 0.0


def test_a_host_that_no_resolver_knows_is_said_at_once_but_only_before_the_first_answer():
    config = EndpointConfig(model="fake", base_url="http://no-such-host.invalid/v1", first_wait=0.0, attempts=3)
    client = ChatClient(config, Budget(BudgetConfig()), threading.Event())
    account = Account()
    with pytest.raises(EndpointError, match=r"its host cannot be found \(.+\); check the address"):
        client.complete(MESSAGES, None, 50, account)
    assert account.requests == 1
    client._served = True  # as after an answer: then the name will be found again
    with pytest.raises(Unreachable, match="3 attempts"):
        client.complete(MESSAGES, None, 50, Account())
    client.close()


def test_retry_after_is_waited_for_and_waits_are_bounded():
    with FakeEndpoint(script(Fail(429, headers={"retry-after": "0.3"}), Say("fine"))) as endpoint:
        begun = time.monotonic()
        ask(endpoint)
        assert time.monotonic() - begun >= 0.3
    with FakeEndpoint(script(Fail(429, headers={"retry-after": "3600"}))) as endpoint:
        with pytest.raises(EndpointError, match="asks to wait 3600 s, longest_wait is 120"):
            ask(endpoint)
        assert len(endpoint.calls) == 1


def test_retry_after_is_read_in_all_its_forms():
    now = time.time()
    date = email.utils.formatdate(now + 30, usegmt=True)
    assert retry_after({"retry-after": "7"}, now) == 7.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "7"}, now) == 1.5
    assert 28 < retry_after({"retry-after": date}, now) < 32
    assert retry_after({"retry-after": "-3"}, now) == 0.0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "inf"}, {"retry-after": ""}):
        assert retry_after(nothing, now) is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Fail(401), "refuses a request without a key"),
        (Fail(403), "refuses"),
        (Fail(404), "no chat completions of model 'fake'"),
        (Fail(402), "no credit left"),
        (Fail(429, code="insufficient_quota"), "no credit left"),
    ],
)
def test_what_no_question_can_mend_stops_at_once(answer, says):
    with FakeEndpoint(script(answer)) as endpoint:
        with pytest.raises(EndpointError, match=says) as caught:
            ask(endpoint)
        assert len(endpoint.calls) == 1 and "\n" not in str(caught.value)


def test_a_request_that_the_endpoint_does_not_take_is_not_repeated():
    with FakeEndpoint(script(Fail(413, "picture too large"))) as endpoint:
        with pytest.raises(Rejected, match=r"413: .*picture too large"):
            ask(endpoint)
        assert len(endpoint.calls) == 1


def test_a_403_after_answers_is_the_fault_of_one_request():
    budget, stop = Budget(BudgetConfig()), threading.Event()
    with FakeEndpoint(script(Say("fine"), Fail(403, "flagged"))) as endpoint:
        client = ChatClient(EndpointConfig(model="fake", base_url=endpoint.url), budget, stop)
        client.complete(MESSAGES, None, 50, Account())
        with pytest.raises(Rejected, match="flagged"):
            client.complete(MESSAGES, None, 50, Account())
        client.close()


def test_an_endpoint_without_schemas_is_asked_without_them_from_then_on():
    def behave(call):
        return Fail(400, "unknown field response_format") if call.schema else Say("{}")

    with FakeEndpoint(behave) as endpoint:
        client = ChatClient(
            EndpointConfig(model="fake", base_url=endpoint.url), Budget(BudgetConfig()), threading.Event()
        )
        for _ in range(3):
            client.complete(MESSAGES, SCHEMA, 50, Account())
        client.close()
        assert [call.schema is not None for call in endpoint.calls] == [True, False, False, False]
        assert endpoint.calls[0].schema == {"type": "json_schema", "json_schema": SCHEMA}
    with FakeEndpoint(behave) as endpoint:
        with pytest.raises(Rejected, match="response_format"):
            ask(endpoint, schema=SCHEMA, structured="always")
        ask(endpoint, schema=SCHEMA, structured="never")


def test_a_400_of_an_endpoint_that_knows_schemas_is_about_the_request():
    with FakeEndpoint(script(Say("{}"), Fail(400, "too long"), Say("{}"))) as endpoint:
        client = ChatClient(
            EndpointConfig(model="fake", base_url=endpoint.url), Budget(BudgetConfig()), threading.Event()
        )
        client.complete(MESSAGES, SCHEMA, 50, Account())
        with pytest.raises(Rejected, match="too long"):
            client.complete(MESSAGES, SCHEMA, 50, Account())
        client.close()
        assert len(endpoint.calls) == 2


def test_the_request_holds_what_is_configured_and_nothing_else():
    with FakeEndpoint(script(Say("x"))) as endpoint:
        ask(endpoint)
        assert endpoint.calls[0].body == {"model": "fake", "messages": MESSAGES, "max_completion_tokens": 2000}
        settings = {"temperature": 0.5, "token_limit_name": "max_tokens", "parameters": {"reasoning_effort": "low"}}
        ask(endpoint, max_answer_tokens=7, **settings)
        expected = {"max_tokens": 7, "temperature": 0.5, "reasoning_effort": "low"}
        assert endpoint.calls[1].body == {"model": "fake", "messages": MESSAGES} | expected


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    echoes = Fail(500, f"bad {KEY}"), Raw(f'{{"error": "{KEY}"}}'.encode()), Fail(401, KEY)
    with FakeEndpoint(script(*echoes)) as endpoint:
        config = EndpointConfig(model="fake", base_url=endpoint.url, api_key_env="A_KEY", first_wait=0.0)
        client, account = ChatClient(config, Budget(BudgetConfig()), threading.Event()), Account()
        with pytest.raises(EndpointError) as caught:
            client.complete(MESSAGES, None, 50, account)
        client.close()
    assert endpoint.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert "refuses the key in A_KEY" in str(caught.value)
    assert KEY not in str(caught.value) + str(account) + repr(config)
    assert client.redact(f"so {KEY} it is") == "so *** it is"


def test_a_key_goes_only_to_the_endpoint_it_is_named_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeEndpoint(script(Say("x"))) as endpoint:
        ask(endpoint)
        assert KEY not in json.dumps(endpoint.calls[0].headers)
    monkeypatch.delenv("OPENAI_API_KEY")
    budget, stop = Budget(BudgetConfig()), threading.Event()
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        ChatClient(EndpointConfig(model="x", base_url=OPENAI_URL), budget, stop)
    monkeypatch.setenv("OTHER", "two words")
    with pytest.raises(ConfigError, match="OTHER holds no key") as caught:
        ChatClient(EndpointConfig(model="x", api_key_env="OTHER"), budget, stop)
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "x/v1", "", "http://", "http://user:secret@x/v1", "http://x/v1?key=secret", "http://x:y/v1"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ValidationError):
        EndpointConfig(model="x", base_url=url)


def test_parameters_cannot_replace_what_flowgrain_sets():
    with pytest.raises(ValidationError, match="may not hold messages, model"):
        EndpointConfig(model="x", parameters={"model": "y", "messages": []})


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"flowgrain\[judge\]"):
        ChatClient(EndpointConfig(model="x", base_url="http://localhost/v1"), Budget(BudgetConfig()), threading.Event())


def test_stopping_ends_the_wait_between_attempts():
    stop = threading.Event()

    def behave(call):
        threading.Timer(0.2, stop.set).start()
        return Fail(500)

    with FakeEndpoint(behave) as endpoint:
        with pytest.raises(Stopped):
            ask(endpoint, stop=stop, first_wait=60.0)
        assert len(endpoint.calls) == 1


def test_a_request_is_settled_at_what_it_used():
    budget = Budget(BudgetConfig(price_in=2.0, price_out=10.0))
    with FakeEndpoint(script(Fail(500), Say("x", usage=(1000, 100)))) as endpoint:
        _, account = ask(endpoint, budget)
    assert account.cost == pytest.approx(0.003) == budget.spent
    assert (account.tokens_in, account.tokens_out, account.estimated) == (1000, 100, False)


def test_a_request_that_was_lost_counts_at_what_it_probably_cost():
    budget = Budget(BudgetConfig(price_in=1.0, price_out=1.0, expected_answer_tokens=20))
    with FakeEndpoint(script(Reset(), Say("abcdef", usage=None))) as endpoint:
        _, account = ask(endpoint, budget)
    assert account.estimated and account.tokens_in == 50 + 50 and account.tokens_out == 20 + 2


def test_no_request_is_sent_that_could_exceed_the_cap():
    config = BudgetConfig(price_in=1.0, price_out=1.0, max_cost=0.0005)
    with FakeEndpoint(script(Say("x"))) as endpoint:
        with pytest.raises(OutOfBudget):
            ask(endpoint, Budget(config), max_answer_tokens=451)
        assert not endpoint.calls
        ask(endpoint, Budget(config), max_answer_tokens=450)


def test_the_most_expensive_answer_so_far_sets_what_is_reserved():
    budget = Budget(BudgetConfig(price_in=1.0, price_out=0.0, max_cost=1.0))
    with FakeEndpoint(script(Say("x", usage=(5000, 1)))) as endpoint:
        ask(endpoint, budget)
    assert budget.reserve(100, 10) == pytest.approx(100 * 100 / 1e6)  # 5000 tokens were 100 times the estimate of 50
