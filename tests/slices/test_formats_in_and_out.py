"""The same pictures as files, as tars and as rows of a table give the same slices; trainers read either output."""

import json
import tarfile

import pytest
from decompose_runs import QUICK, config, data_of, leftovers, photos
from PIL import Image

from flowgrain.cli.main import main
from flowgrain.data.collections import open_collection
from flowgrain.data.dataset import DataConfig, open_dataset
from flowgrain.slices.decompose import decompose

COUNT = 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same pictures, captions and masks by kind of source."""
    datasets = pytest.importorskip("datasets")
    home = tmp_path_factory.mktemp("sources")
    folder = photos(home / "photos", COUNT)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    for name in names[::4]:
        size = Image.open(folder / name).size
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save((folder / name).with_suffix(".mask.png"))
    (home / "shards").mkdir()
    for number, part in enumerate((names[:13], names[13:])):
        with tarfile.open(home / "shards" / f"photos-{number:06}.tar", "w") as tar:
            for name in part:
                for path in sorted((folder / name).parent.glob(f"{(folder / name).stem}.*")):
                    tar.add(path, path.relative_to(folder).as_posix())
    rows: dict[str, list] = {"image": [], "text": [], "mask": []}
    for name in names:
        path = folder / name
        mask = path.with_suffix(".mask.png")
        rows["image"].append({"bytes": path.read_bytes(), "path": path.name})
        rows["text"].append(path.with_suffix(".txt").read_text())
        rows["mask"].append({"bytes": mask.read_bytes(), "path": None} if mask.exists() else None)
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "mask": datasets.Image()}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=datasets.Features(features), split="train").save_to_disk(home / "rows")
    # a row is called by its number and its file's name, without folders
    called = {f"train/{row:06}-{name.partition('/')[2]}": name for row, name in enumerate(names)}
    return {"folder": str(folder), "shards": str(home / "shards"), "rows": f"hf:{home / 'rows'}"}, called


@pytest.fixture(scope="module")
def outs(sources, tmp_path_factory):
    """Data sets by (kind of source, layout)."""
    home, made = tmp_path_factory.mktemp("outs"), {}
    for kind, layout in (("folder", "folder"), ("shards", "folder"), ("rows", "folder"), ("folder", "webdataset")):
        made[kind, layout] = home / f"{kind}-{layout}"
        settings = ["masks=file", f"layout={layout}", *QUICK]
        arguments = ["decompose", sources[0][kind], "--out", str(made[kind, layout]), "--preset", "tiny-128", *settings]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
    return made


def records(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def content(out, called):
    """Records and bytes of slices by image, level and number, under the names of the folder."""
    found = {}
    for record in records(out):
        image = called.get(record["image"], record["image"])
        own = record["root"]
        local = {key: value.replace(own, "") if isinstance(value, str) else value for key, value in record.items()}
        del local["image"]
        picture = out / record["path"]
        mask = picture.with_name(f"{picture.stem}.mask.png")
        found[image, local["slice_id"]] = (local, picture.read_bytes(), mask.read_bytes() if mask.exists() else None)
    return found


def test_any_source_gives_the_same_slices(sources, outs):
    folder, shards, rows = (outs[kind, "folder"] for kind in ("folder", "shards", "rows"))
    first, second = data_of(folder), data_of(shards)
    about = [json.loads(data.pop("dataset.json")) for data in (first, second)]
    assert first == second  # a member is called as the file was that it holds
    assert [each.pop("source") for each in about] == ["photos", "shards"] and about[0] == about[1]
    assert len(content(folder, {})) > 2.5 * COUNT and content(folder, {}) == content(rows, sources[1])
    assert sum(mask is not None for _, _, mask in content(folder, {}).values()) > COUNT // 4
    assert not leftovers(folder) and not leftovers(shards) and not leftovers(rows)


def test_a_second_run_has_nothing_to_do_whatever_the_source(sources, outs):
    for (kind, layout), out in outs.items():
        settings = config("masks=file", f"layout={layout}", *QUICK)
        assert decompose(open_collection(sources[0][kind]), out, settings).unchanged == COUNT, kind


def test_the_trainer_reads_either_layout_as_the_same_data_set(outs):
    opened = [
        open_dataset(DataConfig(path=outs["folder", layout], mask="file"), 16) for layout in ("folder", "webdataset")
    ]
    assert len(opened[0].slices) == len(records(outs["folder", "folder"])) and not opened[1].problems
    assert opened[0].fingerprint == opened[1].fingerprint
    for index in range(len(opened[0].slices)):
        slices = [each.slices[index] for each in opened]
        assert slices[0].slice_id == slices[1].slice_id and slices[0].caption == slices[1].caption


def test_webdataset_reads_every_root_as_one_sample(outs):
    webdataset = pytest.importorskip("webdataset")
    out = outs["folder", "webdataset"]
    by_root = {}
    for record in records(out):
        by_root.setdefault(record["root"], []).append(record)
    seen = {}
    for tar in sorted((out / "shards").glob("*.tar")):
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
            seen[sample["__key__"]] = sample
    assert set(seen) == set(by_root)
    for root, own in by_root.items():
        pictures = {key for key in seen[root] if key.endswith(".png") and not key.endswith(".mask.png")}
        assert pictures == {record["path"].rpartition(f"{root}.")[2] for record in own}
        files = {f"{record['slice_id'].rpartition('/')[2]}.txt": record["caption"] for record in own}
        assert {key: seen[root][key].decode() for key in files} == files
        assert len(json.loads(seen[root]["json"])["records"]) == len(own)


def test_overlays_report_and_contact_sheet_of_every_kind(outs, tmp_path, capsys):
    names = {"folder": "a/photo004.png", "shards": "a/photo004.png", "rows": "train/000002-photo004.png"}
    drawn = {}
    for (kind, layout), out in outs.items():
        assert (out / "contact_sheet.png").stat().st_size > 10_000 and (out / "report.html").is_file()
        target = tmp_path / f"{kind}-{layout}.png"
        with pytest.raises(SystemExit) as ended:
            main(["overlay", str(out), "--image", names[kind], "--out", str(target)])
        assert not ended.value.code, capsys.readouterr().err
        drawn[kind, layout] = target.read_bytes()
    assert drawn["folder", "folder"] == drawn["shards", "folder"] == drawn["folder", "webdataset"]
    sheets = {(out / "contact_sheet.png").read_bytes() for (kind, _), out in outs.items() if kind != "rows"}
    assert len(sheets) == 1
