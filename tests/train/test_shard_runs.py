"""Whole runs over slices in tar shards: bitwise those over the same slices in files."""

import pytest
from whole_runs import assert_same_run

from flowgrain.config import dump_yaml, load_config
from flowgrain.data.dataset import open_dataset
from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.data.shard_files import ShardWriter, encode_records, shard_member
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe


def as_shards(dataset, target, with_manifest):
    """The slices of a decomposed folder as members of two tars."""
    records = [SliceRecord.model_validate_json(line) for line in (dataset / MANIFEST_NAME).read_text().splitlines()]
    lines = []
    for number in range(2):
        name = f"shards/{number:06}.tar" if with_manifest else f"{number:06}.tar"
        with ShardWriter(target / name) as shard:
            for root in sorted({record.root for record in records})[number::2]:
                own = []
                for record in records:
                    if record.root == root:
                        member = shard_member(root, f"{record.slice_id.rpartition('/')[2]}.png")
                        shard.add(member, (dataset / record.path).read_bytes())
                        own.append(record.model_copy(update={"path": member}))
                        lines.append(record.model_copy(update={"path": f"{name}!{member}"}).model_dump_json())
                shard.add(shard_member(root, "json"), encode_records(own))
    if with_manifest:
        (target / MANIFEST_NAME).write_text("\n".join(lines))
    return target


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_run_over_shards_is_bitwise_the_run_over_files(recipe, dataset, tmp_path, with_manifest):
    shards = as_shards(dataset, tmp_path / "set", with_manifest)
    runs = []
    for name, path in (("files", dataset), ("shards", shards)):
        source = {"path": str(path), "name": "set"}
        validation = {"path": str(path), "max_roots": 2}
        config = recipe(name, data={"sources": [source], "flip": True}, validation=validation)
        train(config, False, Observer())
        runs.append(config)
    assert_same_run(runs[0].output, runs[1].output)
    fingerprints = [open_dataset(config.data, 16).fingerprint for config in runs]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("path", ["hf:user/name:train?image=photo", "photos-{000000..000012}.tar"])
def test_a_recipe_keeps_the_name_of_its_data(recipe, path, tmp_path):
    config = recipe(data={"path": path})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    assert str(load_config(Recipe, tmp_path / "recipe.yaml", [])[0].data.path) == path
