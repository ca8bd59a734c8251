"""Small ONNX files in the layouts of YOLO exports that find red, green and blue rectangles exactly.

The frame is cut into ``tiles`` x ``tiles`` tiles. In each, the pixels in which one channel stands out by more than half
its range span the box of that colour; its score is the share of the box that they fill.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NAMES = ("red", "green", "blue")
FAR = 1e4


class Graph:
    """Nodes and constants of a graph under construction."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def add(self, kind, *inputs, **attributes):
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def numbers(self, *values):
        return self.constant(values, np.int64)


def save_yolo(
    path: Path,
    layout: str = "v8",
    frame: tuple[int, int] | None = (128, 128),
    batch: int | None = 1,
    tiles: int = 2,
    copies: int = 1,
    names=NAMES,
    half: bool = False,
    metadata: dict[str, str] | None = None,
    open_output: bool = False,
) -> Path:
    """Write the network; ``frame`` (width, height) and ``batch`` are open where None (then ``tiles`` must be 1).

    ``copies`` = 2 adds to each candidate one of 0.9 its size with 0.8 of its score. ``names`` = None writes none.
    """
    g = Graph()
    pixels = g.add("Cast", "images", to=TensorProto.FLOAT)
    if tiles > 1:
        wide, high = frame[0] // tiles, frame[1] // tiles
        pixels = g.add("Reshape", pixels, g.numbers(-1, 3, tiles, high, tiles, wide))
        pixels = g.add("Transpose", pixels, perm=[0, 2, 4, 1, 3, 5])
        pixels = g.add("Reshape", pixels, g.numbers(-1, tiles * tiles, 3, high, wide))
    else:
        pixels = g.add("Unsqueeze", pixels, g.numbers(1))
    mask = _mask(g, pixels)
    box = _extents(g, mask)
    if tiles > 1:
        rows, columns = np.divmod(np.arange(tiles * tiles), tiles)
        offsets = np.stack([columns * wide, rows * high] * 2, axis=-1)[None, :, None, :]
        box = g.add("Add", box, g.constant(offsets))
    score = _fill(g, mask, box)
    # (b, tiles, 3, k) -> (b, tiles * 3, k)
    count = tiles * tiles * 3
    box = g.add("Reshape", box, g.numbers(-1, count, 4))
    score = g.add("Reshape", score, g.numbers(-1, count, 1))
    output = _output(g, layout, box, score, count, copies)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    g.nodes.append(helper.make_node("Cast", [output], ["output0"], to=kind))

    total = count * copies
    shape = {"v8": [batch or "batch", 7, total], "v5": [batch or "batch", total, 8], "end-to-end": [1, total, 6]}[
        layout
    ]
    shape[0] = batch or "batch"
    size = (frame[1], frame[0]) if frame else ("height", "width")
    graph = helper.make_graph(
        g.nodes,
        "yolo",
        [helper.make_tensor_value_info("images", kind, [batch or "batch", 3, *size])],
        [helper.make_tensor_value_info("output0", kind, ["b", "rows", "columns"] if open_output else shape)],
        g.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    given = {} if names is None else {"names": str(dict(enumerate(names)))}
    helper.set_model_props(model, {**given, **(metadata or {})})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _mask(g, pixels):
    """1 where a channel is above both others by more than 1/2: (b, tiles, 3, h, w)."""
    above = []
    for order in ((1, 2, 0), (2, 0, 1)):
        other = g.add("Gather", pixels, g.numbers(*order), axis=2)
        above.append(g.add("Greater", g.add("Sub", pixels, other), g.constant(0.5)))
    return g.add("Cast", g.add("And", *above), to=TensorProto.FLOAT)


def _extents(g, mask):
    """(b, tiles, 3, 4): x0, y0, x1, y1 of each mask; x1 < x0 where it is empty."""
    ends = {}
    for name, axis in (("x", -2), ("y", -1)):
        line = g.add("ReduceMax", mask, axes=[axis], keepdims=0)
        ones = g.add("Add", g.add("Mul", line, g.constant(0)), g.constant(1))
        after = g.add("CumSum", ones, g.constant(3, np.int64))
        before = g.add("Sub", after, ones)
        outside = g.add("Mul", g.add("Sub", ones, line), g.constant(FAR))
        ends[name, 0] = g.add("ReduceMin", g.add("Add", before, outside), axes=[-1], keepdims=1)
        ends[name, 1] = g.add("ReduceMax", g.add("Mul", after, line), axes=[-1], keepdims=1)
    return g.add("Concat", ends["x", 0], ends["y", 0], ends["x", 1], ends["y", 1], axis=-1)


def _corners(g, box):
    pick = g.numbers(0, 1), g.numbers(2, 3)
    return [g.add("Gather", box, which, axis=-1) for which in pick]


def _fill(g, mask, box):
    low, high = _corners(g, box)
    sides = g.add("Max", g.add("Sub", high, low), g.constant(0))
    area = g.add("ReduceProd", sides, axes=[-1], keepdims=1)
    inside = g.add("ReduceSum", mask, g.numbers(-2, -1), keepdims=0)
    inside = g.add("Unsqueeze", inside, g.numbers(-1))
    return g.add("Div", inside, g.add("Max", area, g.constant(1)))


def _output(g, layout, box, score, count, copies):
    low, high = _corners(g, box)
    centre = g.add("Mul", g.add("Add", low, high), g.constant(0.5))
    size = g.add("Sub", high, low)
    if copies == 2:
        centre = g.add("Concat", centre, centre, axis=1)
        size = g.add("Concat", size, g.add("Mul", size, g.constant(0.9)), axis=1)
        score = g.add("Concat", score, g.add("Mul", score, g.constant(0.8)), axis=1)
    classes = np.tile(np.eye(3), (count * copies // 3, 1))[None]
    if layout == "v8":
        scores = g.add("Mul", score, g.constant(classes))
        return g.add("Transpose", g.add("Concat", centre, size, scores, axis=-1), perm=[0, 2, 1])
    if layout == "v5":
        scores = g.add("Add", g.add("Mul", score, g.constant(0)), g.constant(0.9 * classes))
        return g.add("Concat", centre, size, score, scores, axis=-1)
    half = g.add("Mul", size, g.constant(0.5))
    numbers = g.add("Add", g.add("Mul", score, g.constant(0)), g.constant(classes.argmax(-1)[..., None]))
    return g.add("Concat", g.add("Sub", centre, half), g.add("Add", centre, half), score, numbers, axis=-1)
