"""What the tests of alignment terms share: a small random reference encoder and terms over it."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "align"))  # the random vision models of the encoders' tests

from structure_models import dino, saved

from flowgrain.train.setup import prepare

TAP = "transformer_blocks.0"


def silent(_what, _done, _total):
    """No progress."""


def save_encoder(folder):
    """A DINOv2 of random weights, 24 channels, patches of 8 pixels; what a recipe calls it."""
    folder.mkdir()
    saved(dino("dinov2", 8), folder)
    return f"dino:{folder}"


def term(encoder, kind="gram", **changes):
    """A term on the first block, on a grid of up to 4 places."""
    return {"kind": kind, "tap": TAP, "encoder": encoder, "grid": {"edge": 4}, "watch": 1.0, **changes}


def first(session):
    """The first micro-batch of a session."""
    return session.builder.build(session.plan(0)[0].micro_batches[0], 0)


def features_of(recipe, encoder, cache):
    """Reference tokens of all slices of an epoch by slice, with ``data.cache`` set so."""
    config = recipe(align=[term(encoder)], data={**recipe().data.model_dump(mode="json"), "cache": cache})
    session = prepare(config, silent)
    found = {}
    for update in session.plan(0):
        for micro in update.micro_batches:
            batch = session.builder.build(micro, 0)
            (tokens,) = batch.features.values()
            found |= dict(zip(batch.names, tokens, strict=True))
    return found


def write_masked_pictures(folder):
    """Three pictures: masked in on the left half, everywhere, and on less than half of a column of a 4 x 4 grid."""
    folder.mkdir()
    for number, (name, columns) in enumerate((("half", 32), ("whole", 64), ("sliver", 6))):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[:, :columns] = 255
        Image.fromarray(mask).save(folder / f"{name}.mask.png")
    return folder
