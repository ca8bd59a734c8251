"""What a user can get wrong with ``flowgrain decompose``: one line that says what, where and what to do; code 2."""

import errno
import tarfile

import pytest
from decompose_runs import QUICK, config, data_of, photos

from flowgrain.cli.main import main
from flowgrain.slices import outputs
from flowgrain.slices.decompose import decompose


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 4)
    return "photos"


def run(*arguments, expect=2):
    with pytest.raises(SystemExit) as ended:
        main(["decompose", *map(str, arguments)])
    assert (ended.value.code or 0) == expect


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--detector", "nonsense"], "'nonsense': expected LEVEL=KIND[:VALUE]"),
        (["--detector", "micro=nonsense"], "command line: levels.micro.detector: 'nonsense' is none that there is"),
        (["--detector", "mikro=grid"], "--detector mikro=grid: no level of that name, levels are macro, meso, micro;"),
        (["--detector", "micro=people:eye"], "command line: levels.micro.detector: input should be 'person'"),
        (["levels.micro={detector: {kind: grid, colums: 3}}"], "command line: unknown key 'levels.micro.detector.colu"),
        (["levels.mine.max_instances=3"], "command line: levels.mine.granularity: field required"),
        (["levels.micro.detector=vlm"], "command line: levels.micro.detector.find: field required"),
        (["upscaler=esrgan"], "command line: upscaler.file: field required"),
        (["captioner=vlm"], "captioner: no model is named; set vlm.endpoint.model"),
        (["--executor", "foo"], "--executor foo: no such executor; use local or ray"),
        (["--device", "foo"], "--device foo: no such device"),
        (["--sample", "0"], "--sample"),
        (["--workers", "0"], "--workers"),
        (["--image", "a/photo000.png"], "read with --print-config alone"),
        (
            ["--print-config", "--image", "fox.png"],
            "--image fox.png: no such image in photos; they are called like 'a/",
        ),
        (["--config", "nothing.yaml"], "nothing.yaml: no such file"),
        (["--preset", "portait"], "no preset 'portait'; did you mean 'portrait'?"),
        (["--preset", "scene", "--preset", "object"], "'scene' and 'object' both say what is in the pictures"),
    ],
)
def test_options(source, capsys, arguments, words):
    run(source, "--out", "out", *arguments)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1 or "Usage: " in error


@pytest.mark.parametrize(
    ("place", "out", "words"),
    [
        ("missing", "out", "missing: no such folder of pictures or slices"),
        ("photos/a/photo000.png", "out", "photos/a/photo000.png: is a file, neither a folder nor a .tar"),
        ("empty", "out", "empty: no image in this folder or below it"),
        ("photos", "photos", "photos: lies in the source folder"),
        ("photos", "photos/new/out", "photos/new/out: lies in the source folder"),
        ("photos", "full", "full: not empty and no data set of decompose; give a new or empty folder"),
        ("photos", "full/notes", "full/notes: is a file; give a folder for the data set"),
        ("photos", "full/notes/out", "full/notes/out: cannot be made or written to (Not a directory)"),
        ("photos", "/proc/out", "/proc/out: cannot be made or written to ("),
    ],
)
def test_places(source, tmp_path, capsys, place, out, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    run(place, "--out", out, "--preset", "tiny-128", *QUICK)
    error = capsys.readouterr().err
    assert error.startswith(f"flowgrain: error: {words}") and error.count("\n") == 1
    assert (tmp_path / "full" / "notes").read_text() == "mine"


def test_a_tar_may_lie_beside_the_data_set_and_a_folder_of_tars_above_it_may_not(source, tmp_path, capsys):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", ".")
    run("photos.tar", "--out", "out", "--preset", "tiny-128", *QUICK, expect=0)
    (tmp_path / "tars").mkdir()
    (tmp_path / "photos.tar").rename(tmp_path / "tars" / "photos.tar")
    run("tars", "--out", "tars/out", "--preset", "tiny-128", *QUICK)
    assert "tars/out: lies in the source folder" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(source, tmp_path, capsys, monkeypatch, layout):
    arguments = (source, "--out", "out", "--preset", "tiny-128", *QUICK, f"layout={layout}")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "out/slices/some.png")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "replace_bytes" if layout == "folder" else "encode_records", full)
        run(*arguments)
    error = capsys.readouterr().err
    assert error == (
        "flowgrain: error: out/slices/some.png: No space left on device; finished chunks are kept, run the same "
        "command to go on\n"
    )
    run(*arguments, expect=0)
    decompose(tmp_path / "photos", tmp_path / "whole", config(*QUICK, f"layout={layout}"))
    assert data_of(tmp_path / "out") == data_of(tmp_path / "whole")
