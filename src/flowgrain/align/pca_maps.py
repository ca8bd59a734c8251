"""Features as pictures: their first three principal components as red, green and blue, a pixel a token.

As in Figure 1a of Spatial Gram Alignment (arXiv 2605.20808), and in DINOv2. The components are common to all pictures
that are shown together, so that equal colours mean equal features. Tokens are brought to unit length first: that is how
the Gram loss sees them, and a few long tokens would take the components for themselves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from flowgrain.align.grids import Grid

Background = tuple[int, int, int]
TAIL = 1.0
"""Percent of the tokens at either end of a component that are drawn in the end's colour."""
MIDDLE = 128
"""Grey level of a component without spread."""


def pca_maps(
    features: Sequence[Float[Tensor, "_ _"]],
    grids: Sequence[Grid],
    foregrounds: Sequence[Bool[Tensor, " _"]] | None = None,
    background: Background = (0, 0, 0),
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """One RGB picture for each picture's tokens (row by row on its grid), all by the same components and scale.

    Each component is turned so that its largest loading is positive, and its values from the 1st to the 99th percentile
    become 0 to 255. With ``foregrounds`` only tokens that are True decide components and scale; the others are drawn in
    the colour ``background``.

    Raises ValueError for tokens that do not fill their grid, of several widths, not finite, or without a foreground.
    """
    tokens = _stacked(features, grids)
    shown = np.ones(len(tokens), bool) if foregrounds is None else _joined(foregrounds, grids)
    scores = _scores(tokens, tokens[shown])
    low, high = np.percentile(scores[shown], (TAIL, 100 - TAIL), axis=0)
    spread = high - low
    # rounding leaves components of equal tokens a spread around 1e-16
    flat = spread <= 1e-7
    levels = np.clip((scores - low) / np.where(flat, 1, spread), 0, 1) * 255
    colours = np.where(flat, MIDDLE, np.rint(levels)).astype(np.uint8)
    colours[~shown] = background
    ends = np.cumsum([grid.places for grid in grids])[:-1]
    return [part.reshape(*grid, 3) for part, grid in zip(np.split(colours, ends), grids, strict=True)]


def _stacked(features: Sequence[Tensor], grids: Sequence[Grid]) -> Float[np.ndarray, "n c"]:
    """Unit rows of all pictures, float64."""
    sizes = [tuple(each.shape) for each in features]
    places = [grid.places for grid in grids]
    if not sizes or [count for count, _ in sizes] != places or len({width for _, width in sizes}) != 1:
        raise ValueError(f"features of {sizes} (tokens, channels) for grids of {places} places")
    rows = torch.cat([each.detach().to("cpu", torch.float64) for each in features])
    if not rows.isfinite().all():
        raise ValueError("features hold values that are not finite")
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def _joined(foregrounds: Sequence[Tensor], grids: Sequence[Grid]) -> Bool[np.ndarray, " n"]:
    """Masks of all pictures, one behind the other."""
    counts, places = [len(each) for each in foregrounds], [grid.places for grid in grids]
    if counts != places:
        raise ValueError(f"foregrounds of {counts} tokens for grids of {places} places")
    shown = torch.cat(list(foregrounds)).cpu().numpy()
    if not shown.any():
        raise ValueError("no token is foreground")
    return shown


def _scores(tokens: Float[np.ndarray, "n c"], basis: Float[np.ndarray, "m c"]) -> Float[np.ndarray, "n 3"]:
    """Coordinates of ``tokens`` along the first three principal directions of ``basis``, zero where there are fewer."""
    mean = basis.mean(axis=0)
    centred = basis - mean
    # eigenvectors of C x C: there are far more tokens than channels
    _, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, ::-1][:, :3]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(directions.shape[1])] < 0, -1, 1)
    scores = (tokens - mean) @ directions
    return np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
