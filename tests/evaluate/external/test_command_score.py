"""A command as a picture score: what it gets, what it must print, and everything that a tool can do wrong."""

import os
import shlex
import sys
import time

import numpy as np
import pytest
from PIL import Image

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.external.command import CommandScore, run_json_lines, split_command
from flowgrain.evaluate.table import PictureSet, score_metrics

READ = "import json, sys\nfrom pathlib import Path\nlines = [json.loads(line) for line in sys.stdin]\n"
WIDTHS = (
    READ
    + "from PIL import Image\nprint('loading', file=sys.stderr)\n"
    + "for line in reversed(lines):\n"
    + "    print(json.dumps({'file': line['file'], 'value': Image.open(line['file']).width}))\n"
)


@pytest.fixture
def tool(tmp_path):
    """Write a Python tool and return the command that runs it."""

    def write(source):
        path = tmp_path / "my tool.py"  # a space, as in many people's folders
        path.write_text(source)
        return shlex.join([sys.executable, str(path)])

    return write


def picture(width):
    return np.full((8, width, 3), 100, dtype=np.uint8)


def test_files_and_pictures_in_memory_get_their_values_in_order(tool, tmp_path):
    path = tmp_path / "größe.png"
    Image.fromarray(picture(9)).save(path)
    score = CommandScore(tool(WIDTHS), "width", higher_is_better=None)
    values = score([path, picture(5), Image.fromarray(picture(7)), path], ["a", "b", "c", "d"])
    assert values.tolist() == [9, 5, 7, 9]
    assert score.version.endswith("'") and CommandScore("x", "t", True, version="v2").version == "v2"


def test_the_tool_gets_absolute_files_and_prompts(tool, tmp_path, monkeypatch):
    Image.fromarray(picture(4)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    check = "for x in lines:\n  absolute = Path(x['file']).is_absolute()\n"
    check += "  print(json.dumps({'file': x['file'], 'value': len(x['prompt']) * absolute}))"
    score = CommandScore(tool(READ + check), "length", True)
    relative = type(tmp_path)("a.png")
    assert score([relative], ["four"]).tolist() == [4]


def test_many_pictures_do_not_block_the_pipes(tool):
    # more than a pipe holds in both directions at once, with a tool that answers while it reads
    source = "import json, sys\nfor line in sys.stdin:\n"
    source += "    print(json.dumps({**json.loads(line), 'pad': 'x' * 500}), flush=True)"
    requests = [{"file": str(number), "prompt": "y" * 500} for number in range(2000)]
    lines = run_json_lines(split_command(tool(source)), requests, 60)
    assert [line["file"] for line in lines] == [str(number) for number in range(2000)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print('Loading weights...')", "line 1 of its output is no JSON object: 'Loading weights...'"),
        ("print('[1, 2]')", "no JSON object"),
        ("print(json.dumps({'file': 'other.png', 'value': 1}))", "answered for file 'other.png'"),
        ("print(json.dumps({'value': 1}))", "answered for file 'None'"),
        ("[print(json.dumps({'file': lines[0]['file'], 'value': 1})) for _ in 'ab']", "answered twice"),
        ("print(json.dumps({'file': lines[0]['file'], 'value': float('nan')}))", "the value 'nan'"),
        ("print(json.dumps({'file': lines[0]['file'], 'value': '0.5'}))", "no finite number"),
        ("print(json.dumps({'file': lines[0]['file'], 'value': True}))", "no finite number"),
        ("pass", "gave no value for 1 of 1 pictures"),
        ("print('no such model', file=sys.stderr); sys.exit(3)", "failed with exit code 3: no such model"),
        ("sys.exit(1)", "exit code 1: it printed no reason"),
        ("sys.stdout.buffer.write(bytes([255, 254, 10]))", "no JSON object"),
    ],
)
def test_wrong_output_is_one_clear_error(tool, body, expected):
    score = CommandScore(tool(READ + body), "x", True)
    with pytest.raises(DataError) as caught:
        score([picture(4)], ["p"])
    assert expected in str(caught.value) and "my tool.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tool_that_hangs_is_stopped_with_its_children(tool, tmp_path):
    pid = tmp_path / "pid"
    source = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\ntime.sleep(60)"
    )
    score = CommandScore(tool(source), "x", True, timeout=3)
    with pytest.raises(DataError, match=r"not done with 1 lines after 3 s and was stopped"):
        score([picture(4)], ["p"])
    child = int(pid.read_text())
    for _ in range(50):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(process):
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_tool_that_ignores_its_input_is_served(tool):
    # it closes its input at once; what it prints counts
    lines = run_json_lines(split_command(tool("import sys\nsys.stdin.close()\nprint('{}')")), [{"a": "x" * 10**6}], 30)
    assert lines == [{}]


def test_commands_that_cannot_be_started():
    for command, expected in (("", "empty"), ("a 'b", "No closing quotation")):
        with pytest.raises(ConfigError, match=expected):
            CommandScore(command, "x", True)
    with pytest.raises(ConfigError, match=r"'no-such-program-here' cannot be started"):
        CommandScore("no-such-program-here", "x", True)([picture(4)], ["p"])


def test_a_missing_picture_is_named_before_anything_runs(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        CommandScore("no-such-program-here", "x", True)([tmp_path / "gone.png"], ["p"])


def test_it_is_one_more_measure_in_the_table(tool):
    prompts = [f"p{number}" for number in range(6)]
    sets = [
        PictureSet("narrow", [picture(4 + n) for n in range(6)], prompts),
        PictureSet("wide", [picture(14 + n) for n in range(6)], prompts),
    ]
    score = CommandScore(tool(WIDTHS), "width", higher_is_better=True)
    table = score_metrics(sets, [score], pairs=[("narrow", "wide")], bootstrap=Bootstrap(resamples=100))
    assert table.differences[0].value == 10 and table.differences[0].ahead == "wide"
