"""References in tar shards and Hugging Face data sets are those of the folder of the same files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgrain.data.collections import located
from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.data.shard_files import ShardWriter, encode_records, shard_member
from flowgrain.evaluate.comparison import read_references


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def contents(folder: Path) -> list[tuple[bytes, str]]:
    return [(reference.path.read_bytes(), reference.caption) for reference in read_references(folder)]


def test_plain_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    with ShardWriter(tmp_path / "shards" / "0.tar") as shard:
        for number in range(3):
            for name, data in ((f"{number}.png", picture(number)), (f"{number}.txt", b"number %d" % number)):
                (tmp_path / "folder" / name).write_bytes(data)
                shard.add(name, data)
    expected = [(picture(number), f"number {number}") for number in range(3)]
    for name in ("folder", "shards", "shards/0.tar"):
        assert contents(tmp_path / name) == expected
    rows = {"image": [data for data, _ in expected], "text": [text for _, text in expected]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "rows")
    assert contents(located(tmp_path, Path(f"hf:{tmp_path / 'rows'}"))) == expected


@pytest.mark.parametrize("with_manifest", [True, False])
def test_macro_slices(tmp_path, with_manifest):
    records, lines = [], []
    with ShardWriter(tmp_path / ("shards/0.tar" if with_manifest else "0.tar")) as shard:
        for level in ("macro", "micro"):
            member = shard_member("fox-1a", f"{level}0.png")
            record = SliceRecord(
                slice_id=f"fox-1a/{level}0", root="fox-1a", image="fox.png", image_sha1="0" * 40, level=level,
                granularity=level, path=member, width=32, height=32, box=(0, 0, 32, 32), crop=(0, 0, 32, 32), scale=1.0,
                action="native", reason="test", parent=None, detector="test", score=1.0, caption=level,
                caption_source="root",
            )  # fmt: skip
            records.append(record)
            lines.append(record.model_copy(update={"path": f"shards/0.tar!{member}"}).model_dump_json())
            shard.add(member, picture(len(level)))
        shard.add(shard_member("fox-1a", "json"), encode_records(records))
    if with_manifest:
        (tmp_path / MANIFEST_NAME).write_text("\n".join(lines))
    assert contents(tmp_path) == [(picture(len("macro")), "macro")]
