"""``docs/equations.md`` is complete and true: numbers, functions, tests, and what the code says of itself."""

import ast
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import flowgrain

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "equations.md"
GEOMETRY = Path(flowgrain.__file__).parent / "geometry"
GRANULARITY = "Semantic Granularity Alignment"
# the last equation number of each paper, and what else it numbers
PAPERS = {
    GRANULARITY: (45, {"Prop. 1", "Prop. 2", "Prop. 3", "Corollary 1", "Algorithm 1", "Algorithm 2"}),
    "Spatial Gram Alignment": (8, {"Prop. 1", "Prop. 2", "Prop. 3", "Algorithm 1"}),
    "URAE": (36, {"Assumption 3.1", "Assumption 3.2", "Assumption 3.3", "Theorem 3.4", "Theorem A.1"}),
    "Learning When to Denoise": (60, {"Theorem 3.1", "Theorem 3.2", "Lemma 3.3", "Algorithm 1"}),
}
NOT_BUILT = "not built yet"
STANDS = ("exact", "estimate", "heuristic", "misprinted", "reconstructed")
EXACT_THEORY = ("mixture", "interference", "kernel")
NUMBER = r"\d+(?:-\d+)?"


@dataclass(frozen=True)
class Row:
    name: str
    functions: list[str]
    tests: list[str]
    built: bool
    stands: str


def rows_of(text):
    """The rows of all tables in a piece of the page."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("| ") or cells[0] == "no.":
            continue
        assert len(cells) == 5, f"{len(cells)} cells: {line}"
        functions, tests = (re.findall(r"`([^`]+)`", cell) for cell in cells[2:4])
        found.append(Row(cells[0], functions, tests, cells[2] != NOT_BUILT, cells[4]))
    return found


def tables():
    """The rows of each paper's table; statements without a number are in a table of their own."""
    pieces = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {paper: next(piece for piece in pieces if piece.startswith(paper)) for paper in PAPERS}


def numbered(paper):
    return rows_of(tables()[paper].split("\n### ")[0])


ALL = [row for piece in tables().values() for row in rows_of(piece)]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_number_stands_there_once(paper):
    last, names = PAPERS[paper]
    found = [row.name for row in numbered(paper)]
    assert len(found) == len(set(found))
    assert set(found) == {str(number) for number in range(1, last + 1)} | names
    assert [int(name) for name in found if name.isdigit()] == list(range(1, last + 1))


def test_a_row_has_a_function_and_a_test_or_is_not_built():
    for row in ALL:
        assert bool(row.functions) == bool(row.tests) == row.built, row.name


def test_how_it_stands_begins_with_one_of_the_words():
    legend = re.findall(r"^- \*\*(\w+)\*\*", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert tuple(legend) == STANDS
    wrong = [(row.name, row.stands) for row in ALL if not re.match(rf"({'|'.join(STANDS)})\b", row.stands)]
    assert not wrong


def resolve(name):
    """What a dotted path below ``flowgrain`` names."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(["flowgrain", *parts[:cut]])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module + ".").startswith(error.name + "."):
                raise
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise AttributeError(name)


@pytest.mark.parametrize("name", sorted({name for row in ALL for name in row.functions}))
def test_every_function_exists(name):
    assert callable(resolve(name)) or isinstance(resolve(name), property)


def nodes_of(path):
    """Names of a test file's tests, ``Class::test`` for those in classes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from (
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test_")
            )


@pytest.mark.parametrize("file", sorted({test.partition("::")[0] for row in ALL for test in row.tests}))
def test_every_test_exists(file):
    named = {test.partition("::")[2] for row in ALL for test in row.tests if test.startswith(f"{file}::")}
    assert named and named <= set(nodes_of(TESTS / file))


def references(text):
    """Equation numbers of ``Eq. 3`` and ``Eqs. 7-14, 19 and 25-27`` in a docstring."""
    found = set()
    for group in re.findall(rf"Eqs?\.\s({NUMBER}(?:(?:,|,? and| to)\s{NUMBER})*)", text):
        spread = re.sub(r"(\d+) to (\d+)", r"\1-\2", group)
        for part in re.findall(NUMBER, spread):
            first, _, end = part.partition("-")
            found |= set(range(int(first), int(end or first) + 1))
    return found


def docstrings(path):
    """Docstrings of a module and all in it, those of fields (a string after an assignment) too, with their places."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield f"{path.name}:{node.lineno}", node.value.value


def test_references_are_read():
    text = "Eqs. 7-14, 19, 25-27 and 34; Eq. 3, then 5 of them; Eqs. 20 to 22 (Eqs.\n1 and 2)"
    assert references(text) == {*range(7, 15), 19, 25, 26, 27, 34, 3, 20, 21, 22, 1, 2}


def test_equations_that_the_geometry_names_are_in_the_table():
    known = {int(row.name) for row in numbered(GRANULARITY) if row.name.isdigit()}
    cited = {place: references(text) for path in GEOMETRY.glob("*.py") for place, text in docstrings(path)}
    assert len(set().union(*cited.values())) > 30
    assert not {place: numbers - known for place, numbers in cited.items() if numbers - known}


@pytest.mark.parametrize("module", EXACT_THEORY)
def test_what_computes_an_equation_stands_in_its_row(module):
    """A public function of the exact theory whose docstring's first line names an equation."""
    listed = {int(row.name): row.functions for row in numbered(GRANULARITY) if row.name.isdigit()}
    missing = []
    for node in ast.parse((GEOMETRY / f"{module}.py").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        first = (ast.get_docstring(node) or "").split("\n")[0]
        name = f"geometry.{module}.{node.name}"
        missing += [f"row {number}: {name}" for number in references(first) if name not in listed[number]]
    assert not missing, f"docs/equations.md lacks {missing}"
