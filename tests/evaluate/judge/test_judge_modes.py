"""What an answer may look like in each mode, and that nothing else is taken for one."""

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.evaluate.judge.modes import MODES
from flowgrain.vlm.answers import AnswerError

RANK, PAIRWISE, SCORE = MODES["rank"], MODES["pairwise"], MODES["score"]
ABCD, TWO = ("A", "B", "C", "D"), ("1", "2")


@given(st.permutations(ABCD), st.lists(st.booleans(), min_size=3, max_size=3))
def test_every_order_with_ties_is_read_as_it_was_said(order, joined):
    tiers = [[order[0]]]
    for label, tied in zip(order[1:], joined, strict=True):
        tiers[-1].append(label) if tied else tiers.append([label])
    answer = RANK.read(json.dumps({"reason": "x", "ranking": tiers}), ABCD, "json")
    assert answer == {"ranking": tiers, "reason": "x"}
    shown = ("w", "x", "y", "z")
    name = dict(zip(ABCD, shown, strict=True))
    assert RANK.tiers(answer, shown) == tuple(tuple(name[label] for label in tier) for tier in tiers)


def test_a_label_alone_is_a_tier_of_one():
    assert RANK.read('{"ranking": ["B", ["A", "C"], "D"]}', ABCD, "json")["ranking"] == [["B"], ["A", "C"], ["D"]]


@pytest.mark.parametrize(
    ("ranking", "says"),
    [
        ([["A"], ["B"], ["C"]], "lacks D"),
        ([["A"], ["B"], ["C"], ["D"], ["A"]], "A more than once"),
        ([["A", "A"], ["B"], ["C"], ["D"]], "A more than once"),
        ([["A"], ["B"], ["C"], ["E"]], "'E', which is none of A, B, C, D"),
        ([["a"], ["B"], ["C"], ["D"]], "'a', which is none of"),
        ([["A"], [], ["B"], ["C"], ["D"]], "empty list"),
        ([["A"], [["B"]], ["C"], ["D"]], "none of"),
        ([[None], ["B"], ["C"], ["D"]], "none of"),
        ([], "lacks A, B, C, D"),
        ("ABCD", "not a list"),
        ({"A": 1}, "not a list"),
        (None, "not a list"),
    ],
)
def test_a_ranking_that_is_none_is_refused(ranking, says):
    with pytest.raises(AnswerError, match=says):
        RANK.read(json.dumps({"ranking": ranking}), ABCD, "json")


@pytest.mark.parametrize(("choice", "read"), [("1", "1"), ("2", "2"), ("tie", "tie"), (1, "1"), (2, "2")])
def test_a_choice_is_read(choice, read):
    answer = PAIRWISE.read(json.dumps({"choice": choice}), TWO, "json")
    assert answer["choice"] == read
    assert (
        PAIRWISE.tiers(answer, ("x", "y")) == {"1": (("x",), ("y",)), "2": (("y",), ("x",)), "tie": (("x", "y"),)}[read]
    )


@pytest.mark.parametrize("choice", ["3", "A", "", None, True, 1.0, ["1"], "Image 1"])
def test_a_choice_that_is_none_is_refused(choice):
    with pytest.raises(AnswerError, match="not 1, 2 or tie"):
        PAIRWISE.read(json.dumps({"choice": choice}), TWO, "json")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[Image 1]", "1"),
        ("[Image 2]. The second image is sharper.", "2"),
        ("**[Image 2]**\n\nReason: unlike [Image 1], it is sharp.", "2"),
        ("[Image 1] because [Image 2] is blurred", "1"),
        ("The better one is [image 2], as the cat has four legs.", "2"),
        ("[Image 1]\n[Image 1] has more detail.", "1"),
        ("[Tie]", "tie"),
    ],
)
def test_a_tag_in_free_text_is_read(text, choice):
    answer = PAIRWISE.read(text, TWO, "text")
    assert answer["choice"] == choice and answer["reason"] == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Image 1 is better",
        "[Image 3]",
        "[Image 2] has flaws that [Image 1] has not",
        "[Image 1] and [Image 2] are equal",
        "Both [Image 1] and [Image 2] are good. [Image 2]",
    ],
)
def test_a_text_without_one_clear_tag_is_refused(text):
    with pytest.raises(AnswerError, match=r"start with \[Image 1\] or \[Image 2\]"):
        PAIRWISE.read(text, TWO, "text")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("85", 85.0),
        (" 85.5\n", 85.5),
        ("**85**", 85.0),
        ("85/100", 85.0),
        ("Score: 7", 7.0),
        ("0", 0.0),
        ("100.", 100.0),
    ],
)
def test_a_number_in_free_text_is_read(text, score):
    assert SCORE.read(text, ("",), "text")["score"] == score


@pytest.mark.parametrize("text", ["", "85 or 90", "about 85", "-5", "1e2", "101", "eighty", "85%", "0.85 of 1", "NaN"])
def test_a_text_that_is_not_one_number_is_refused(text):
    with pytest.raises(AnswerError):
        SCORE.read(text, ("",), "text")


@pytest.mark.parametrize("score", [0, 100, 55.5])
def test_a_score_is_read(score):
    assert SCORE.read(json.dumps({"score": score, "reason": "x"}), ("",), "json")["score"] == score


@pytest.mark.parametrize("score", [-1, 100.1, "85", None, True, [85], 1e308])
def test_a_score_that_is_none_is_refused(score):
    with pytest.raises(AnswerError, match="score"):
        SCORE.read(json.dumps({"score": score}), ("",), "json")


@given(st.sampled_from(("rank", "pairwise", "score")), st.sampled_from(("json", "text")), st.text(max_size=80))
def test_reading_ends_in_an_answer_or_in_what_is_wrong(mode, form, text):
    labels = MODES[mode].labels(2)
    try:
        answer = MODES[mode].read(text, labels, form)
    except AnswerError as error:
        assert str(error)
    else:
        assert MODES[mode].tiers(answer, ("x", "y")) in [
            (("x", "y"),),
            *((((a,), (b,))) for a, b in permutations(("x", "y"))),
        ]


@pytest.mark.parametrize("mode", ["rank", "pairwise", "score"])
def test_schemas_are_what_strict_endpoints_take(mode):
    schema = MODES[mode].schema(MODES[mode].labels(2))
    assert schema["additionalProperties"] is False and set(schema["required"]) == set(schema["properties"])
    assert next(iter(schema["properties"])) == "reason"  # said first, so that the decision can follow from it
