"""A thousand broken recipes: always accepted, or refused with exit code 2 and a message that says where.

They are mutations of valid recipes, by the schema itself: misspelt and foreign keys, values of every wrong kind,
YAML's darker corners, files that are no text, circular ``extends`` and odd overrides. All go through the entry of the
command line.
"""

import random
import re
import string

import pytest
import yaml

from flowgrain.cli.main import main
from flowgrain.config import Config
from flowgrain.train.recipe import Recipe

SEEDS = 1000
BASE = {"name": "fuzz", "data": {"path": "pictures"}, "budget": {"amount": 10}}
VALUES = (
    *(
        0,
        -1,
        1,
        3,
        10**30,
        -(10**400),
        0.0,
        -0.5,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
        True,
        False,
        None,
    ),
    *(
        "",
        " ",
        "root",
        "nan",
        "1e-4",
        "auto",
        "\u00fcml\u00e4ut",
        "\u200b",
        "a\nb",
        "\x07",
        "\U0001f98a",
        "../..",
        "null",
        "x" * 5000,
        "1:30",
    ),
    *(
        [],
        [[]],
        [None],
        [1, 2],
        ["a", 3],
        {},
        {"path": "x"},
        {"": 1},
        {"a": {"b": {"c": [{}]}}},
        [{"path": "a"}, {"path": "a"}],
    ),
)
KEYS = (
    "",
    "lrr",
    "rank ",
    "Rank",
    "extends",
    "\u00e4",
    "a.b",
    "__class__",
    "model_config",
    "copy",
    "0",
    "micro",
    "path",
    "x" * 300,
)
TEXTS = (
    "name: [",
    "name: x: y",
    "- 1\n- 2",
    "42",
    "",
    "---\nname: a\n---\nname: b",
    "a: &a {b: *a}",
    "a: &a [*a, *a]",
    "&a : 1",
    "? [a, b]\n: 1",
    "? {a: 1}\n: 2",
    "1: 2",
    "null: 3",
    "true: 1\nname: x",
    "1.5: 1",
    "2020-01-01: x",
    "name: !!python/object/apply:os.system [ls]",
    "name: !!binary zzz",
    "name: !!timestamp nonsense",
    "name: !!int x",
    "name: !!float x",
    "name: !!set {a, b}",
    "data: !!omap [a: 1]",
    "name: 2020-13-45",
    "name: 2020-01-01",
    "<<: 5",
    "<<: {name: x, lrr: 5}",
    "<<: [*nowhere]",
    "data: &d {path: x}\nname: *d",
    "base: &b {lr: 1}\noptimizer: *b",
    "name: x\nname: y",
    "data: {path: a, path: b}",
    "optimizer:\n\tlr: 1",
    "name: \x07",
    "name: '\\ud800'",
    'name: "\\ud800"',
    'name: "\\0"',
    'output: "a\\0b"',
    "%YAML 9.9\n---\nname: x",
    "%TAG ! tag:x\n---\nname: !y z",
    "name: |\n  text\n budget",
    "[" * 600,
    "a: " + "{a: " * 600,
    "\n".join(f"{'  ' * depth}a:" for depth in range(500)),
    "a: " + "9" * 6000,
    "budget: {amount: " + "9" * 5000 + "}",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]",
    "extends: 5",
    "extends: [run.yaml]",
    "extends: run.yaml",
    "extends: other.yaml",
    "extends: nowhere.yaml",
    "extends: [[a]]",
    "extends: ''",
    "extends: .",
    'extends: "a\\0b"',
    "extends: " + "x" * 5000 + ".yaml",
    "extends: null",
)
BYTES = (
    b"\xff\xfe\x00name",
    b"name: \xff",
    b"\x00\x00\x00",
    b"\x89PNG\r\n\x1a\n\x00",
    b"name: x\r\rdata: y",
    b"\xef\xbb\xbfname: x",
    b"\xc3",
)
OVERRIDES = (
    *(
        "name",
        "=1",
        "a..b=1",
        "name=[",
        "name==x",
        "optimizer.lr=1=2",
        ".=1",
        "data.path=",
        "data=5",
        "optimizer=null",
        "  =x",
    ),
    *(
        "name=&a [*a]",
        "name=!!python/name:os.system",
        "budget.amount=nan",
        "budget.amount=.inf",
        "data.sources.0.path=x",
        "a b=c",
    ),
    *(
        "seed=0x10",
        "seed=1_000",
        "seed=-1",
        "adapter.ranks={a: -1}",
        "time.granularity_shift={mega: 1}",
        "data.path=\x00",
        "optimizer.lr=1e-5",
    ),
    *(
        "\u00e4=\u00f6",
        "model.path={}",
        "tuples.batch_size=9" + "9" * 5000,
        "name=" + "[" * 600,
        "extends=x.yaml",
        "previews.prompts=[]",
        "lr=\ud800",
    ),
)


def leaves(model: type[Config], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all fields of a section and of the sections in it."""
    from flowgrain.config import _models_in

    found = []
    for name, info in model.model_fields.items():
        found.append((*prefix, name))
        for inner in _models_in(info.annotation):
            found += leaves(inner, (*prefix, name))
    return found


PATHS = leaves(Recipe)


def put(tree, path, value):
    for part in path[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = value


def misspelt(rng, word):
    place = rng.randrange(len(word))
    return rng.choice(
        [
            word[:place] + word[place + 1 :],
            word + "s",
            word[:place] + rng.choice(string.ascii_letters) + word[place:],
            word.upper(),
        ]
    )


def mutated(rng):
    """A recipe with one to four things wrong, or none."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for _ in range(rng.randint(0, 4)):
        path, kind = rng.choice(PATHS), rng.randrange(6)
        if kind <= 2:
            put(tree, path, rng.choice(VALUES))
        elif kind == 3:
            put(tree, (*path[:-1], misspelt(rng, path[-1])), rng.choice(VALUES))
        elif kind == 4:
            put(tree, (*path, rng.choice(KEYS)), rng.choice(VALUES))
        else:
            tree.pop(rng.choice(list(tree)), None) if tree else None
    return tree


def write_case(rng, folder):
    """Write run.yaml; the overrides to go with it."""
    path, kind = folder / "run.yaml", rng.randrange(10)
    (folder / "other.yaml").write_text("extends: [run.yaml]\n")
    overrides = [rng.choice(OVERRIDES) for _ in range(rng.choice([0, 0, 1, 2]))]
    if kind <= 5:
        path.write_text(yaml.safe_dump(mutated(rng), allow_unicode=True), encoding="utf-8")
    elif kind <= 7:
        text = yaml.safe_dump(BASE) if rng.random() < 0.5 else ""
        path.write_text(f"{text}{rng.choice(TEXTS)}\n", encoding="utf-8")
    elif kind == 8:
        path.write_bytes(rng.choice(BYTES) if rng.random() < 0.3 else rng.randbytes(rng.randint(0, 200)))
    else:
        damaged = bytearray(yaml.safe_dump(mutated(rng), allow_unicode=True).encode())
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.choice(b"{}[]:-#&*!|>'\"%@`,?\n\t \x00a1")
        path.write_bytes(bytes(damaged))
    return overrides


def run(arguments, capsys):
    """(exit code, stdout, stderr) of the command line; anything but SystemExit comes through and fails the test."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_recipes_are_accepted_or_refused_with_a_message(block, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = []
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        rng = random.Random(seed)
        overrides = write_case(rng, tmp_path)
        code, out, err = run(["train", "run.yaml", *overrides, "--validate-only"], capsys)
        codes.append(code)
        where = f"seed {seed}: {overrides} {(tmp_path / 'run.yaml').read_bytes()[:500]!r}\n{out}{err[:2000]}"
        if code == 0:
            assert "is valid" in out and not err, where
            continue
        assert code == 2, where
        assert "Traceback" not in err, where
        assert err.isprintable() or err.replace("\n", "").isprintable(), where
        lines = err.strip("\n").split("\n")
        assert lines[0].startswith("flowgrain: error: "), where
        lines[0] = lines[0].removeprefix("flowgrain: error: ")
        for line in lines:
            assert names_something(line), f"names neither key nor file: {line}\n{where}"
            assert len(line) < 1500, f"{len(line)} characters\n{where}"
    assert codes.count(0) >= 2 and codes.count(2) >= 60, "the mutations are too tame or too wild"


def names_something(line):
    """Whether a line begins with a file, an override, or a key of the recipe."""
    return (
        re.match(
            r"(/.+?: |\S.*\.yaml(:\d+)?: |override '|command line: |(\(top level\)|[\w.-]+): |\.\.\. and \d+ more)",
            line,
        )
        is not None
    )


def test_the_nearest_key_is_named_for_a_misspelling_of_every_key(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in {path for path in PATHS if len(path[-1]) > 3}:
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
        wrong = path[-1][:2] + path[-1][3:]
        parents = path[:-1]
        if parents[:2] == ("data", "sources"):
            del tree["data"]["path"]
            tree["data"]["sources"] = [{"path": "x"}]
            put(tree["data"]["sources"][0], (*parents[2:], wrong), 1)
        elif parents[:1] == ("align",):
            put(tree, ("align", "gram", *parents[1:], wrong), 1)
            if parents[1:] == ("head",):
                put(tree, ("align", "gram", "head", "kind"), "conv")
        else:
            put(tree, (*parents, wrong), 1)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        code, _, err = run(["train", "run.yaml", "--validate-only"], capsys)
        assert code == 2
        unknown = [line for line in err.split("\n") if "unknown key" in line and f"{wrong}'" in line]
        assert len(unknown) == 1 and f"did you mean '{path[-1]}'?" in unknown[0], (path, err)
