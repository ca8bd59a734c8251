"""Rebuild the embedded face detector: MediaPipe's BlazeFace short range from its published wheel, as safetensors.

Needs ai-edge-litert, which reads the TFLite file once. Example:

    python scripts/build_people.py --wheel mediapipe-0.10.14-....whl --out src/flowgrain/assets/people

The wheel comes from ``pip download --no-deps mediapipe==0.10.14`` (any platform holds the same file).
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from flowgrain.files import atomic_write_bytes, atomic_write_text
from flowgrain.slices.detectors.blazeface import BlazeFace

MEMBER = "mediapipe/modules/face_detection/face_detection_short_range.tflite"
SHA256 = "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"
NOTICE = """blazeface.safetensors: the face detector BlazeFace (short range) of MediaPipe.
Author: The MediaPipe Authors (Google LLC), https://github.com/google-ai-edge/mediapipe
Licence: Apache-2.0, the licence of flowgrain too (its text is in the file LICENSE)
Taken from: PyPI package mediapipe 0.10.14, {member}
SHA-256 of that file: {sha256}
Changed: the float16 weights copied without loss from TFLite to safetensors, axes in PyTorch's order
(scripts/build_people.py).
"""


def read_tensors(model: bytes) -> dict[str, np.ndarray]:
    """Every constant of a TFLite model by its name."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    names = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details()}
    return {name: interpreter.get_tensor(index) for name, index in names.items() if name.endswith(("Kernel", "Bias"))}


def converted(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state of :class:`BlazeFace`, float16. TFLite keeps kernels as (out, h, w, in), depthwise (1, h, w, out)."""

    def pair(target: str, source: str, axes: tuple[int, ...] = (0, 3, 1, 2)) -> None:
        state[f"{target}.weight"] = torch.from_numpy(tensors[f"{source}/Kernel"].transpose(axes).copy())
        state[f"{target}.bias"] = torch.from_numpy(tensors[f"{source}/Bias"].copy())

    state: dict[str, torch.Tensor] = {}
    pair("stem", "conv2d")
    for index in range(16):
        pair(f"blocks.{index}.depthwise", f"depthwise_conv2d{f'_{index}' if index else ''}", (3, 0, 1, 2))
        pair(f"blocks.{index}.pointwise", f"conv2d_{index + 1}")
    for index, stride in enumerate((8, 16)):
        pair(f"scores.{index}", f"classificator_{stride}")
        pair(f"places.{index}", f"regressor_{stride}")
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="wheel of mediapipe 0.10.14")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        model = wheel.read(MEMBER)
    digest = hashlib.sha256(model).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{arguments.wheel}: {MEMBER} has sha256 {digest}, expected {SHA256}")
    state = converted(read_tensors(model))
    BlazeFace().load_state_dict(state)
    metadata = {"format": "pt", "source": f"mediapipe 0.10.14 {MEMBER}", "sha256": SHA256, "licence": "Apache-2.0"}
    atomic_write_bytes(arguments.out / "blazeface.safetensors", save(state, metadata))
    atomic_write_text(arguments.out / "NOTICE.txt", NOTICE.format(member=MEMBER, sha256=SHA256))
    print(f"{sum(tensor.numel() for tensor in state.values())} weights -> {arguments.out / 'blazeface.safetensors'}")


if __name__ == "__main__":
    main()
