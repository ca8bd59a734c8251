"""The ``flowgrain study`` commands."""

import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest
from typer.testing import CliRunner

from flowgrain.cli.study import study as command
from flowgrain.errors import ConfigError, DataError, FlowgrainError
from flowgrain.evaluate.study.folder import open_study

ARMS = ("zebra-arm", "quokka-arm", "walrus-arm", "ocelot-arm")
SMALL = ["--participants", "20", "--attention", "1", "--exclusions", "min_median_seconds=0",
         "--exclusions", "max_failed_checks=9"]  # fmt: skip


def call(*arguments):
    """Output of a command; an error of the user is raised as it is."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(result.exception, FlowgrainError):
        raise result.exception
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


@pytest.fixture
def folder(tmp_path, comparison_folder):
    return comparison_folder(tmp_path / "eval")


def test_every_command_shows_examples():
    for name in ("new", "serve", "links", "close", "results"):
        assert f"flowgrain study {name}" in call(name, "--help")


def test_a_study_from_beginning_to_end(folder, client_of, person):
    (folder / "consent.txt").write_text("Do you agree?\n")
    printed = call("new", folder, "--title", "Foxes", "--consent", folder / "consent.txt", *SMALL)
    seal = re.search(r"seal: ([0-9a-f]{64})", printed)[1]
    opened = open_study(folder / "study", None)
    assert opened.seal == seal and opened.config.title == "Foxes" and opened.config.consent == "Do you agree?"
    assert opened.config.exclusions.min_median_seconds == 0 and opened.plan.participants == 20
    links = call("links", folder / "study", "--participants", 2, "--url", "https://lab.example/s/").split()
    assert all(re.fullmatch(r"https://lab\.example/s/#p=[A-Za-z0-9_-]{32}", link) for link in links)
    with pytest.raises(DataError, match="no answers yet"):
        call("results", folder / "study")
    person(client_of(opened), token=links[0].partition("#p=")[2]).finish(lambda item: [[0], [1], [2], [3]])
    open_ = call("results", folder / "study")
    assert "still open" in open_ and "variant 1" in open_ and "zebra" not in open_
    assert call("close", folder / "study") == "closed\n"
    assert call("close", folder / "study") == "it was closed already\n"
    closed = call("results", folder / "study", "--format", "json", "--out", folder / "r")
    assert "zebra-arm: first in" in closed and "variant 1" not in closed
    assert sorted(path.name for path in (folder / "r").iterdir()) == [
        "answers.json", "facts.json", "participants.json", "rankings.jsonl", "summary.json"
    ]  # fmt: skip


def test_a_dry_run_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    printed = call("new", folder, "--per-participant", 2, "--dry-run")
    assert "4 items of 4 variants; rank on overall" in printed
    assert "each item is answered by 50% of the participants" in printed
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exclusions", "min_median_seconds"], "expected RULE=VALUE"),
        (["--exclusions", "min_median_second=1"], "did you mean 'min_median_seconds'"),
        (["--exclusions", "min_completed=2"], "less than or equal to 1"),
        (["--repeats", "9"], "at most half of per_participant"),
        (["--attention", "-1"], "greater than or equal to 0"),
        (["--title", "two\nlines"], "title"),
        (["--per-participant", "9"], "the study has 4 items"),
        (["--consent", "missing.txt"], "cannot be read"),
        (["--max-side", "1"], "max_side"),
    ],
)
def test_mistakes_are_said_in_one_line(folder, options, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        call("new", folder, *options)
    assert "\n" not in str(caught.value)


def test_protocols_are_taken_over(folder):
    import yaml

    settings = yaml.safe_load((folder / "comparison.yaml").read_text())
    (folder / "comparison.yaml").write_text(yaml.safe_dump({**settings, "protocol": "urae"}))
    assert "best on overall, alignment, aesthetics" in call("new", folder, "--dry-run")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret@host/x", r"mysql://root:\*\*\*@host/x: use sqlite:///FILE or postgresql"),
        ("nonsense", "not a URL"),
        ("sqlite://", "use sqlite:///FILE"),
        ("postgresql://u:secret@127.0.0.1:1/x", r"postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/x: cannot be opened"),
    ],
)
def test_databases_that_cannot_be_used(folder, url, message):
    call("new", folder, *SMALL)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        call("close", folder / "study", "--database", url)
    assert "secret" not in str(caught.value)


def test_too_many_links(folder):
    call("new", folder, "--participants", "1", "--attention", "0")
    with pytest.raises(ConfigError, match="too many links for 1 places"):
        call("links", folder / "study", "--participants", 11)


@pytest.mark.parametrize("name", ["close", "results"])
def test_a_study_that_nobody_served_has_no_database(folder, name):
    call("new", folder, *SMALL)
    for options, message in (((), "no such database"), (("--database", f"sqlite:///{folder}/no.db"), "no.db: no such")):
        with pytest.raises(DataError, match=message):
            call(name, folder / "study", *options)
    assert not list(folder.rglob("*.db"))
    (folder / "empty.db").touch()
    with pytest.raises(DataError, match=r"empty.db: holds no study"):
        call(name, folder / "study", "--database", f"sqlite:///{folder}/empty.db")


def test_no_study(tmp_path):
    with pytest.raises(DataError, match="'flowgrain study new'"):
        call("close", tmp_path)


@pytest.mark.parametrize(
    "options", [["--root-path", "study"], ["--root-path", "/a b"], ["--completion-url", "javascript:alert(1)"]]
)
def test_serving_options_that_cannot_be(folder, options):
    call("new", folder, *SMALL)
    with pytest.raises(ConfigError, match="string should match pattern"):
        call("serve", folder / "study", *options)


SERVE = "import sys; from flowgrain.cli.study import study; study(standalone_mode=False); print('torch' in sys.modules)"


def serve(folder, port, *options):
    arguments = [sys.executable, "-c", SERVE, "serve", str(folder / "study"), "--port", str(port), *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_server_starts_light_believes_its_proxy_and_ends_cleanly(folder, free_port):
    call("new", folder, *SMALL)
    port = free_port()
    options = ["--trusted-proxy", "127.0.0.1", "--entry-rate", "1", "--root-path", "/s/"]
    server = serve(folder, port, *options)
    try:
        assert f"'Which pictures are better?' at http://127.0.0.1:{port}/ (entry: open)" in server.stdout.readline()
        address = f"http://127.0.0.1:{port}/s/api/enter"
        for _ in range(200):
            try:
                statuses = [
                    httpx.post(address, json={}, headers={"X-Forwarded-For": f"10.0.0.{n}"}).status_code
                    for n in (1, 2, 2)
                ]
                break
            except httpx.TransportError:
                time.sleep(0.05)
        assert statuses == [201, 201, 429]
        other = serve(folder, port)
        _, said = other.communicate(timeout=60)
        assert other.returncode != 0 and "this address cannot be used" in said
    finally:
        server.send_signal(signal.SIGINT)
        printed, said = server.communicate(timeout=30)
    assert printed.strip() == "False" and said == ""


@pytest.mark.parametrize(
    ("package", "module"), [("sqlalchemy", "folder"), ("fastapi", "server"), ("uvicorn", "serve"), ("psycopg", None)]
)
def test_missing_extras_are_named(package, module, tmp_path):
    extra = "postgres" if package == "psycopg" else "study"
    use = f"import flowgrain.evaluate.study.{module}"
    if module is None:
        use = "from flowgrain.evaluate.study.database import *; connect(make_url('postgresql+psycopg://x@127.0.0.1/x'))"
    code = f"import sys; sys.modules['{package}'] = None\n{use}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and f"pip install 'flowgrain[{extra}]'" in result.stderr
