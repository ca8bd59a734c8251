"""BlazeFace, short range: a face detector of 100,000 weights, and the decoding of its anchors.

Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs" (2019); network, anchors and
decoding as in MediaPipe's graph ``face_detection_short_range``, whose weights (Apache-2.0) lie in
``assets/people``. A face is a box and six points: right eye, left eye, nose tip, mouth, right ear, left ear, where
right is the person's right.

MediaPipe shows the network 128 x 128 pixels (896 anchors). It is convolutional, so here it takes any multiple of 16:
faces of the sizes it knows (about 15 to 100 pixels) are then found anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional

from flowgrain.errors import ModelError

INPUT_SIDE = 128
"""Side of the pictures that MediaPipe shows the network."""
SIDE_STEP = 16
SAME_FACE = 0.3
"""IoU above which two boxes are one face, MediaPipe's value."""
POINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")
_CHANNELS = (24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88, 96, 96, 96, 96, 96)
_HALVING = (2, 5, 11)
"""Blocks that halve the grid."""
_FINE = 10
"""The block that gives the finer of the two grids of anchors; the last one gives the coarser."""
_GRIDS = ((8, 2), (16, 6))
"""Pixels between the anchors of a grid, anchors at each of its places."""
_NUMBERS = 16
"""Of an anchor: centre, size, and six points of two."""


@dataclass(frozen=True)
class Faces:
    """Faces of one picture, in its pixels."""

    boxes: Float[np.ndarray, "n 4"]
    """x0, y0, x1, y1; from about the middle of the forehead to the chin."""
    points: Float[np.ndarray, "n 6 2"]
    scores: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: np.ndarray) -> "Faces":
        """The faces at ``index`` (numbers or a mask)."""
        return Faces(self.boxes[index], self.points[index], self.scores[index])

    def moved(self, scale: tuple[float, float], origin: tuple[float, float]) -> "Faces":
        """The same faces in pixels of which ``scale`` (across, down) make one, counted from ``origin``."""
        factor, offset = np.array(scale), np.array(origin)
        return Faces(self.boxes * np.tile(factor, 2) + np.tile(offset, 2), self.points * factor + offset, self.scores)


class _Block(nn.Module):
    """Depthwise 3 x 3, pointwise, and a shortcut that is max-pooled and padded with zero channels."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(before, before, 3, stride, groups=before)
        self.pointwise = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.depthwise.stride[0]
        change = self.pointwise(self.depthwise(_padded(x, 3, stride)))
        shortcut = functional.max_pool2d(x, 2) if stride == 2 else x
        return functional.relu(functional.pad(shortcut, (0, 0, 0, 0, 0, change.shape[1] - x.shape[1])) + change)


class BlazeFace(nn.Module):
    """Pixels in [-1, 1] to the raw numbers of each anchor."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, _CHANNELS[0], 5, 2)
        self.blocks = nn.ModuleList(
            _Block(_CHANNELS[i], _CHANNELS[i + 1], 2 if i in _HALVING else 1) for i in range(len(_CHANNELS) - 1)
        )
        channels = (_CHANNELS[_FINE + 1], _CHANNELS[-1])
        self.scores = nn.ModuleList(nn.Conv2d(c, n, 1) for c, (_, n) in zip(channels, _GRIDS, strict=True))
        self.places = nn.ModuleList(nn.Conv2d(c, n * _NUMBERS, 1) for c, (_, n) in zip(channels, _GRIDS, strict=True))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n 16"]]:
        """Logits of "a face" and the 16 numbers of each anchor, in pixels, places relative to the anchor.

        Sides are multiples of 16; there are h w / 8^2 * 2 + h w / 16^2 * 6 anchors.
        """
        x = functional.relu(self.stem(_padded(pixels, 5, 2)))
        grids = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in (_FINE, len(self.blocks) - 1):
                grids.append(x)
        scores = [_by_anchor(head(grid), 1) for head, grid in zip(self.scores, grids, strict=True)]
        places = [_by_anchor(head(grid), _NUMBERS) for head, grid in zip(self.places, grids, strict=True)]
        return torch.cat(scores, 1)[..., 0], torch.cat(places, 1)


def weights_path() -> Path:
    """The embedded weights."""
    return Path(str(resources.files("flowgrain"))) / "assets" / "people" / "blazeface.safetensors"


def load_blazeface(path: Path) -> BlazeFace:
    """The network in float32. Raises :class:`ModelError` for a file that is missing, damaged or of another network."""
    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: the weights of BlazeFace cannot be read ({error})") from None
    model = BlazeFace()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise ModelError(f"{path}: not the weights of BlazeFace short range ({problem})") from None
    for parameter in model.parameters():
        if parameter.dim() == 4:  # channels last: half the time
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def find_faces(model: BlazeFace, pictures: UInt8[np.ndarray, "b h w 3"], min_score: float) -> list[Faces]:
    """Faces of pictures of one size, whose sides are multiples of 16; doubles merged as MediaPipe merges them.

    The same to the last bit however many threads torch has.
    """
    pixels = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
    with torch.inference_mode(), _one_thread():
        logits, numbers = (part.numpy().astype(np.float64) for part in model(pixels))
    anchors = anchors_of(pictures.shape[1], pictures.shape[2])
    found = []
    for picture_scores, picture_numbers in zip(expit(np.clip(logits, -100, 100)), numbers, strict=True):
        likely = np.flatnonzero(picture_scores >= min_score)
        found.append(merged(_decoded(picture_numbers[likely], anchors[likely], picture_scores[likely]), SAME_FACE))
    return found


def merged(faces: Faces, max_iou: float) -> Faces:
    """Weighted non-maximum suppression: each group of overlapping boxes becomes its score-weighted mean.

    A group is what overlaps its best box by more than ``max_iou``; its score is the best one.
    """
    rest = np.argsort(-faces.scores, kind="stable")
    boxes, points, scores = [], [], []
    while len(rest):
        group = overlap(faces.boxes[rest[0]], faces.boxes[rest]) > max_iou
        group[0] = True
        members = rest[group]
        weights = faces.scores[members] / faces.scores[members].sum()
        boxes.append(weights @ faces.boxes[members])
        points.append(np.tensordot(weights, faces.points[members], 1))
        scores.append(faces.scores[members[0]])
        rest = rest[~group]
    return Faces(np.reshape(boxes, (-1, 4)), np.reshape(points, (-1, 6, 2)), np.array(scores, dtype=np.float64))


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box with each of several; 0 with an empty one."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    total = np.prod(np.maximum(box[2:] - box[:2], 0)) + areas - common
    return np.divide(common, total, out=np.zeros_like(common), where=total > 0)


def anchors_of(height: int, width: int, grids: tuple[tuple[int, int], ...] = _GRIDS) -> Float[np.ndarray, "n 2"]:
    """Places (x, y) of the anchors in pixels, in the network's order (SSD with anchors of one size).

    ``grids``: pixels between the anchors and anchors at each place, of every grid.
    """
    places = []
    for step, count in grids:
        y, x = np.meshgrid(np.arange(height // step) + 0.5, np.arange(width // step) + 0.5, indexing="ij")
        places.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2) * step, count, axis=0))
    return np.concatenate(places)


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch computes with one thread, and afterwards with as many as before.

    Layers as small as these gain little from a second thread and lose much: after each one all threads wait for the
    last, which on a busy machine may not even be running.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decoded(numbers: np.ndarray, anchors: np.ndarray, scores: np.ndarray) -> Faces:
    values = numbers.reshape(-1, 8, 2)
    centre, half = values[:, 0] + anchors, values[:, 1] / 2
    return Faces(np.concatenate([centre - half, centre + half], 1), values[:, 2:] + anchors[:, None], scores)


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around the grid as TensorFlow's SAME padding puts them: the odd one to the right and below."""
    sides = []
    for length in (x.shape[-1], x.shape[-2]):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides)


def _by_anchor(grid: Tensor, numbers: int) -> Tensor:
    return grid.permute(0, 2, 3, 1).reshape(len(grid), -1, numbers)
