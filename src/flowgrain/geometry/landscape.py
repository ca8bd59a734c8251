"""The loss along a training path: PCA planes of the path and grids of points on them.

Semantic Granularity Alignment draws Figs. 3 and 6 as sketches; these planes are measured. Method: Li et al. 2018,
"Visualizing the Loss Landscape of Neural Nets" (arXiv 1712.09913), sections 4 and 7.

A warning that belongs beside every such picture: the path of a pure random walk in many dimensions also lies mostly in
its first two principal components and draws a smooth curve there (Antognini and Sohl-Dickstein 2018, arXiv 1806.08805).
:func:`random_walk_explained` gives the shares that mean nothing; only what exceeds them does. And a plane shows a slice
of the landscape, whose dents need not be dents in other directions.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import DataError

Origin = Literal["mean", "first", "last"]
Vectors = Callable[[], Iterable[Tensor]]
"""Gives the same flat parameter vectors anew at each call, for example by reading checkpoints."""


def path_gram(vectors: Vectors, block: int = 4) -> Float[np.ndarray, "n n"]:
    """Inner products of theta_i - theta_0, float64; memory n^2 and ``block`` + 2 vectors, n / block passes.

    Raises :class:`DataError` for no vector.
    """
    rows: list[np.ndarray] = []
    start = 0
    while True:
        first, held, products, count = None, [], [], 0
        for index, vector in enumerate(vectors()):
            own = vector.detach().double()
            first = own.clone() if first is None else first
            own = own - first
            count = index + 1
            if start <= index < start + block:
                held.append(own)
            # a held vector meets those behind it; entries before it come from symmetry
            products.append([torch.dot(other, own).item() for other in held])
        if first is None:
            raise DataError("a path needs at least one vector (checkpoint), got none")
        for k in range(len(held)):
            row = np.zeros(count)
            row[start + k :] = [values[k] for values in products[start + k :]]
            rows.append(row)
        start += block
        if start >= count:
            break
    upper = np.triu(np.stack(rows))
    return upper + np.triu(upper, 1).T


@dataclass(frozen=True, eq=False)
class Plane:
    """Two orthonormal directions through an origin, and where the path's points lie."""

    origin: Float[Tensor, " p"]
    directions: Float[Tensor, "2 p"]
    coordinates: Float[np.ndarray, "n 2"]
    explained: Float[np.ndarray, " 2"]
    """Share of the squared distance from the origin, summed over the path, that each direction holds."""

    def point(self, x: float, y: float) -> Float[Tensor, " p"]:
        """The parameter vector at (x, y)."""
        return self.origin + x * self.directions[0] + y * self.directions[1]

    def project(self, vector: Float[Tensor, " p"]) -> tuple[float, float, float]:
        """Coordinates of any vector (another arm's checkpoint) and its distance from the plane."""
        offset = vector.detach().double() - self.origin
        x, y = (self.directions @ offset).tolist()
        rest = offset - x * self.directions[0] - y * self.directions[1]
        return x, y, rest.norm().item()


def fit_plane(vectors: Vectors, origin: Origin = "last", block: int = 4) -> Plane:
    """The first two principal components of a path about its mean, first or last point; float64.

    Li et al. take the last point, so that the plane holds the solution. For several arms on one plane chain their
    vectors. The axes point towards the last vector. Raises :class:`DataError` where the path spans fewer than two
    directions.
    """
    gram = path_gram(vectors, block)
    n = len(gram)
    anchor = np.full(n, 1 / n)
    if origin != "mean":
        anchor = np.eye(n)[0 if origin == "first" else n - 1]
    centring = np.eye(n) - anchor[None, :]
    centred = centring @ gram @ centring.T
    values, vectors_of = np.linalg.eigh((centred + centred.T) / 2)
    values, weights = values[::-1][:2], vectors_of[:, ::-1][:, :2]
    total = centred.trace()
    if len(values) < 2 or values[1] <= 1e-12 * total or total <= 0:
        raise DataError(
            f"a path of {n} points that spans fewer than two directions has no plane: keep more checkpoints"
        )
    coordinates = weights * np.sqrt(values)
    ends = (coordinates[-1] - coordinates[0]) if origin == "last" else coordinates[-1]
    signs = np.where(ends < 0, -1.0, 1.0)
    mixture = centring.T @ (weights * signs / np.sqrt(values))
    first, centre, directions = None, None, None
    for index, vector in enumerate(vectors()):
        own = vector.detach().double()
        if first is None or centre is None or directions is None:
            first, centre, directions = own.clone(), own.clone(), own.new_zeros(2, len(own))
        offset = own - first
        centre = centre + anchor[index] * offset
        directions = directions + torch.from_numpy(mixture[index]).to(own)[:, None] * offset
    if centre is None or directions is None:
        raise DataError("a path needs at least one vector (checkpoint), got none")
    return Plane(centre, directions, coordinates * signs, values / total)


def random_walk_explained(points: int, components: int = 2) -> Float[np.ndarray, " components"]:
    """Shares that the leading components of a random walk of ``points`` points explain about its mean.

    Independent steps in many dimensions: eigenvalues 1 / (2 - 2 cos(pi k / points)), whose sum is (points^2 - 1) / 6;
    0.61 and 0.15 for long walks.
    """
    k = np.arange(1, components + 1)
    return 1 / (2 - 2 * np.cos(np.pi * k / points)) / ((points**2 - 1) / 6)


def plane_axes(
    plane: Plane, columns: int, rows: int, margin: float = 0.25
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " rows"]]:
    """Evenly spaced coordinates that hold the path with ``margin`` times its extent on every side."""
    low, high = plane.coordinates.min(axis=0), plane.coordinates.max(axis=0)
    reach = margin * (high - low)
    ends = list(zip(low - reach, high + reach, strict=True))
    return np.linspace(*ends[0], columns), np.linspace(*ends[1], rows)


def evaluate_on_plane(
    plane: Plane,
    x: Float[np.ndarray, " columns"],
    y: Float[np.ndarray, " rows"],
    evaluate: Callable[[Tensor], float],
) -> Float[np.ndarray, "rows columns"]:
    """A loss at every grid point; the caller evaluates it at a flat parameter vector, one vector in memory at a time.

    Evaluate on fixed slices, noises and noise levels, or the picture shows their sampling.
    """
    return np.array([[float(evaluate(plane.point(float(a), float(b)))) for a in x] for b in y])


def normalise_filters(direction: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale each filter of ``direction`` to the norm of the reference's filter; vectors and scalars become 0.

    d_ij <- d_ij / |d_ij| |theta_ij| (Li et al., section 4): a filter is a row of a matrix or an output channel of a
    convolution. It takes out the scale symmetry of networks whose layers are normalised. Low-rank factors have another
    one, (A, B) -> (c A, B / c), that it does not take out, and a factor that starts at 0 gets no direction: normalise
    effective weights, or compare along the path's own PCA directions.
    """
    scaled = {}
    for name, value in direction.items():
        if value.ndim < 2:
            scaled[name] = torch.zeros_like(value)
            continue
        shape = (-1,) + (1,) * (value.ndim - 1)
        own, target = value.flatten(1).norm(dim=1), reference[name].flatten(1).norm(dim=1)
        factor = torch.where(own > 0, target / own.clamp_min(torch.finfo(own.dtype).tiny), 0)
        scaled[name] = value * factor.view(shape)
    return scaled
