"""Hugging Face data sets as pictures: columns found by type, bytes as they were put in, names that stay."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgrain.data import file_index, folder
from flowgrain.data.captions import caption_beside
from flowgrain.data.collections import Item, open_collection
from flowgrain.data.collections.hub import HubDataset
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.errors import DataError, MissingExtraError

datasets = pytest.importorskip("datasets")


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 32)) -> bytes:
    pixels = np.random.default_rng([seed, *size]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
BYTES = [picture(number, kind) for number, kind in enumerate(KINDS)]
PATHS = ["a/fox.v2.PNG", None, "owl", "..", "C:\\x\\elk.bmp", "bear.unknown"]
NAMES = [
    "train/000000-fox.v2.PNG", "train/000001.jpg", "train/000002-owl.webp", "train/000003.gif",
    "train/000004-elk.bmp", "train/000005-bear.tiff",
]  # fmt: skip


def table(**more) -> "datasets.Dataset":
    rows = {
        "id": list(range(len(BYTES))),
        "image": [{"bytes": data, "path": path} for data, path in zip(BYTES, PATHS, strict=True)],
        "text": [f"picture {number}" for number in range(len(BYTES) - 1)] + [None],
        **more,
    }
    features = {"id": datasets.Value("int64"), "image": datasets.Image(), "text": datasets.Value("string")}
    features |= {key: datasets.Image() if key == "mask" else datasets.Value("string") for key in more}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features), split="train")


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture(params=["saved", "saved dict", "parquet"])
def folder_of_rows(request, tmp_path) -> Path:
    path = tmp_path / "rows"
    if request.param == "saved":
        table().save_to_disk(path)
    elif request.param == "saved dict":
        datasets.DatasetDict({"train": table()}).save_to_disk(path)
    else:
        path.mkdir()
        table().to_parquet(path / "train-00000-of-00001.parquet")
    return path


def opened(spec: str, **options) -> SliceDataset:
    return open_dataset(DataConfig.model_validate({"path": spec, "resolution": 32, **options}), 16)


def test_rows_are_pictures_with_captions(folder_of_rows):
    rows = open_collection(f"hf:{folder_of_rows}")
    assert isinstance(rows, HubDataset) and list(rows.names()) == NAMES
    assert [rows.read(name) for name in NAMES] == BYTES
    captions = [caption_beside(Item(rows, name)) for name in NAMES]
    assert captions == [*(f"picture {number}" for number in range(5)), None]
    assert rows.beside(NAMES[0], ".mask.png") is None and rows.beside(NAMES[0], ".caption") is None
    assert rows.place(NAMES[1], ".txt") == f"hf:{folder_of_rows}: train/000001.txt"
    assert len({rows.stamp(name) for name in NAMES}) == len(NAMES)
    again = pickle.loads(pickle.dumps(rows))
    assert again == rows and [again.read(name) for name in NAMES] == BYTES and len(pickle.dumps(rows)) < 1000
    with pytest.raises(DataError, match=r"train/000006\.png: no such row; it has 6"):
        rows.read("train/000006.png")


def test_training_on_rows(folder_of_rows, tmp_path, monkeypatch):
    """The same pixels as from files of the same bytes; nothing is decoded again when it is opened again."""
    monkeypatch.setattr(file_index, "SETTLED_NS", -1_000_000_000)
    looked: list[str] = []
    original = folder.inspect_picture
    monkeypatch.setattr(folder, "inspect_picture", lambda item: (looked.append(item.name), original(item))[1])
    spec = f"hf:{folder_of_rows}"
    dataset = opened(spec, cache=tmp_path / "cache")
    assert looked == NAMES and opened(spec, cache=tmp_path / "cache").slices == dataset.slices and looked == NAMES
    assert [s.image for s in dataset.slices] == NAMES and dataset.missing_captions == 1
    for number, data in enumerate(BYTES):
        (tmp_path / "files" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / NAMES[number]).write_bytes(data)
    files = opened(str(tmp_path / "files"))
    for index in range(len(files)):
        assert files.slices[index].slice_id == dataset.slices[index].slice_id
        assert torch.equal(files.pixels(index), dataset.pixels(index))


def test_a_broken_row_is_left_out_with_its_name(tmp_path):
    rows = table().to_dict()
    rows["image"][1], rows["image"][2] = {"bytes": b"no picture", "path": "x.png"}, None
    rows["image"][3] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    rows["image"][4] = {"bytes": None, "path": str(tmp_path / "elk.bmp")}
    (tmp_path / "elk.bmp").write_bytes(BYTES[4])
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({**table().features, "image": plain})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "rows")
    dataset = opened(f"hf:{tmp_path / 'rows'}")
    assert len(dataset) == 3 and [s.slice_id[:11] for s in dataset.slices] == [
        "all/000000-",
        "all/000004-",
        "all/000005-",
    ]
    reasons = {str(path).rpartition(" all/")[2]: reason for path, reason in dataset.problems}
    assert set(reasons) == {"000001-x.png", "000002.jpg", "000003-gone.png"}
    assert reasons["000002.jpg"] == "the row has no picture in its column 'image'"
    assert "no such file" in reasons["000003-gone.png"]


def test_splits_and_columns(tmp_path):
    more = {
        "prompt": [f"prompt {n}" for n in range(6)],
        "mask": [{"bytes": data, "path": None} for data in BYTES[::-1]],
    }
    whole = table(**more)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(2))}).save_to_disk(tmp_path / "rows")
    spec = f"hf:{tmp_path / 'rows'}"
    with pytest.raises(DataError, match=r"has the splits train, test; name one, as in hf:.*:train"):
        open_collection(spec).names()
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        open_collection(f"{spec}:dev").names()
    test = open_collection(f"{spec}:test")
    assert list(test.names()) == [name.replace("train", "test") for name in NAMES[:2]]
    item = Item(test, test.names()[0])
    assert caption_beside(item) == "picture 0" and item.beside(".mask.png") == BYTES[-1] and item.has(".mask.png")
    assert item.neighbour(".mask.png").read() == BYTES[-1]
    other = open_collection(f"{spec}:test?caption=prompt&image=mask")
    assert caption_beside(Item(other, other.names()[0])) == "prompt 0" and other.read(other.names()[0]) == BYTES[-1]
    for query, words in (("image=text", "no column 'text' of pictures"), ("caption=id", "no column 'id' of texts")):
        with pytest.raises(DataError, match=f"{words}; its columns are id, image, text, prompt, mask"):
            open_collection(f"{spec}:test?{query}").names()


def test_columns_of_plain_bytes(tmp_path):
    """Tables that other programs wrote: no picture type, only bytes."""
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_dict({"jpg": BYTES, "caption": ["x"] * 6}).to_parquet(tmp_path / "rows" / "0.parquet")
    rows = open_collection(f"hf:{tmp_path / 'rows'}")
    extensions = ("png", "jpg", "webp", "gif", "bmp", "tiff")
    assert list(rows.names()) == [f"train/{number:06}.{kind}" for number, kind in enumerate(extensions)]
    assert [rows.read(name) for name in rows.names()] == BYTES
    two = datasets.Dataset.from_dict({"a": BYTES, "b": BYTES})
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match=r"columns a, b of pictures; .*: name one with \?image=COLUMN"):
        open_collection(f"hf:{tmp_path / 'two'}").names()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:", "not a name of a data set"),
        ("hf:a:b:c:d", "not a name of a data set"),
        ("hf:a?colour=x", "unknown key 'colour'"),
        ("hf:a?image", "not a name of a data set"),
        ("hf:EMPTY", "neither a folder of save_to_disk nor one of parquet files"),
        ("hf:nobody/nothing", "hf:nobody/nothing: cannot be opened"),
    ],
)
def test_what_is_no_data_set(tmp_path, spec, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words) as caught:
        open_collection(spec.replace("EMPTY", str(tmp_path / "empty"))).names()
    assert "\n" not in str(caught.value)


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowgrain\[datasets\]'"):
        open_collection(f"hf:{tmp_path}").names()
