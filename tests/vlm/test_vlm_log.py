"""The log survives kills at any byte, and tells what was asked, answered, spent and cut short."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.errors import DataError
from flowgrain.vlm.answers import Query, Reply
from flowgrain.vlm.budget import Account
from flowgrain.vlm.log import AnswerLog, read_past

ODD = "caf\u00e9 \u2028 line \x85 separators \U0001f98a"


def query(key, tokens=10):
    return Query(key, {"prompt": ODD}, tokens, lambda: [], None, lambda text: {}, lambda problem: problem)


def reply(status="answered", cost=0.0):
    answer = {"x": 1} if status == "answered" else None
    return Reply(status, answer, [ODD], "", "m", "r", Account(1, [], 10, 2, False, cost), 0.5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "log.jsonl"


def test_what_is_written_is_read_back(path):
    log = AnswerLog(path)
    for key, status in (("a", "answered"), ("b", "unusable"), ("c", "unreachable")):
        log.asking(query(key), 0.25)
        log.answered(query(key), reply(status, 0.5))
    log.close()
    past = read_past(path)
    assert past.answers == log.answers
    assert [past.answers[key].is_final for key in "abc"] == [True, True, False]
    assert past.answers["a"].raw == (ODD,) and past.answers["a"].about == {"prompt": ODD}
    assert past.killed == [] and past.spent == 1.5
    assert path.read_bytes().count(b"\n") == 6


def test_a_question_cut_short_by_a_kill_is_told_and_paid_for(path):
    log = AnswerLog(path)
    for key in "ab":
        log.asking(query(key), 0.25)
    log.answered(query("b"), reply(cost=1.0))
    log.close()
    assert read_past(path).killed == ["a"] and read_past(path).spent == 1.25
    log = AnswerLog(path)
    log.asking(query("a"), 0.25)
    log.close()
    assert read_past(path).killed == ["a", "a"] and read_past(path).spent == 1.5
    log = AnswerLog(path)
    log.asking(query("a"), 0.25)
    log.answered(query("a"), reply(cost=1.0))
    log.close()
    assert read_past(path).killed == ["a", "a"] and read_past(path).spent == 2.5


def test_a_later_answer_replaces_an_earlier_one(path):
    log = AnswerLog(path)
    log.answered(query("a"), reply("stopped", 0.5))
    log.answered(query("a"), reply("answered", 0.5))
    log.close()
    assert read_past(path).answers["a"].status == "answered" and read_past(path).spent == 1.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = AnswerLog(path)
    for key in "abc":
        log.asking(query(key), 0.0)
        log.answered(query(key), reply())
    log.close()
    return path.read_bytes()


@given(data=st.data(), junk=st.binary(max_size=20).filter(lambda junk: b"\n" not in junk))
def test_a_log_cut_at_any_byte_keeps_all_whole_lines(tmp_path_factory, whole, data, junk):
    size = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    path.write_bytes(whole[:size] + junk)
    lines = whole[:size].count(b"\n")
    assert len(read_past(path).answers) == lines // 2
    log = AnswerLog(path)
    log.answered(query("z"), reply())
    log.close()
    assert list(read_past(path).answers) == [*"abc"[: lines // 2], "z"]
    assert path.read_bytes().startswith(whole[: whole[:size].rfind(b"\n") + 1])


def test_a_damaged_line_within_is_an_error_and_nothing_is_lost(path):
    path.parent.mkdir()
    for bad in ('{"event": "answer"}', "nonsense", '{"event": "other", "key": "k"}', "\0\0\0"):
        path.write_text(f"{bad}\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"log\.jsonl:1: not a line of this log"):
            AnswerLog(path)
        assert path.read_text(encoding="utf-8") == f"{bad}\n"


def test_a_full_disk_is_one_clear_line_and_leaves_no_part_of_one(path, monkeypatch):
    log = AnswerLog(path)
    log.answered(query("a"), reply())
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"log\.jsonl: cannot be written \(No space left"):
        log.answered(query("b"), reply())
    log.close()
    assert path.read_bytes() == before


def test_every_line_is_synced(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    log = AnswerLog(path)
    log.asking(query("a"), 0.0)
    log.answered(query("a"), reply())
    log.close()
    assert len(synced) == 2


def test_lines_are_json_that_any_reader_splits(path):
    log = AnswerLog(path)
    log.answered(query("a"), reply())
    log.close()
    (line,) = path.read_bytes().splitlines()
    assert json.loads(line)["raw"] == [ODD]
