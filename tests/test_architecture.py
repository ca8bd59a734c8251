"""Who may import whom (DESIGN section 3), and how long a file may get."""

import ast
from pathlib import Path

import flowgrain

SOURCE = Path(flowgrain.__file__).parent
TOP = {"clock", "errors", "config", "rng", "granularity", "files", "locks"}
# room -> flowgrain rooms that it may import, besides itself and the top-level modules
ALLOWED = {
    "flow": set(),
    "geometry": {"flow"},
    "pretrained": set(),
    "families": {"flow", "pretrained"},
    "adapters": {"families", "flow"},
    "align": {"data", "families", "flow", "pretrained"},
    "vae": {"align", "data", "families", "flow", "pretrained"},
    "slices": {"data", "pretrained", "vlm"},
    "data": {"families"},
    "train": {"adapters", "align", "data", "families", "flow", "geometry", "sample", "slices", "vae"},
    "sample": {"adapters", "data", "evaluate", "families", "flow"},
    "export": {"adapters", "families", "sample"},
    "evaluate": {"data", "pretrained", "vlm"},
    "vlm": set(),
    "diagnose": {"adapters", "align", "data", "evaluate", "families", "flow", "geometry", "sample", "slices", "train"},
    "check": {"align", "data", "families", "report", "train"},
    "convert": {"data", "train"},
    "report": {"data", "evaluate", "flow", "sample", "train", "slices"},
}
THIRD_PARTY = {"flow": {"torch", "numpy", "scipy", "jaxtyping"}, "geometry": {"torch", "numpy", "scipy", "jaxtyping"}}
BANNED_NAMES = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "flowgrain":
                yield from (f"flowgrain.{alias.name}" for alias in node.names)


def files():
    return [path for path in SOURCE.rglob("*.py") if "assets" not in path.parts]


def test_rooms_import_only_what_they_may():
    wrong = []
    for path in files():
        room = path.relative_to(SOURCE).parts[0]
        if room not in ALLOWED:
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "flowgrain" and len(parts) > 1:
                target = parts[1]
                if target != room and target not in TOP | ALLOWED[room] and target != "__version__":
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_import_few_libraries():
    import sys

    wrong = []
    for path in files():
        room = path.relative_to(SOURCE).parts[0]
        for name in imports(path):
            top = name.split(".")[0]
            known = THIRD_PARTY.get(room)
            if known is not None and top != "flowgrain" and top not in known | set(sys.stdlib_module_names):
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_command_line():
    entry = SOURCE / "__main__.py"
    others = [path for path in files() if "cli" not in path.parts and path != entry]
    assert not [str(path) for path in others if any(name.startswith("flowgrain.cli") for name in imports(path))]


def test_files_stay_short_and_have_names_that_say_something():
    long = [f"{p.relative_to(SOURCE)}: {n}" for p in files() if (n := len(p.read_text().splitlines())) > 400]
    assert not long
    assert not [p for p in files() if p.name in BANNED_NAMES]
