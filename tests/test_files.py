"""Atomic writes: the old content survives any failure."""

import pytest

from flowgrain.files import atomic_directory, atomic_write_text


def test_replaces_and_leaves_no_temporary(tmp_path):
    atomic_write_text(tmp_path / "a.txt", "one")
    atomic_write_text(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / "d") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "d") as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "d" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_write_text(tmp_path / "a.txt", "old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        atomic_write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
