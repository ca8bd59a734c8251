"""Data sets of slices with known contents, written as decompose leaves them but without its work."""

import hashlib

import numpy as np
from PIL import Image

from flowgrain.data.records import SliceRecord
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.store import Part, SliceFacts, Store
from flowgrain.slices.summary import Summary

SETTINGS = {"targets": [[64, 64], [64, 96]]}
PER_CHUNK = 3


def code_of(text, bits=64):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - bits)


class MadeUpDataSet:
    """Images are added one by one; ``finish`` writes records, manifest and ``dataset.json``."""

    def __init__(self, folder, pictures=False, **settings):
        self.folder, self.pictures = folder, pictures
        self.config = DecomposeConfig.model_validate({**SETTINGS, **settings})
        self.store = Store(folder)
        self.parts = []
        self.unlisted = []

    def image(self, name, slices=(), rejects=(), fault=None, facts=True):
        """``slices``: (level, changes to the record, changes to the facts); ``rejects``: (level, code, changes)."""
        sha1 = hashlib.sha1(name.encode()).hexdigest()
        root = f"{name.rpartition('.')[0]}-{sha1[:8]}"
        records, measured = [], []
        for level, *changes in slices:
            more, known = (*changes, {}, {})[:2]
            records.append(self._record(name, sha1, more.get("root", root), level, len(records), more))
            known = {"phash": f"{code_of(f'{name} {len(records)}'):016x}", "sharpness": 20.0, **known}
            measured.append(SliceFacts(**known))
            if self.pictures:
                self._draw(records[-1])
        refused = [
            RejectRecord(
                **{"image": name, "root": root, "level": level, "box": (0, 0, 9, 9), "detector": "saliency"}
                | {"score": 0.5, "label": "detail", "code": code, "reason": f"because of {code}"}
                | (changes[0] if changes else {})
            )
            for level, code, *changes in rejects
        ]
        if fault is not None:
            refused.append(RejectRecord(image=name, code=fault, reason=f"{name} is {fault}"))
        self.parts.append(
            Part(
                name=name,
                stamp="1",
                sha1="" if fault else sha1,
                size=None if fault else (256, 200),
                key="k",
                files={},
                records=tuple(records),
                rejects=tuple(refused),
                facts=tuple(measured) if facts else (),
            )
        )
        return self

    def finish(self):
        chunks = []
        summary = Summary(tuple(self.config.levels))
        for start in range(0, len(self.parts), PER_CHUNK):
            chunks.append(f"{start:020x}")
            self.store.commit(chunks[-1], self.parts[start : start + PER_CHUNK])
        for part in self.parts:
            summary.add(part.records, part.rejects)
        fingerprint = self.store.write_manifest(self.parts, self.unlisted)
        about = {"source": "photos", "counts": summary.counts(), "config_hash": self.config.digest()}
        self.store.write_about(fingerprint, {**about, "config": self.config.model_dump(mode="json")})
        return self.folder

    def _record(self, name, sha1, root, level, number, more):
        local = f"{level}{number}"
        values = {
            "slice_id": f"{root}/{local}",
            "root": root,
            "image": name,
            "image_sha1": sha1,
            "level": level,
            "granularity": self.config.levels[level].granularity,
            "path": f"slices/{root}/{local}.png",
            "width": 64,
            "height": 64,
            "box": (0, 0, 200, 200) if level == "macro" else (40 * number, 0, 40 * number + 60, 60),
            "action": "downscale",
            "reason": "made up",
            "parent": None,
            "detector": "whole_image" if level == "macro" else "saliency",
            "label": "image" if level == "macro" else "detail",
            "score": 1.0 if level == "macro" else 0.5,
            "caption": f"{level} of {name}",
            "caption_source": "template",
            **more,
        }
        box = values["box"]
        values = {"crop": box, "scale": 64 / (box[2] - box[0]), **values}
        return SliceRecord(**values)

    def _draw(self, record):
        generator = np.random.default_rng(code_of(record.slice_id, 32))
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = self.folder / record.path
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((record.width, record.height), Image.Resampling.BICUBIC).save(path, compress_level=1)


def clean(folder, count=24, pictures=False, **settings):
    """A data set that nothing is wrong with: three levels each, every caption its own."""
    made = MadeUpDataSet(folder, pictures, **settings)
    for index in range(count):
        made.image(f"photo{index:03d}.png", [("macro",), ("meso", *_inside(index)), ("micro",)])
    return made


def _inside(index):
    root = f"photo{index:03d}-{hashlib.sha1(f'photo{index:03d}.png'.encode()).hexdigest()[:8]}"
    return ({"parent": f"{root}/macro0"},)
