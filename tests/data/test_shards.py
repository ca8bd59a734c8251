"""The store under the caches: two processes at a time, full disks, damage of every kind."""

import errno
import logging
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowgrain.data import shards
from flowgrain.data.cache import ignore_progress
from flowgrain.data.shards import ShardStore, Tensors
from flowgrain.errors import DataError

Usage = namedtuple("Usage", "total used free")

FILL = """
import sys, time
from pathlib import Path
import torch
from flowgrain.data import shards
from flowgrain.data.cache import ignore_progress
shards.SHARD_ENTRIES = 4
folder, own, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = shards.ShardStore(folder, "posterior", "model")
(folder / f"ready-{own}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.005)
encode = lambda item: {"mean": torch.full((3,), float(item))}
first = 0 if own == "a" else 10
wanted = [(item, store.key(str(item))) for item in range(first, first + count)]
print(store.complete(wanted, encode, lambda item: 1, ignore_progress))
assert all(torch.equal(store.read(key, dict)["mean"], encode(item)["mean"]) for item, key in wanted)
"""


def entry(item: int) -> Tensors:
    return {"mean": torch.full((2, 3), float(item)), "logvar": torch.full((2, 3), -float(item)).bfloat16()}


def open_store(folder: Path | None, fingerprint: str = "model") -> ShardStore:
    return ShardStore(folder, "posterior", fingerprint)


def fill(store: ShardStore, items: range) -> int:
    return store.complete([(item, store.key(str(item))) for item in items], entry, lambda _: 1, ignore_progress)


def read(store: ShardStore, item: int, encoded: list[int] | None = None) -> Tensors:
    def encode() -> Tensors:
        assert encoded is not None, "read from the store expected"
        encoded.append(item)
        return entry(item)

    return store.read(store.key(str(item)), encode)


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def test_two_processes_fill_one_folder(tmp_path):
    """Overlapping items 0 to 79 and 10 to 89, at the same time: both finish, and a third run finds all of them."""
    started = [
        subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path), own, "80"], stdout=-1, stderr=-1, text=True)
        for own in "ab"
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    store = open_store(tmp_path)
    wanted = [(item, store.key(str(item))) for item in range(90)]
    assert store.complete(wanted, entry, lambda _: 1, ignore_progress) == 0
    assert all(float(store.read(key, dict)["mean"][0]) == item for item, key in wanted)
    assert not list(tmp_path.glob(".*"))


def test_entries_of_another_process_are_used(tmp_path):
    fill(open_store(tmp_path), range(5))
    assert fill(open_store(tmp_path), range(8)) == 3


def test_shard_removed_by_another_process(tmp_path, caplog):
    """Removed between two reads, though never opened: read anew, kept in memory, one line for the whole shard."""
    fill(open_store(tmp_path), range(5))
    store = open_store(tmp_path)
    next(tmp_path.glob("posterior-*")).unlink()
    encoded: list[int] = []
    with caplog.at_level(logging.WARNING):
        assert all(same(read(store, item, encoded), entry(item)) for item in [*range(5), *range(5)])
    assert encoded == list(range(5))
    assert len(caplog.records) == 1
    assert fill(open_store(tmp_path), range(5)) == 5


def test_recovered_entries_take_no_more_memory_than_a_shard(tmp_path, monkeypatch):
    fill(open_store(tmp_path), range(5))
    store = open_store(tmp_path)
    next(tmp_path.glob("posterior-*")).unlink()
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * shards.nbytes(entry(0)))
    encoded: list[int] = []
    for item in [*range(5), *range(5)]:
        read(store, item, encoded)
    assert encoded == [0, 1, 2, 3, 4, 2, 3, 4]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_gives_the_right_tensors(tmp_path, data):
    """Header, metadata or tensors: the entries read are always the right ones, whatever had to be encoded again."""
    folder = tmp_path / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    fill(open_store(folder), range(2))
    [shard] = folder.glob("posterior-*")
    content = bytearray(shard.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    shard.write_bytes(content)
    store = open_store(folder)
    fill(store, range(2))
    assert all(same(read(store, item, []), entry(item)) for item in range(2))


def test_disk_full_while_writing_keeps_what_was_done(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ENTRIES", 2)
    write, calls = shards.atomic_write_bytes, []

    def fails_the_third_time(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(shards, "atomic_write_bytes", fails_the_third_time)
    with pytest.raises(DataError, match=r"No space left on device.*written so far stay") as error:
        fill(open_store(tmp_path), range(9))
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    assert len(calls) == 3
    store = open_store(tmp_path)
    assert fill(store, range(9)) == 5
    assert all(same(read(store, item), entry(item)) for item in range(9))


def test_too_little_room_is_said_before_the_work(tmp_path, monkeypatch):
    """Entries in proportion to their cost: 1 + 2 + ... + 9 = 45 times the bytes of the first."""
    asked: list[Path] = []
    first = shards.nbytes(entry(0))

    def usage(free: int):
        def answer(path: Path) -> Usage:
            asked.append(path)
            return Usage(2**40, 0, free)

        return answer

    store = open_store(tmp_path / "not" / "there")
    wanted = [(item, store.key(str(item))) for item in range(1, 10)]
    monkeypatch.setattr(shards.shutil, "disk_usage", usage(45 * first - 1))
    encoded: list[int] = []

    def encode(item: int) -> Tensors:
        encoded.append(item)
        return entry(item)

    with pytest.raises(DataError, match=r"caching 9 posterior entries needs 0\.00 GiB, 0\.00 GiB are free"):
        store.complete(wanted, encode, lambda item: item, ignore_progress)
    assert encoded == [1] and asked == [tmp_path]
    monkeypatch.setattr(shards.shutil, "disk_usage", usage(45 * first))
    assert store.complete(wanted, encode, lambda item: item, ignore_progress) == 8
    assert open_store(tmp_path / "not" / "there").complete(wanted, encode, lambda _: 1, ignore_progress) == 0


def test_mapped_shards_are_bounded_whatever_is_read(tmp_path, monkeypatch):
    """A hundred entries of 1 MiB in shards of 4: what stays mapped is what the limit allows, not what was read."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 2**20)
    monkeypatch.setattr(shards, "_OPEN_BYTES", 13 * 2**20)
    large = {item: {"mean": torch.full((2**18,), float(item))} for item in range(100)}
    store = open_store(tmp_path)
    wanted = [(item, store.key(str(item))) for item in large]
    assert store.complete(wanted, large.__getitem__, lambda _: 1, ignore_progress) == 100
    assert not store._pending and not store._memory
    files = list(tmp_path.glob("posterior-*"))
    assert len(files) == 25
    for item, key in [*wanted, *wanted[::-7]]:
        assert torch.equal(store.read(key, dict)["mean"], large[item]["mean"])
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "posterior-" in line}
        assert len({name for name in mapped if name.startswith(str(tmp_path))}) <= 3


def test_a_shard_larger_than_the_limit_is_read(tmp_path, monkeypatch):
    fill(open_store(tmp_path), range(5))
    monkeypatch.setattr(shards, "_OPEN_BYTES", 1)
    store = open_store(tmp_path)
    assert all(same(read(store, item), entry(item)) for item in range(5))


def test_in_memory_needs_no_disk(monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: pytest.fail("asked for the disk"))
    store = open_store(None)
    assert fill(store, range(3)) == 3
    assert same(read(store, 2), entry(2))
    with pytest.raises(KeyError):
        read(store, 3)


def test_passed_over_shards_are_named_in_one_line_and_left(tmp_path, caplog):
    fill(open_store(tmp_path, "other model"), range(2))
    fill(open_store(tmp_path, "other precision"), range(3))
    (tmp_path / "posterior-x.safetensors").write_bytes(b"no safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    [record] = caplog.records
    assert "1 damaged or truncated (posterior-x.safetensors), 2 of another model or precision" in record.getMessage()
    assert fill(store, range(2)) == 2
    assert {path: path.read_bytes() for path in before} == before
