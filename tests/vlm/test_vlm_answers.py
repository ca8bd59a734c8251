"""An answer is read or refused, never guessed; what cannot be used is sent back a stated number of times."""

import json
import threading

import pytest
from fake_endpoint import Fail, FakeEndpoint, Say
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.vlm.answers import AnswerError, Query, Reply, ask, read_object
from flowgrain.vlm.budget import Budget
from flowgrain.vlm.client import ChatClient
from flowgrain.vlm.config import BudgetConfig, EndpointConfig

KEY = "sk-a-secret-that-nobody-may-see"


def query(text="which?"):
    return Query(
        key="k",
        about={},
        estimated_in=50,
        messages=lambda: [{"role": "user", "content": [{"type": "text", "text": text}]}],
        schema=None,
        read=lambda text: read_object(text, {"x": "a number"}),
        repair=lambda problem: f"wrong: {problem}",
    )


def put(behave, repairs=2, **settings):
    with FakeEndpoint(behave) as endpoint:
        config = EndpointConfig(**{"model": "fake", "base_url": endpoint.url, "first_wait": 0.0, **settings})
        client, reply = ChatClient(config, Budget(BudgetConfig()), threading.Event()), Reply()
        ask(client, query(), repairs, reply)
        client.close()
    return reply, endpoint.calls


@pytest.mark.parametrize(
    "text",
    [
        '{"x": 1}',
        ' \n {"x": 1}\n',
        '```json\n{"x": 1}\n```',
        'Here it is:\n```\n{"x": 1}\n```\nAs you see, {braces} matter.',
        'The answer {as asked} is {"x": 1}.',
        '<think>maybe {"x": 2}?</think>{"x": 1}',
    ],
)
def test_one_object_is_found_wherever_it_stands(text):
    reply, _ = put(lambda call: Say(text))
    assert (reply.status, reply.answer) == ("answered", {"x": 1})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON objects"),
        ("I cannot say", "no JSON objects"),
        ("[1]", "no JSON objects"),
        ('{"x": 1} or {"x": 2}', "2 JSON objects"),
        ('{"x": 1', "broken"),
        ('{"x": 1, "x": 2}', "twice"),
        ('{"x": NaN}', "NaN"),
        ('{"y": 1}', r"lacks 'x' \(a number\)"),
        ('{"x": 1, "y": 1}', "unknown keys: 'y'"),
        ('{"reason": "so", "answer": {"x": 1}', "broken"),
        ("{" * 200_000, "longer than"),
        ('{"a":' * 5000, "nested too deeply"),
    ],
)
def test_anything_else_is_refused(text, says):
    with pytest.raises(AnswerError, match=says):
        read_object(text, {"x": "a number"})


@given(st.text(max_size=200))
def test_reading_never_fails_in_another_way(text):
    try:
        value = read_object(text, {"x": "anything"})
    except AnswerError:
        return
    assert list(value) == ["x"]


@given(st.dictionaries(st.sampled_from("xyz"), st.integers() | st.text() | st.none(), min_size=1))
def test_what_json_writes_is_read(value):
    assert read_object(json.dumps(value), {}, tuple("xyz")) == value


def test_an_unusable_answer_is_sent_back_with_what_is_wrong():
    def behave(call):
        return Say('{"x": 1}') if call.is_repair else Say("dunno")

    reply, calls = put(behave)
    assert reply.status == "answered" and reply.raw == ["dunno", '{"x": 1}']
    question, said, repair = calls[1].messages
    assert question == calls[0].messages[0]
    assert said == {"role": "assistant", "content": "dunno"}
    assert repair["content"].startswith("wrong: it holds no JSON objects")


def test_nothing_said_is_asked_again_in_one_message():
    reply, calls = put(lambda call: Say(None) if call.number == 0 else Say('{"x": 1}'))
    assert reply.status == "answered"
    (question,) = calls[1].messages
    assert question["content"][0]["text"] == "which?" and len(question["content"]) == 2


@pytest.mark.parametrize("repairs", [0, 1, 3])
def test_nonsense_is_recorded_as_such_after_a_stated_number_of_repairs(repairs):
    reply, calls = put(lambda call: Say(f"dunno {call.number}"), repairs)
    assert len(calls) == repairs + 1 == reply.account.requests
    assert (reply.status, reply.answer) == ("unusable", None)
    assert reply.raw == [f"dunno {number}" for number in range(repairs + 1)]
    assert "no JSON objects" in reply.problem


def test_refusals_and_filters_are_told_apart_from_nonsense():
    reply, _ = put(lambda call: Say(None, refusal="I cannot judge people"))
    assert reply.status == "refused" and "I cannot judge people" in reply.problem
    reply, _ = put(lambda call: Say('{"x": 1}', finish="content_filter"))
    assert (reply.status, reply.answer) == ("refused", None)


def test_an_answer_that_was_cut_off_does_not_count():
    reply, _ = put(lambda call: Say('{"x": 1}', finish="length"))
    assert (reply.status, reply.answer) == ("unusable", None) and "cut off" in reply.problem


def test_what_the_endpoint_fails_at_is_recorded():
    reply, _ = put(lambda call: Fail(400, "too many pictures"))
    assert reply.status == "rejected" and "too many pictures" in reply.problem
    reply, _ = put(lambda call: Fail(500), attempts=2)
    assert reply.status == "unreachable" and reply.account.troubles == ["500", "500"]


def test_an_echoed_key_is_cut_out(monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    reply, _ = put(lambda call: Say(f"your key is {KEY}"), api_key_env="A_KEY")
    assert KEY not in repr(reply) and reply.raw[0] == "your key is ***"
