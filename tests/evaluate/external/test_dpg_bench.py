"""DPG-Bench: its table, the dependency rule in closed form and against the published loop, grids, answers."""

import json
import shlex
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.comparison import Drawn
from flowgrain.evaluate.external.dpg_bench import (
    DpgItem,
    DpgQuestion,
    category_scores,
    dpg_metrics,
    dpg_scores,
    read_items,
)
from flowgrain.evaluate.external.dpg_exchange import (
    answers_of_command,
    picture_grid,
    pictures_of_items,
    questions,
    read_answers,
    write_grids,
    write_prompts,
    write_questions,
)

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
TABLE = f"""{HEADER}
truck1,"A red truck
on a beach, at dusk.",,1,0,entity,whole,entity - whole (truck),Is there a truck?
truck1,"A red truck
on a beach, at dusk.",,2,1,attribute,color,"attribute - color (truck, red)",Is the truck red?
truck1,"A red truck
on a beach, at dusk.",,3,0,entity,whole,entity - whole (beach),Is there a beach?
truck1,"A red truck
on a beach, at dusk.",,4,"1, 3",relation,spatial,"relation - spatial (truck, beach, on)",Is the truck on the beach?
dusk,Dusk.,,1,0,global,,global - (dusk),Is it dusk?
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "dpg_bench.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def answered(item, *pictures):
    """Answers to the questions 1, 2, ... of an item, one string of y and n for each picture."""
    return {
        (item, picture, number): letter == "y"
        for picture, letters in enumerate(pictures)
        for number, letter in enumerate(letters, start=1)
    }


def test_the_official_table_is_read_with_its_first_question(table):
    items = read_items(table)
    assert list(items) == ["truck1", "dusk"]
    truck = items["truck1"]
    assert truck.prompt == "A red truck\non a beach, at dusk."
    assert [question.number for question in truck.questions] == [1, 2, 3, 4]
    assert [question.parents for question in truck.questions] == [(), (1,), (), (1, 3)]
    assert truck.questions[1].category == "attribute - color"
    assert items["dusk"].questions[0].category == "global -"


@pytest.mark.parametrize(
    ("letters", "share"),
    [("yyyy", 1.0), ("nyyy", 0.25), ("ynyy", 0.75), ("yyny", 0.5), ("nnnn", 0.0), ("yyyn", 0.75), ("nnyn", 0.25)],
)
def test_a_question_counts_only_with_its_parents(table, letters, share):
    result = dpg_scores(read_items(table), answered("truck1", letters))
    assert result.score == pytest.approx(100 * share)


def test_scores_average_pictures_then_items(table):
    answers = answered("truck1", "yyyy", "nyyy") | answered("dusk", "n")
    result = dpg_scores(read_items(table), answers)
    assert result.by_picture == {"truck1": (1.0, 0.25), "dusk": (0.0,)}
    assert result.by_item == {"truck1": 0.625, "dusk": 0.0}
    assert result.score == pytest.approx(31.25)


def test_category_scores_leave_dependencies_aside(table):
    items = read_items(table)
    answers = answered("truck1", "yyyy", "nyyy") | answered("dusk", "n")
    assert category_scores(items, answers, broad=True) == {"attribute": 100, "entity": 75, "global": 0, "relation": 100}
    last = category_scores(items, answers, broad=False, pictures="last")
    assert last == {"attribute - color": 100, "entity - whole": 50, "global -": 0, "relation - spatial": 100}


def published_loop(item, yes):
    """The scoring loop of the published script on one picture, rewritten from its description of the data."""
    scores = {question.number: float(yes[question.number]) for question in item.questions}
    for question in item.questions:
        if any(scores[parent] == 0 for parent in question.parents):
            scores[question.number] = 0
    return sum(scores.values()) / len(scores)


@st.composite
def trees(draw):
    """Parents and answers of questions 1, 2, ..."""
    count = draw(st.integers(1, 9))
    parents = [draw(st.sets(st.integers(1, n - 1), max_size=3)) if n > 1 else set() for n in range(1, count + 1)]
    return parents, draw(st.lists(st.booleans(), min_size=count, max_size=count))


def built(parents, letters):
    asked = (DpgQuestion(n, "?", tuple(sorted(p)), "entity - whole") for n, p in enumerate(parents, start=1))
    return DpgItem("x", "x", tuple(asked)), dict(enumerate(letters, start=1))


def score(item, yes):
    return dpg_scores({"x": item}, {("x", 0, number): value for number, value in yes.items()}).score


@given(trees())
def test_the_rule_is_that_of_the_published_loop(tree):
    item, yes = built(*tree)
    assert score(item, yes) == pytest.approx(100 * published_loop(item, yes))


@given(trees(), st.lists(st.booleans(), min_size=9, max_size=9))
def test_more_yes_never_lowers_a_score(tree, more):
    item, yes = built(*tree)
    assert score(item, {number: value or more[number - 1] for number, value in yes.items()}) >= score(item, yes)


def test_children_listed_before_their_parents_wait_for_them(tmp_path):
    path = tmp_path / "t.csv"
    row = "a,b,,{},{},entity,whole,entity - whole (x),Is it?\n"
    path.write_text(HEADER + "\n" + row.format(1, 2) + row.format(2, 3) + row.format(3, 0))
    items = read_items(path)
    assert [question.number for question in items["a"].questions] == [3, 2, 1]
    assert dpg_scores(items, answered("a", "yyn")).score == 0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a,b,,1,7,e,w,entity - whole (x),Is it?", "question 1 depends on 7, which is not there"),
        ("a,b,,1,2,e,w,t,Is it?\na,b,,2,1,e,w,t,Is it?", "depends on 2, which is not there or depends on it"),
        ("a,b,,one,0,e,w,t,Is it?", r"t\.csv:2: 'one' is no question number"),
        ("a,b,,1,0,e,w,t,Is it?\na,b,,1,0,e,w,t,Is it?", r"t\.csv:3: item 'a' has question 1 twice"),
        ("a,b,,1,0,e,w,t,Is it?\na,c,,2,0,e,w,t,Is it?", r"t\.csv:3: item 'a' has another text"),
        ("../a,b,,1,0,e,w,t,Is it?", "cannot be the name of a picture file"),
        ("a,b,,1", r"t\.csv:2: fewer columns"),
        ("", "holds no question"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(rows, expected, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n{rows}\n")
    with pytest.raises(DataError, match=expected):
        read_items(path)


def test_another_file_is_not_the_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prompt,seed\na,1\n")
    with pytest.raises(DataError, match="no column item_id, text, proposition_id"):
        read_items(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_items(tmp_path / "gone.csv")


def test_answers_must_be_complete_and_known(table):
    items = read_items(table)
    with pytest.raises(DataError, match="'truck1', picture 0: question 4 has no answer"):
        dpg_scores(items, answered("truck1", "yyy"))
    with pytest.raises(DataError, match="question 5 of item 'truck1', which the benchmark does not have"):
        dpg_scores(items, answered("truck1", "yyyyy"))
    with pytest.raises(DataError, match="nothing can be scored"):
        dpg_scores(items, {})


def test_arms_are_compared_item_by_item():
    asked = tuple(DpgQuestion(n, "?", (), "entity - whole") for n in range(1, 5))
    items = {f"item{n}": DpgItem(f"item{n}", "x", asked) for n in range(30)}
    worse = {key: value for name in items for key, value in answered(name, "yynn", "yynn").items()}
    better = {key: value for name in items for key, value in answered(name, "yyny", "yynn").items()}
    results = {"worse": dpg_scores(items, worse), "better": dpg_scores(items, better)}
    found = dpg_metrics(results, pairs=[("worse", "better")], bootstrap=Bootstrap(resamples=100))
    assert [result.value for result in found.results] == [50, 62.5]
    assert found.differences[0].ahead == "better"
    fewer = dpg_scores(items, {key: value for key, value in worse.items() if key[0] != "item3"})
    with pytest.raises(DataError, match="'item3'"):
        dpg_metrics({"worse": fewer, "better": results["better"]}, pairs=[("worse", "better")])


def square(value, side=6):
    return np.full((side, side, 3), value, dtype=np.uint8)


def test_the_grid_has_the_published_order(tmp_path):
    # crops of the published script: (0, 0), (r, 0), (0, r), (r, r)
    pictures = [square(value) for value in (10, 20, 30, 40)]
    assert write_grids({"truck1": pictures, "dusk": pictures}, tmp_path / "grids") == 6
    grid = Image.open(tmp_path / "grids" / "truck1.png")
    corners = [(0, 0), (6, 0), (0, 6), (6, 6)]
    assert grid.size == (12, 12)
    assert [grid.getpixel(corner)[0] for corner in corners] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    "pictures", [[square(1)] * 3, [square(1)] * 3 + [square(1, 8)], [np.zeros((4, 6, 3), np.uint8)] * 4, []]
)
def test_only_four_equal_squares_make_a_grid(pictures):
    with pytest.raises(DataError, match="item 'a': a grid is made of 4 squares"):
        picture_grid(pictures, "a")


def test_grids_of_several_sizes_have_no_resolution(tmp_path):
    with pytest.raises(DataError, match="item 'b': its pictures have another size"):
        write_grids({"a": [square(1)] * 4, "b": [square(1, 8)] * 4}, tmp_path)


def drawn(tmp_path, prompt, seeds):
    made = []
    for seed in seeds:
        path = tmp_path / f"{len(prompt)}-{seed}.png"
        Image.fromarray(square(seed)).save(path)
        made.append(Drawn(prompt, seed, path))
    return made


def test_prompts_go_out_and_pictures_come_back(table, tmp_path):
    items = read_items(table)
    write_prompts(items, tmp_path / "prompts.txt")
    prompts = (tmp_path / "prompts.txt").read_text().splitlines()
    assert prompts == ["A red truck on a beach, at dusk.", "Dusk."]
    pictures = drawn(tmp_path, prompts[0], (3, 0, 4, 1, 2)) + drawn(tmp_path, "another prompt", (0,))
    found = pictures_of_items(items, pictures)
    assert list(found) == ["truck1"]
    assert [path.name.partition("-")[2] for path in found["truck1"]] == ["0.png", "1.png", "2.png", "3.png"]
    with pytest.raises(DataError, match="'dusk' has 2 pictures, 4 are needed; draw seeds 0 to 3"):
        pictures_of_items(items, [*pictures, *drawn(tmp_path, "Dusk.", (0, 1))])
    with pytest.raises(DataError, match="no picture was drawn of a DPG-Bench prompt"):
        pictures_of_items(items, pictures[-1:])


def test_questions_go_out_and_answers_come_back(table, tmp_path):
    items = read_items(table)
    pictures = pictures_of_items(items, drawn(tmp_path, "Dusk.", range(4)))
    asked = questions(items, pictures)
    assert asked[0] == {
        "item": "dusk",
        "picture": 0,
        "file": str(pictures["dusk"][0].resolve()),
        "question": 1,
        "text": "Is it dusk?",
    }
    write_questions(tmp_path / "questions.jsonl", asked)
    assert [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()] == asked
    replies = ["yes", "Yes.", " no", "it is hard to say"]
    lines = [{**question, "answer": reply} for question, reply in zip(asked, replies, strict=True)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    answers = read_answers(tmp_path / "answers.jsonl")
    assert list(answers.values()) == [True, True, False, False]
    assert dpg_scores(items, answers).score == 50
    with pytest.raises(DataError, match="item 'x' is not in the benchmark's table"):
        questions(items, {"x": []})


def test_a_command_may_answer(table, tmp_path):
    items = read_items(table)
    asked = questions(items, pictures_of_items(items, drawn(tmp_path, "Dusk.", range(4))))
    tool = tmp_path / "vqa.py"
    tool.write_text(
        "import json, sys\nfor line in sys.stdin:\n    q = json.loads(line)\n"
        "    print(json.dumps({**q, 'answer': 'yes' if q['picture'] < 3 else 'no'}))\n"
    )
    command = shlex.join([sys.executable, str(tool)])
    assert dpg_scores(items, answers_of_command(command, asked, timeout=60)).score == 75


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", r"answers\.jsonl:2: not JSON"),
        ("[]", r"answers\.jsonl:2: the line"),
        ('{"item": "a", "picture": 0, "question": 1}', r"answers\.jsonl:2: answer: Field required"),
        ('{"item": "a", "picture": "0", "question": 1, "answer": "yes"}', r"answers\.jsonl:2: picture: .*integer"),
        ('{"item": "a", "picture": 0, "question": 1, "answer": true}', r"answers\.jsonl:2: answer: .*string"),
        ('{"item": "a", "picture": 0, "question": 0, "answer": "no"}', r"answers\.jsonl:2: .*answered twice"),
    ],
)
def test_bad_answers_are_named_with_their_line(line, expected, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"item": "a", "picture": 0, "question": 0, "answer": "yes"}\n' + line + "\n")
    with pytest.raises(DataError, match=expected):
        read_answers(path)
