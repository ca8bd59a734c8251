"""One run per folder: the second process is told who holds it, and a killed holder holds nothing."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from flowgrain.locks import FolderError, Holder, is_held, locked, read_holder

HOLD = "import sys, time\nfrom pathlib import Path\nfrom flowgrain.locks import locked\n" \
       "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"  # fmt: skip


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_the_run(holder, tmp_path):
    assert is_held(tmp_path / "run") is True
    with pytest.raises(FolderError) as caught, locked(tmp_path / "run"):
        pass
    message = str(caught.value)
    assert f"in use by process {holder.pid} on {socket.gethostname()}" in message and "\n" not in message


def test_the_lock_of_a_killed_process_is_gone(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert is_held(tmp_path / "run") is False
    assert read_holder(tmp_path / "run") == Holder(holder.pid, socket.gethostname())
    with locked(tmp_path / "run"):
        assert read_holder(tmp_path / "run") == Holder(os.getpid(), socket.gethostname())


def test_looking_at_a_run_does_not_keep_a_process_out(tmp_path):
    with locked(tmp_path):
        pass
    assert is_held(tmp_path) is False
    with locked(tmp_path):
        assert is_held(tmp_path) is True


def test_a_folder_without_a_lock_file_says_nothing(tmp_path):
    assert is_held(tmp_path) is None and read_holder(tmp_path) is None
    (tmp_path / ".lock").write_text("something else")
    assert read_holder(tmp_path) is None


def test_an_output_that_cannot_be_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be used as output folder"), locked(tmp_path / "file" / "run"):
        pass
