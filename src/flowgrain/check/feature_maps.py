"""What a reference of alignment terms sees in the slices of a data set: maps of its features beside the pictures.

As in Figure 1a of Spatial Gram Alignment (arXiv 2605.20808); see :mod:`flowgrain.align.pca_maps`.
"""

import io

import numpy as np
from PIL import Image
from pydantic import ValidationError

from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.grids import GridConfig
from flowgrain.align.pca_maps import pca_maps
from flowgrain.check.pictures import Progress
from flowgrain.data.dataset import SliceDataset
from flowgrain.errors import ConfigError
from flowgrain.report.page import GridRow, PictureGrid, Section
from flowgrain.report.pictures import MAX_SIDE, Tile, data_uri

SHOWN = 8
"""Slices that are drawn, evenly spaced over the data set."""
EDGE = 32
"""Places along the long edge, the paper's."""


def feature_section(dataset: SliceDataset, encoder: str, on_progress: Progress) -> Section:
    """Slices and maps of what ``encoder`` (as in a recipe) gives for them, in common colours.

    Raises ConfigError for an encoder that is none, ModelError for weights that cannot be had.
    """
    try:
        config = EncoderConfig(model=encoder)
    except ValidationError as error:
        raise ConfigError(f"--features: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    opened = open_structure_encoder(config)
    # the largest edge that the encoder's grids allow up to the paper's
    rule = GridConfig(edge=max(EDGE // opened.grid_multiple, 1) * opened.grid_multiple)
    count = min(SHOWN, len(dataset))
    chosen = [int(place) for place in np.linspace(0, len(dataset) - 1, count).round()]
    features, grids, pictures = [], [], []
    for done, index in enumerate(chosen, start=1):
        width, height = dataset.slices[index].bucket
        pixels, grid = dataset.pixels(index), rule.of(height, width, opened.grid_multiple)
        features.append(opened.tokens(pixels[None], grid)[0])
        grids.append(grid)
        pictures.append(((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
        on_progress(done, count)
    rows = []
    for index, picture, drawn in zip(chosen, pictures, pca_maps(features, grids), strict=True):
        name = dataset.slices[index].slice_id
        size = _fitted(picture.shape[1], picture.shape[0])
        tiles = (
            _tile(picture, name, size, Image.Resampling.LANCZOS),
            _tile(drawn, f"features of {name}", size, Image.Resampling.NEAREST),
        )
        rows.append(GridRow(name, tiles))
    return Section(
        "features",
        "Features",
        "What an alignment term would compare the model with: places of one colour are alike to the vision model.",
        (
            PictureGrid(
                opened.name,
                "Red, green and blue are the first three principal components of the unit tokens, common to all rows: "
                "equal colours mean equal features. A square is a token. "
                f"{count} of {len(dataset)} slices, evenly spaced.",
                ("slice", "features"),
                tuple(rows),
            ),
        ),
    )


def _fitted(width: int, height: int) -> tuple[int, int]:
    ratio = MAX_SIDE / max(width, height)
    return max(round(width * ratio), 1), max(round(height * ratio), 1)


def _tile(pixels: np.ndarray, alt: str, size: tuple[int, int], resampling: Image.Resampling) -> Tile:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, resampling).save(buffer, "WEBP", lossless=True, quality=60, method=4)
    return Tile(data_uri("image/webp", buffer.getvalue()), alt, *size)
