"""The file index: nothing is read twice, a change is always seen, and no result depends on it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgrain.data import file_index, folder, manifest
from flowgrain.data.collections import Folder, Item
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.data.file_index import FileFacts, FileIndex
from flowgrain.data.images import sha1_of, sha1_of_bytes
from flowgrain.data.manifest import INDEX_NAME
from flowgrain.data.records import MANIFEST_NAME
from flowgrain.errors import DataError


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as settled at once: the tests do not wait two seconds."""
    monkeypatch.setattr(file_index, "SETTLED_NS", -1_000_000_000)


def picture(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def plain(tmp_path) -> DataConfig:
    for number in range(4):
        picture(tmp_path / "user" / f"{number}.png", number, (32 + number, 32))
    (tmp_path / "user" / "broken.png").write_bytes(b"no picture")
    return DataConfig(path=tmp_path / "user", resolution=32, cache=tmp_path / "cache")


@pytest.fixture
def decomposed(tmp_path) -> DataConfig:
    lines = []
    for number in range(4):
        name = f"slices/{number}.png"
        picture(tmp_path / "set" / name, number)
        lines.append(
            {
                "slice_id": f"{number}/macro0", "root": str(number), "image": f"{number}.jpg",
                "image_sha1": f"{number:040}", "level": "macro", "granularity": "macro", "path": name, "width": 32,
                "height": 32, "box": [0, 0, 32, 32], "crop": [0, 0, 32, 32], "scale": 1.0, "action": "native",
                "reason": "test", "parent": None, "detector": "test", "score": 1.0, "caption": "",
                "caption_source": "none",
            }
        )  # fmt: skip
    (tmp_path / "set" / MANIFEST_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(path=tmp_path / "set")


@pytest.fixture(params=["plain", "decomposed"])
def config(request) -> DataConfig:
    return request.getfixturevalue(request.param)


@pytest.fixture
def inspected(monkeypatch) -> list[str]:
    """Names of the files that were looked into."""
    names: list[str] = []
    for module, name in ((folder, "inspect_picture"), (manifest, "inspect_slice")):
        original = getattr(module, name)

        def spy(item: Item, original=original) -> FileFacts:
            names.append(Path(item.name).name)
            return original(item)

        monkeypatch.setattr(module, name, spy)
    return names


def index_file(config: DataConfig) -> Path:
    if (config.path / MANIFEST_NAME).is_file():
        return config.path / INDEX_NAME
    [file] = config.cache.glob("files-*.json")
    return file


def opened(config: DataConfig) -> SliceDataset:
    return open_dataset(config, 16)


def test_the_second_opening_reads_only_what_is_broken(config, inspected):
    first = opened(config)
    assert len(inspected) == len(first) + len(first.problems)
    inspected.clear()
    second = opened(config)
    assert set(inspected) == {path.name for path, _ in first.problems}
    assert (second.slices, second.problems, second.fingerprint) == (first.slices, first.problems, first.fingerprint)
    index_file(config).unlink()
    assert opened(config).slices == first.slices


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_file_is_seen(config, inspected, keep_times):
    first = opened(config)
    path = Path(first.slices[1].file.place())
    before = path.stat()
    data = bytearray(path.read_bytes())
    picture(path, 99, Image.open(path).size)
    changed = path.read_bytes()
    path.write_bytes((changed + bytes(len(data)))[: max(len(changed), len(data))])
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    inspected.clear()
    second = opened(config)
    assert inspected.count(path.name) == 1
    assert {Path(s.file.place()): s.digest for s in second.slices}[path] == sha1_of(path) != first.slices[1].digest
    assert second.fingerprint != first.fingerprint
    inspected.clear()
    assert opened(config).slices == second.slices
    assert path.name not in inspected


def test_a_replaced_file_with_the_same_length_and_time_is_seen(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    index = FileIndex(None)

    item = Item(Folder(tmp_path), "a")

    def inspect(file: Item) -> FileFacts:
        return FileFacts(sha1_of_bytes(file.read()), 1, 1, None)

    [first] = index.facts([item], inspect)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.utime(other, ns=times)
    os.replace(other, path)
    [second] = index.facts([item], inspect)
    assert first != second


def test_a_file_just_written_is_not_trusted(config, inspected, monkeypatch):
    monkeypatch.setattr(file_index, "SETTLED_NS", 2_000_000_000)
    first = opened(config)
    inspected.clear()
    assert opened(config).slices == first.slices
    assert len(inspected) == len(first) + len(first.problems)


def test_entries_of_broken_and_deleted_files_go(plain):
    opened(plain)
    (plain.path / "0.png").write_bytes(b"no picture")
    (plain.path / "1.png").unlink()
    opened(plain)
    names = json.loads(index_file(plain).read_text())["files"]
    assert set(names) == {"2.png", "3.png"}


def test_the_index_is_written_only_where_something_changed(config):
    opened(config)
    before = index_file(config).stat().st_ino
    opened(config)
    assert index_file(config).stat().st_ino == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0}', '{"version": "%s", "files": {"0.png": [1]}}'])
def test_a_damaged_index_is_computed_anew(config, content):
    first = opened(config)
    index_file(config).write_text(content.replace("%s", file_index.VERSION))
    assert opened(config).slices == first.slices
    assert len(json.loads(index_file(config).read_text())["files"]) == len(first)


def test_an_index_that_cannot_be_written_costs_a_log_line(config, tmp_path, monkeypatch, caplog):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_index, "atomic_write_text", full)
    assert len(opened(config)) == 4
    assert "No space left on device" in caplog.text


def test_user_folders_are_never_written_to(plain):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in plain.path.iterdir()}
    folder_time = plain.path.stat().st_mtime_ns
    opened(plain)
    open_dataset(plain.model_copy(update={"cache": True}), 16)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in plain.path.iterdir()} == before
    assert plain.path.stat().st_mtime_ns == folder_time


def test_two_folders_share_one_cache_folder(plain, tmp_path):
    picture(tmp_path / "more" / "0.png", 50)
    other = plain.model_copy(update={"path": tmp_path / "more"})
    digests = [{s.digest for s in opened(config).slices} for config in (plain, other, plain, other)]
    assert digests[0] == digests[2] and digests[1] == digests[3] and not digests[0] & digests[1]


def test_a_damaged_slice_is_an_error_that_says_what_to_do(decomposed):
    path = Path(opened(decomposed).slices[2].file.place())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"2\.png: damaged or truncated .*decompose the data set again"):
        opened(decomposed)
