"""Tar shards of decomposed data sets: bytes that follow from the members, names and back, WebDataset's own reader."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.data.records import SliceRecord
from flowgrain.data.shard_files import (
    ShardWriter,
    decode_records,
    encode_records,
    holds_records,
    read_index,
    shard_member,
    split_member,
)
from flowgrain.errors import DataError

NAMES = ("fox.png", "deep/er/" + "x" * 90 + ".png", "狐狸/уши.png", "y" * 250 + ".txt", "a b!c%2E.json")


def written(path, members):
    with ShardWriter(path) as shard:
        places = {name: shard.add(name, data) for name, data in members.items()}
    return places


def record(slice_id: str, path: str) -> SliceRecord:
    return SliceRecord(
        slice_id=slice_id, root=slice_id.rpartition("/")[0], image="fox.jpg", image_sha1="0" * 40, level="macro",
        granularity="macro", path=path, width=32, height=32, box=(0, 0, 32, 32), crop=(0, 0, 32, 32), scale=1.0,
        action="native", reason="test", parent=None, detector="test", score=1.0, caption="", caption_source="none",
    )  # fmt: skip


def test_a_shard_is_a_plain_tar_whose_bytes_follow_from_its_members(tmp_path):
    members = {name: bytes([number]) * (300 * number + number) for number, name in enumerate(NAMES)}
    places = written(tmp_path / "a.tar", members)
    assert written(tmp_path / "sub" / "b.tar", members) == places == read_index(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert (tmp_path / "sub" / "b.tar").read_bytes() == data
    assert {name: data[start : start + size] for name, (start, size) in places.items()} == members
    with tarfile.open(tmp_path / "a.tar", "r:") as tar:
        found = {member.name: member for member in tar}
        assert {name: tar.extractfile(member).read() for name, member in found.items()} == members
        for member in found.values():
            assert (member.mtime, member.uid, member.gid, member.mode, member.uname) == (0, 0, 0, 0o644, "")


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"before")
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a.tar") as shard:
        shard.add("x", b"1")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"] and (tmp_path / "a.tar").read_bytes() == b"before"
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.add("x", b"1")
        with pytest.raises(ValueError, match=r"'x': already in a\.tar"):
            shard.add("x", b"2")
        for name in ("/x", "../x", "a/../x", "a//x", "", "x/"):
            with pytest.raises(ValueError):
                shard.add(name, b"")
    assert list(read_index(tmp_path / "a.tar")) == ["x"]


def test_every_format_of_tar_is_read(tmp_path):
    for name, kind in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
        names = NAMES if kind != tarfile.USTAR_FORMAT else ("fox.png", "d" * 60 + "/" + "f" * 80)
        with tarfile.open(tmp_path / name, "w", format=kind) as tar:
            for number, member in enumerate(names):
                info = tarfile.TarInfo(f"./{member}")
                info.size = number
                tar.addfile(info, io.BytesIO(b"z" * number))
        with tarfile.open(tmp_path / name) as tar:
            expected = {member.name[2:]: (member.offset_data, member.size) for member in tar}
        assert read_index(tmp_path / name) == expected


@given(st.text(min_size=1), st.sampled_from(["macro0.png", "p0.mask.png", "json"]))
def test_member_names_and_back(root, local_name):
    member = shard_member(root, local_name)
    assert split_member(member) == (root, local_name)
    assert "." not in member.removesuffix(f".{local_name}")


def test_member_names():
    assert shard_member("sub.x/fox.v2-1a2b/p0", "macro0.png") == "sub%2Ex/fox%2Ev2-1a2b/p0.macro0.png"
    assert shard_member("100%-1a", "json") == "100%25-1a.json"
    for wrong in ("fox", "fox.", ".json", "a.b/c"):
        with pytest.raises(ValueError):
            split_member(wrong)


def test_records_and_back():
    records = (record("fox-1a/macro0", "fox-1a.macro0.png"), record("fox-1a/micro0", "fox-1a.micro0.png"))
    data = encode_records(records)
    assert decode_records(data, "x") == records and holds_records(data)
    assert not holds_records(b'{"caption": "a fox"}')
    with pytest.raises(DataError, match=r"^s\.tar: fox\.json: "):
        decode_records(data[:-3], "s.tar: fox.json")
    with pytest.raises(DataError, match="kind 'x'"):
        decode_records(b'{"kind": "x", "records": []}', "s")


@pytest.mark.parametrize("cut", [1, 500, 700, 1024, 1500])
def test_an_index_of_a_damaged_shard_is_refused(tmp_path, cut):
    written(tmp_path / "a.tar", {"x": b"1" * 600, "y": b"2"})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:-cut] if cut != 1024 else data[:-1024])
    if cut < 512:  # the end mark is two blocks, of which one is enough
        assert list(read_index(tmp_path / "a.tar")) == ["x", "y"]
        return
    with pytest.raises(DataError, match="damaged or cut short"):
        read_index(tmp_path / "a.tar")


def test_webdataset_reads_a_root_as_one_sample(tmp_path):
    """The library's own reader: every sample has all slices of one root, and only these."""
    import webdataset

    roots = {f"set.{number}/fox.{number}-1a": [f"macro{n}.png" for n in range(number + 1)] for number in range(3)}
    with ShardWriter(tmp_path / "000000.tar") as shard:
        for root, locals_ in roots.items():
            for local in [*locals_, "macro0.mask.png", "macro0.txt", "json"]:
                shard.add(shard_member(root, local), f"{root} {local}".encode())
    found = {}
    for sample in webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False):
        root = split_member(f"{sample['__key__']}.json")[0]
        found[root] = {key: value for key, value in sample.items() if not key.startswith("__")}
    assert found == {
        root: {local: f"{root} {local}".encode() for local in [*locals_, "macro0.mask.png", "macro0.txt", "json"]}
        for root, locals_ in roots.items()
    }
