"""What is asked: of whom, in which order, with which pictures, and under which key."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from simulated_judge import SHADES, settings

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.judge.plan import shown_orders
from flowgrain.evaluate.judge.run import make_plan
from flowgrain.vlm.images import PictureConfig

URL = "http://localhost/v1"


def plan(*roots, **sections):
    return make_plan(read_comparison(roots), settings(URL, **sections))


@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 100))
def test_orders_depend_on_identity_alone_and_are_balanced(count, repeats, seed):
    names = [f"variant {number}" for number in range(count)]
    orders = shown_orders(names, repeats, seed, "item")
    assert orders == shown_orders(names[::-1], repeats, seed, "item")
    assert all(sorted(order) == names for order in orders)
    assert orders[:1] == shown_orders(names, 1, seed, "item")
    if repeats > 1:
        assert orders[1] == orders[0][::-1]
    places = [Counter(order[place] for order in shown_orders(names, 2 * count, seed, "item")) for place in range(count)]
    assert all(place == dict.fromkeys(names, 2) for place in places)


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_repeats_as_pictures_are_balanced_already(count):
    names = list("wxyz")[:count]
    for seed in range(20):
        orders = shown_orders(names, count, seed)
        assert all(len({order[place] for order in orders}) == count for place in range(count))


def test_orders_differ_between_items_and_dimensions(make_comparison):
    questions = plan(make_comparison(prompts=8), repeats=1).questions
    assert len({question.shown for question in questions}) > 8


def test_the_protocol_says_what_is_asked(make_comparison):
    ranked = plan(make_comparison("granularity", prompts=3, seeds=2))
    assert len(ranked.questions) == 3 * 2 * 3 * 2 == len(ranked.queries)
    assert {question.mode for question in ranked.questions} == {"rank"}
    assert {question.dimension.name for question in ranked.questions} == {"geometry", "rendering", "coherence"}
    assert {len(question.references) for question in ranked.questions} == {2}
    urae = plan(make_comparison("urae", prompts=1, name="b"))
    modes = Counter(question.mode for question in urae.questions)
    assert modes == {"pairwise": 6 * 3 * 2, "score": 4 * 3 * 2}
    assert not any(question.references for question in urae.questions)
    assert urae.config.prompts == "urae" and urae.config.modes == ("pairwise", "score")
    assert all(query.schema is None for query in urae.queries)
    assert all(query.schema for query in ranked.queries)


def test_pairs_can_be_chosen(make_comparison):
    root = make_comparison(prompts=1)
    chosen = [["baseline", "granularity"]]
    questions = plan(root, modes=["pairwise"], pairs=chosen, repeats=1).questions
    assert {frozenset(question.shown) for question in questions} == {frozenset(chosen[0])}
    assert len(plan(root, modes=["pairwise"], pairs="all", repeats=1).questions) == 6 * 3
    for bad in ([["baseline", "other"]], [["baseline", "baseline"]], [*chosen, chosen[0][::-1]]):
        with pytest.raises(ConfigError, match="is no new pair of variants"):
            plan(root, modes=["pairwise"], pairs=bad)


def test_references_are_the_prompts_own_and_then_drawn_once_for_all_questions(make_comparison):
    comparison = read_comparison([make_comparison(prompts=6, references=5)])
    by_prompt = {}
    for question in make_plan(comparison, settings(URL)).questions:
        by_prompt.setdefault(question.item.prompt, set()).add(question.references)
    for number in range(5):
        (references,) = by_prompt[f"fox {number}"]
        assert references[0].name == f"r{number}.png" and len(set(references)) == 3
    (references,) = by_prompt["fox 5"]
    assert len(set(references)) == 3
    assert len({references[1:] for (references,) in by_prompt.values()}) > 1
    questions = make_plan(comparison, settings(URL, references=0)).questions
    assert not any(question.references for question in questions)


def test_a_limit_takes_a_sample_that_a_larger_limit_holds(make_comparison):
    roots = make_comparison(prompts=6, seeds=4), make_comparison(prompts=2, name="other")
    few, more = ({q.item.key for q in plan(*roots, limit=limit).questions} for limit in (3, 8))
    assert len(few) == 3 + 2 and len(more) == 8 + 2 and few < more
    prompts = {question.item.prompt for question in plan(roots[0], limit=6).questions}
    assert len(prompts) >= 3  # not the seeds of the first prompts


def test_any_start_of_the_plan_is_spread_over_data_sets(make_comparison):
    roots = [make_comparison(prompts=5, name=name) for name in "abc"]
    questions = plan(*roots, repeats=1).questions
    assert Counter(question.item.dataset for question in questions[:27]) == {"a": 9, "b": 9, "c": 9}


def test_keys_change_with_all_that_the_answer_depends_on_and_with_nothing_else(make_comparison):
    root = make_comparison(prompts=1)
    keys = {question.key for question in plan(root).questions}
    assert len(keys) == 6
    same = [
        {"endpoint": {"base_url": "http://elsewhere/v1", "timeout": 7.0, "attempts": 9}},
        {"asking": {"concurrency": 1, "repairs": 0}, "budget": {"price_in": 1.0, "price_out": 2.0}},
        {"rater": "somebody"},
        {"repeats": 1},
    ]
    for sections in same:
        assert {question.key for question in plan(root, **sections).questions} <= keys
    other = [
        {"endpoint": {"model": "other"}},
        {"endpoint": {"temperature": 0.5}},
        {"endpoint": {"parameters": {"reasoning_effort": "low"}}},
        {"references": 1},
        {"pictures": {"max_side": 32}},
        {"pictures": {"format": "jpeg"}},
        {"modes": ["pairwise"]},
    ]
    for sections in other:
        assert not {question.key for question in plan(root, **sections).questions} & keys
    picture = root / "folder-granularity" / "granularity-0-0.png"
    Image.new("RGB", (24, 16), (1, 2, 3)).save(picture)
    assert not {question.key for question in plan(root).questions} & keys


def test_pictures_that_are_the_same_are_asked_about_once(make_comparison):
    root = make_comparison(prompts=1, variants=("baseline", "granularity"))
    source = root / "folder-baseline" / "baseline-0-0.png"
    (root / "folder-granularity" / "granularity-0-0.png").write_bytes(source.read_bytes())
    scored = plan(root, modes=["score"], repeats=1)
    assert len(scored.questions) == 2 * 3 and len(scored.queries) == 3


def test_the_model_sees_no_name(make_comparison):
    for query in plan(make_comparison()).queries:
        sent = json.dumps(query.messages())
        for secret in (*SHADES, "folder-", ".png", "fox/", "parameters", "drawn by"):
            assert secret not in sent
        assert "data:image/png;base64," in sent


def test_messages_show_references_first_and_the_pictures_in_order(make_comparison):
    query = plan(make_comparison(prompts=1)).queries[0]
    system, user = query.messages()
    assert system["role"] == "system" and user["role"] == "user"
    said = [part.get("text", "picture") for part in user["content"]]
    assert said[1:5] == ["Reference 1:", "picture", "Reference 2:", "picture"]
    shown = ["Picture A:", "picture", "Picture B:", "picture", "Picture C:", "picture", "Picture D:", "picture"]
    assert said[6:14] == shown and len(said) == 15
    assert query.estimated_in > sum(len(text) for text in said) / 4


def test_a_picture_that_is_damaged_or_changes_is_an_error(make_comparison):
    root = make_comparison(prompts=1)
    planned = plan(root)
    path = root / "folder-baseline" / "baseline-0-0.png"
    Image.new("RGB", (16, 24)).save(path)
    with pytest.raises(DataError, match=r"baseline-0-0\.png: changed while it was being judged"):
        [query.messages() for query in planned.queries]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"baseline-0-0\.png: damaged"):
        plan(root)


def test_notes_say_where_the_protocol_is_not_met(make_comparison):
    assert plan(make_comparison(references=3)).notes == ()
    root = make_comparison(references=0, name="bare")
    assert plan(root).notes == ("data set 'bare' has 0 reference pictures, 3 are to be shown",)
    assert "put once" in plan(make_comparison(references=3, name="once"), repeats=1).notes[0]
    note = plan(make_comparison(references=3, name="urae"), prompts="urae", modes=["score"], repeats=1).notes
    assert note == ()  # granularity's dimensions have no words of URAE's: the default ones show references
    planned = make_plan(
        read_comparison([make_comparison("granularity", references=3, name="size")]),
        settings(URL, pictures=PictureConfig(max_side=32).model_copy(update={"max_side": 20})),
    )
    assert "pictures of up to 24 pixels are shrunk to 20" in planned.notes[0]


def test_settings_that_do_not_fit_are_refused(make_comparison):
    with pytest.raises(ConfigError, match="one variant, 'baseline', and nothing to order: use --mode score"):
        plan(make_comparison(variants=("baseline",), name="one"))
    assert plan(make_comparison(variants=("baseline",), name="lone"), modes=["score"]).questions
