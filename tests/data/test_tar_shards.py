"""Pictures and slices in tar shards: read as in a folder, whatever the tars hold."""

import gzip
import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowgrain.data import file_index, folder, manifest, masks
from flowgrain.data.captions import caption_beside
from flowgrain.data.collections import Folder, Item, open_collection
from flowgrain.data.collections.tar_shards import TarShards
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.data.file_index import FileFacts
from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.data.shard_files import ShardWriter, encode_records, shard_member
from flowgrain.errors import DataError


def picture(seed: int, size: tuple[int, int] = (40, 32), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng([seed, *size]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def mask(size: tuple[int, int] = (40, 32)) -> bytes:
    buffer = io.BytesIO()
    grey = Image.new("L", size, 0)
    grey.paste(255, (0, 0, size[0] // 2, size[1]))
    grey.save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with ShardWriter(path) as writer:
        for name, data in members.items():
            writer.add(name, data)
    return path


def unpack(target: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target


FILES = {
    "fox.png": picture(0),
    "fox.txt": b"a red  fox",
    "fox.mask.png": mask(),
    "sub/owl.jpg": picture(1, (64, 32), "JPEG"),
    "sub/owl.caption": "café".encode(),
    "broken.png": b"no picture",
    "ünï 狐.webp": picture(2, (32, 32), "WEBP"),
    "notes.md": b"",
}


def opened(path: Path, **options) -> SliceDataset:
    return open_dataset(DataConfig.model_validate({"path": path, "resolution": 32, **options}), 16)


def facts(dataset: SliceDataset) -> list[tuple]:
    """All that is known of the slices but where their bytes are."""
    return [(s.slice_id, s.image, s.caption, s.digest, s.bucket, s.mask and s.mask.digest) for s in dataset.slices]


@pytest.fixture
def both(tmp_path) -> tuple[Path, Path]:
    """The same files in a folder and in two tars."""
    names = list(FILES)
    for number, part in enumerate((names[:3], names[3:])):
        shard(tmp_path / "shards" / f"photos-{number:06}.tar", {name: FILES[name] for name in part})
    return unpack(tmp_path / "folder", FILES), tmp_path / "shards"


def test_shards_are_read_as_the_folder_of_the_same_files(both):
    plain, shards = both
    ours, theirs = open_collection(shards), Folder(plain)
    assert isinstance(ours, TarShards) and list(ours.names()) == list(theirs.names())
    for name in ours.names():
        assert ours.read(name) == theirs.read(name)
        assert caption_beside(Item(ours, name)) == caption_beside(Item(theirs, name))
        for suffix in (".mask.png", ".boxes.json", ".txt"):
            assert ours.beside(name, suffix) == theirs.beside(name, suffix)
            assert ours.has(name, suffix) == theirs.has(name, suffix)
    one, two = opened(plain, mask="file"), opened(shards, mask="file")
    assert facts(one) == facts(two) and one.fingerprint == two.fingerprint
    assert [reason for _, reason in one.problems] == [reason for _, reason in two.problems]
    for index in range(len(one)):
        assert torch.equal(one.pixels(index, flip=True), two.pixels(index, flip=True))
        found = one.mask(index), two.mask(index)
        assert found == (None, None) or torch.equal(*found)


def test_problems_name_the_tar_and_the_member(both):
    _, shards = both
    [(path, reason)] = opened(shards).problems
    assert path.name == "photos-000001.tar: broken.png" and reason.startswith("not an image")
    collection = open_collection(shards)
    assert collection.place("fox.png") == f"{shards}/photos-000000.tar: fox.png"
    assert collection.place("fox.png", ".boxes.json") == f"{shards}/photos-000000.tar: fox.boxes.json"
    with pytest.raises(DataError, match=r"shards: gone\.png: no such member"):
        collection.read("gone.png")


def test_the_rule_of_webdataset(tmp_path):
    """What stands before the first dot is one sample; a caption may be in its json."""
    shard(
        tmp_path / "a.tar",
        {
            "fox.1.jpg": picture(0, kind="JPEG"), "fox.2.jpg": picture(1, kind="JPEG"), "fox.txt": b"a fox",
            "fox.2.txt": b"another fox", "owl.png": picture(2), "owl.json": b'{"caption": "an owl", "width": 4}',
            "elk.png": picture(3), "elk.json": b'{"text": "an elk"}', "elk.caption": b"the elk",
            "cat.png": picture(4), "cat.json": b"[1]", "dog.png": picture(5), "dog.json": b"{",
            "._fox.png": b"", "__meta__.png": b"", ".hidden/x.png": b"", "dog.mask.png": mask(),
        },
    )  # fmt: skip
    shards = open_collection(tmp_path / "a.tar")
    assert list(shards.names()) == ["cat.png", "dog.png", "elk.png", "fox.1.jpg", "fox.2.jpg", "owl.png"]
    captions = {name: caption_beside(Item(shards, name)) for name in shards.names() if name != "dog.png"}
    assert captions == {
        "cat.png": None, "elk.png": "the elk", "fox.1.jpg": "a fox", "fox.2.jpg": "another fox", "owl.png": "an owl",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"a\.tar: dog\.json: not JSON"):
        caption_beside(Item(shards, "dog.png"))
    assert not shards.has("fox.1.jpg", ".mask.png") and shards.has("dog.png", ".mask.png")


def test_names_that_two_tars_hold(tmp_path):
    for number in range(2):
        shard(tmp_path / f"x-{number}.tar", {"0.png": picture(number), "0.txt": b"x%d" % number, "mask": b""})
    shards = open_collection(tmp_path)
    assert list(shards.names()) == ["x-0/0.png", "x-1/0.png"]
    assert [caption_beside(Item(shards, name)) for name in shards.names()] == ["x0", "x1"]
    assert shards.place("x-1/0.png", ".txt") == f"{tmp_path}/x-1.tar: 0.txt"
    assert shards.place("x-1/0.png", ".gone") == f"{tmp_path}/x-1.tar: 0.gone"
    assert [s.image for s in opened(tmp_path).slices] == ["x-0/0.png", "x-1/0.png"]
    assert list(open_collection(tmp_path / "x-1.tar").names()) == ["0.png"]


def test_patterns(tmp_path):
    for number in range(8, 12):
        shard(tmp_path / f"p-{number:03}.tar", {f"{number}.png": picture(number)})
    assert list(open_collection(tmp_path / "p-{009..011}.tar").names()) == ["10.png", "11.png", "9.png"]
    assert list(open_collection(str(tmp_path / "p-{008,010}.tar")).names()) == ["10.png", "8.png"]
    assert list(open_collection(tmp_path / "p-01*.tar").names()) == ["10.png", "11.png"]
    assert [s.source for s in opened(tmp_path / "p-{008..009}.tar").slices] == ["p-{008..009}.tar"] * 2
    with pytest.raises(DataError, match=r"2 of its 4 tars are missing, the first: p-012\.tar"):
        open_collection(tmp_path / "p-{010..013}.tar")
    for wrong in ("p-{011..009}.tar", "q-*.tar"):
        with pytest.raises(DataError, match=r"is empty|no tar of such a name"):
            open_collection(tmp_path / wrong)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "gone: no such folder"),
        ("gone.tar", "gone.tar: no such folder"),
        ("a.txt", "a.txt: is a file, neither a folder nor a .tar"),
        ("b.tar.gz", "compressed"),
        ("lie.tar", "compressed with gzip"),
        ("packed", "b.tar.gz is compressed"),
        ("mixed", r"holds pictures \(x.png\) and tars \(a.tar\)"),
        ("table", r"write hf:.*table for the data set in it"),
        ("empty.tar", "no image in it; .*empty.tar: not a tar: the file is empty"),
        ("text.tar", "no image in it; .*text.tar: not a tar, or damaged at its start"),
        ("hollow.tar", "no image in it; members ending in avif"),
    ],
)
def test_what_is_neither(tmp_path, name, words):
    unpack(
        tmp_path,
        {
            "a.txt": b"", "b.tar.gz": gzip.compress(b"x" * 1024), "lie.tar": gzip.compress(b"x" * 1024),
            "packed/b.tar.gz": b"", "mixed/x.png": b"", "mixed/a.tar": b"", "table/a.parquet": b"",
            "empty.tar": b"", "text.tar": b"hello" * 500, "hollow.tar": bytes(1024),
        },
    )  # fmt: skip
    with pytest.raises(DataError, match=words) as caught:
        open_collection(tmp_path / name).names()
    assert "\n" not in str(caught.value)


def test_hostile_members_are_refused_and_told(tmp_path):
    inside = tarfile.TarInfo("good.png")
    data = picture(0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("/etc/a.png", tarfile.REGTYPE), ("../b.png", tarfile.REGTYPE), ("x/../../c.png", tarfile.REGTYPE),
            ("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("device.png", tarfile.CHRTYPE),
            ("disk.png", tarfile.BLKTYPE), ("pipe.png", tarfile.FIFOTYPE), ("folder", tarfile.DIRTYPE),
            ("twice.png", tarfile.REGTYPE), ("twice.png", tarfile.REGTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
        inside.size = len(data)
        tar.addfile(inside, io.BytesIO(data))
    shards = open_collection(tmp_path / "a.tar")
    assert list(shards.names()) == ["good.png", "twice.png"] and shards.read("good.png") == data
    reasons = {reason.partition(": ")[0]: reason.partition(": ")[2] for _, reason in shards.problems()}
    assert set(reasons) == {
        "/etc/a.png", "../b.png", "x/../../c.png", "link.png", "hard.png", "device.png", "disk.png", "pipe.png",
        "twice.png",
    }  # fmt: skip
    assert "symbolic link" in reasons["link.png"] and "leaves the folder" in reasons["../b.png"]
    assert {path for path, _ in opened(tmp_path / "a.tar").problems} == {tmp_path / "a.tar"}


@pytest.mark.parametrize("number", [-1, -(2**62), 2**62])
def test_sizes_that_lie_end_the_tar(tmp_path, number):
    """A negative size would send a reader back to where it was."""
    path = shard(tmp_path / "a.tar", {"a.png": b"1", "b.png": b"2"})
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136] = (b"\x80" if number > 0 else b"\xff") + (number % 256**11).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(bytes(data))
    shards = open_collection(path)
    assert list(shards.names()) == ["a.png"]
    assert "damaged or cut short" in shards.problems()[0][1]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_cut_tar_is_read_up_to_the_cut(tmp_path, kept):
    members = {f"{number}.png": picture(number) for number in range(4)}
    path = shard(tmp_path / "cut.tar", members)
    shard(tmp_path / "whole.tar", {"z.png": picture(9)})
    data, end = path.read_bytes(), 0
    for name in list(members)[:kept]:
        end += 512 + -(-len(members[name]) // 512) * 512
    for cut in (end, end + 100, end + 512, end + 700):
        path.write_bytes(data[:cut])
        dataset = opened(tmp_path)
        assert [s.image for s in dataset.slices] == [*list(members)[:kept], "z.png"]
        [(place, reason)] = dataset.problems
        assert place == path and reason.startswith("damaged or cut short") and f"the {kept} members" in reason


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 7000), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6),
    cut=st.integers(0, 8000),
)
def test_any_damage_gives_members_or_a_reason(tmp_path, edits, cut):
    members = {name: data[:700] for name, data in FILES.items()}
    data = bytearray(shard(tmp_path / "a.tar", members).read_bytes())
    for place, value in edits:
        data[place : place + len(value)] = value
    (tmp_path / "a.tar").write_bytes(bytes(data[:cut]))
    shards = open_collection(tmp_path / "a.tar")
    try:
        for name in shards.names():
            assert isinstance(shards.read(name), bytes)
            caption = shards.beside(name, ".txt")
            assert caption is None or isinstance(caption, bytes)
    except DataError as error:
        assert "\n" not in str(error)


def test_shards_travel_to_other_processes(both, monkeypatch):
    shards = open_collection(both[1])
    names = list(shards.names())
    data = pickle.dumps(shards)
    assert len(data) < 1500 + 100 * len(FILES)
    monkeypatch.setattr("flowgrain.data.collections.tar_shards.tar_contents", None)  # headers are not read again
    other = pickle.loads(data)
    assert list(other.names()) == names and [other.read(name) for name in names] == [shards.read(n) for n in names]
    assert other == shards and hash(other) == hash(shards)


def test_a_tar_that_changes_under_its_readers_is_refused(both):
    _, shards = both
    collection = open_collection(shards)
    stamp = collection.stamp("fox.png")
    assert stamp == open_collection(shards).stamp("fox.png") != collection.stamp("broken.png")
    path = shards / "photos-000000.tar"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"photos-000000\.tar: fox\.png: the tar has changed since it was opened"):
        collection.read("fox.png")
    assert open_collection(shards).stamp("fox.png") != stamp
    assert collection.stamp("gone.png") is None


def test_opening_again_decodes_nothing(both, tmp_path, monkeypatch):
    monkeypatch.setattr(file_index, "SETTLED_NS", -1_000_000_000)
    looked: list[str] = []
    original = folder.inspect_picture
    monkeypatch.setattr(folder, "inspect_picture", lambda item: (looked.append(item.name), original(item))[1])
    for _ in range(2):
        looked.clear()
        dataset = opened(both[1], cache=tmp_path / "cache", mask="file")
    assert looked == ["broken.png"] and len(dataset) == 3
    assert {path.suffix for path in both[1].iterdir()} == {".tar"}


LEVELS = ("macro", "meso", "micro")


def slice_record(root: str, level: str, path: str) -> SliceRecord:
    return SliceRecord(
        slice_id=f"{root}/{level}0", root=root, image=f"{root}.jpg", image_sha1=f"{len(root):040}", level=level,
        granularity=level, path=path, width=32, height=32, box=(0, 0, 60, 40), crop=(0, 0, 40, 40), scale=0.8,
        action="downscale", reason="test", parent=None, detector="test", score=1.0, caption=f"{level} of {root}",
        caption_source="root",
    )  # fmt: skip


def decomposed(target: Path, kind: str) -> Path:
    """The same slices and masks as files, as members of tars with a manifest, or as tars alone."""
    lines, tars = [], ({}, {})
    for number, root in enumerate(("fox.1-1a", "sub/owl-2b", "elk-3c/p0", "ape%-4d")):
        members, name = tars[number % 2], f"shards/{number % 2:06}.tar"
        own = []
        for place, level in enumerate(LEVELS[: 1 + number % 3]):
            data, file = picture(10 * number + place, (32, 32)), f"slices/{root}/{level}0.png"
            member = shard_member(root, f"{level}0.png")
            own.append(slice_record(root, level, member))
            if kind == "files":
                unpack(target, {file: data, file[:-4] + ".mask.png": mask((32, 32))})
                lines.append(slice_record(root, level, file))
            else:
                members |= {member: data, shard_member(root, f"{level}0.mask.png"): mask((32, 32))}
                lines.append(slice_record(root, level, f"{name}!{member}"))
        members[shard_member(root, "json")] = encode_records(own)
    for number, members in enumerate(tars if kind != "files" else ()):
        shard(target / ("shards" if kind == "manifest" else "") / f"{number:06}.tar", members)
    if kind != "tars":
        (target / MANIFEST_NAME).write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
    return target


@pytest.mark.parametrize("kind", ["manifest", "tars"])
def test_a_decomposed_set_is_the_same_in_files_and_in_shards(tmp_path, kind):
    one = opened(decomposed(tmp_path / "files", "files"), resolution=None, mask="file")
    two = opened(decomposed(tmp_path / kind, kind), resolution=None, mask="file")
    assert facts(one) == facts(two) and len(one) == 7 and one.fingerprint == two.fingerprint
    for index in range(len(one)):
        assert torch.equal(one.pixels(index), two.pixels(index))
        assert torch.equal(one.mask(index), two.mask(index))
    assert ".tar: " in two.slices[0].file.place()


def test_a_decomposed_set_in_shards_is_opened_without_reading_its_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(file_index, "SETTLED_NS", -1_000_000_000)
    path = decomposed(tmp_path / "a", "manifest")
    first = opened(path, resolution=None, mask="file")

    def refuse(item: Item) -> FileFacts:
        raise AssertionError(item.name)

    monkeypatch.setattr(manifest, "inspect_slice", refuse)
    monkeypatch.setattr(masks, "inspect_mask", refuse)
    assert opened(path, resolution=None, mask="file").slices == first.slices


def rewrite(path: Path, change) -> None:
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    changed = {name: change(name, data) if name.endswith("macro0.png") else data for name, data in members.items()}
    shard(path, {name: data for name, data in changed.items() if data is not None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, data: None, r"file .*\.macro0\.png' is missing"),
        (lambda name, data: data[:-20], r"000000\.tar: .*macro0\.png: damaged"),
        (lambda name, data: picture(0), "40x32 px, but slice"),
    ],
)
@pytest.mark.parametrize("kind", ["manifest", "tars"])
def test_damage_to_a_decomposed_set_is_an_error(tmp_path, kind, change, words):
    path = decomposed(tmp_path / "a", kind)
    rewrite(next(path.rglob("000000.tar")), change)
    with pytest.raises(DataError, match=words):
        opened(path, resolution=None)


@pytest.mark.parametrize("kind", ["manifest", "tars"])
def test_a_cut_shard_of_a_decomposed_set_is_an_error(tmp_path, kind):
    path = decomposed(tmp_path / "a", kind)
    tar = next(path.rglob("000001.tar"))
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"000001\.tar.*damaged or cut short.*; restore it or decompose"):
        opened(path, resolution=None)
    tar.unlink()
    if kind == "manifest":
        with pytest.raises(DataError, match=r"manifest\.jsonl:\d+: file 'shards/000001\.tar!.*' is missing"):
            opened(path, resolution=None)


def test_a_root_in_two_shards_is_an_error(tmp_path):
    path = decomposed(tmp_path / "a", "tars")
    (path / "000002.tar").write_bytes((path / "000000.tar").read_bytes())
    with pytest.raises(DataError, match=r"000002\.tar: .*json: slice_id '.*' was already used at .*000000\.tar: elk"):
        opened(path, resolution=None)


def test_a_file_whose_name_looks_like_a_member(tmp_path):
    """A source image may be called x.tar!y.png: its slices are files."""
    root = "x.tar!y-1a"
    unpack(tmp_path, {f"slices/{root}/macro0.png": picture(0, (32, 32))})
    line = slice_record(root, "macro", f"slices/{root}/macro0.png").model_dump_json()
    (tmp_path / MANIFEST_NAME).write_text(line + "\n")
    assert [s.file.name for s in opened(tmp_path, resolution=None).slices] == [json.loads(line)["path"]]


def test_workers_read_what_they_are_sent(both):
    shards = open_collection(both[1])
    names = list(shards.names())
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert list(pool.map(shards.read, names)) == [FILES[name] for name in names]
