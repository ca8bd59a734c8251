"""Saving and loading autoencoders with deeper compression, so that ordinary diffusers loads them.

diffusers' configuration has no stride. Two layouts of the same model:

``native`` (the default): an ordinary AutoencoderKL with n more blocks at both ends whose layers are the identity.
Encoder: convolution at stride 1, residual blocks that add nothing, a downsampling kernel that takes the pixel (2i, 2j),
which is the strided convolution exactly. Decoder: nearest upsampling with a kernel that is the identity, residual
blocks that add nothing, then GroupNorm, SiLU and the last convolution; norm and SiLU commute with nearest upsampling,
so this is the deeper decoder to rounding. ``AutoencoderKL.from_pretrained`` and every pipeline load it and see the
right compression in ``block_out_channels``. The added blocks cost: FLUX's autoencoder takes 1.8 TFLOP there and back
for 512 px, 0.9 in the strided form, 3.6 as it is.

``strided``: weights and configuration of the shallow layers, for :func:`load_deeper_vae` alone. The weights' file has a
name of its own, because diffusers would read the folder as the shallow model without a word. ``legacy_shift`` exists
only here: a 3x3 convolution cannot look two pixels up.

Both carry ``_flowgrain_deeper`` in their config.json, which diffusers ignores; by it :func:`load_deeper_vae` folds
a native folder back into the strided form. Folders of the released SC-VAE code (Diffusion-4K), whose config.json says
``stride``, load too, with the shift that their decoder was trained with; diffusers reads them as the shallow model.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.loading import quiet_libraries
from flowgrain.files import atomic_directory, atomic_write_text
from flowgrain.pretrained.weights import LOAD_ERRORS, load_exactly, one_line, read_json, read_tensors
from flowgrain.vae.deeper import Depth, deepen, depth_of, shallow_copy

Layout = Literal["native", "strided"]
KEY = "_flowgrain_deeper"
RELEASED_KEY = "stride"
"""Of SC-VAE's own AutoencoderKL."""
STRIDED_FILE = "strided_autoencoder.safetensors"
CONFIG_FILE = "config.json"


def save_vae(vae: AutoencoderKL, folder: Path, layout: Layout = "native") -> None:
    """Write ``folder`` whole or not at all; a model without deeper compression is saved as diffusers does it.

    Raises :class:`ConfigError` for ``native`` with ``legacy_shift``, which it cannot express.
    """
    depth = depth_of(vae)
    if layout == "native" and depth.legacy_shift:
        raise ConfigError(
            "legacy_shift cannot be written in diffusers' own form (layout native): take layout strided, which "
            "flowgrain alone loads, or train without the shift"
        )
    with atomic_directory(folder) as target:
        if depth.doublings == 0 or layout == "native":
            (native_form(vae) if depth.doublings else vae).save_pretrained(target)
        else:
            vae.save_config(target)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
            save_file(tensors, target / STRIDED_FILE, metadata={"format": "pt"})
        if depth.doublings:
            note = {"layout": layout, "doublings": depth.doublings, "legacy_shift": depth.legacy_shift}
            config = read_json(target / CONFIG_FILE)
            for name in ("_name_or_path", RELEASED_KEY):  # where it came from, and what the note says now
                config.pop(name, None)
            config[KEY] = note
            atomic_write_text(target / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_deeper_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The autoencoder of a folder in either layout, or a plain one; deeper compression comes back as stride.

    A native folder whose added blocks were trained further is loaded as the ordinary model that it then is. Raises
    :class:`ModelError` for a folder that cannot be read or lacks weights.
    """
    config = read_json(folder / CONFIG_FILE)
    layout, depth = _read_note(config, folder)
    if depth.doublings and layout == "strided":
        vae = _built(config, folder)
        load_exactly(vae, read_tensors(folder / STRIDED_FILE), str(folder / STRIDED_FILE))
        return deepen(_like(vae, dtype), depth.doublings, depth.legacy_shift)
    loaded = _like(_from_diffusers(folder), dtype)
    if layout == "released":
        return deepen(loaded, depth.doublings, depth.legacy_shift)
    return (folded(loaded, depth.doublings) or loaded) if depth.doublings else loaded


def native_form(vae: AutoencoderKL) -> AutoencoderKL:
    """The same model with identity blocks instead of strides: see the module's text. Frozen, in evaluation mode."""
    extra = depth_of(vae).doublings
    shallow = shallow_copy(vae)
    config = dict(shallow.config)
    first = config["block_out_channels"][0]
    config["block_out_channels"] = (first,) * extra + tuple(config["block_out_channels"])
    config["down_block_types"] = ("DownEncoderBlock2D",) * extra + tuple(config["down_block_types"])
    config["up_block_types"] = tuple(config["up_block_types"]) + ("UpDecoderBlock2D",) * extra
    native = _like(_built(config, None), shallow.dtype, shallow.device)
    own = {_native_name(name, extra): tensor for name, tensor in shallow.state_dict().items()}
    added = native.state_dict().keys() - own.keys()
    identity = {name: _identity(name, native.state_dict()[name]) for name in added}
    load_exactly(native, {**own, **identity}, "native form")
    return native.eval().requires_grad_(False)


def folded(native: AutoencoderKL, extra: int) -> AutoencoderKL | None:
    """The strided form of a native one with ``extra`` added blocks, None where those are not the identity any more."""
    config = dict(native.config)
    if len(config["block_out_channels"]) <= extra:
        return None
    config["block_out_channels"] = tuple(config["block_out_channels"])[extra:]
    config["down_block_types"] = tuple(config["down_block_types"])[extra:]
    config["up_block_types"] = tuple(config["up_block_types"])[:-extra]
    shallow = _like(_built(config, None), native.dtype, native.device)
    state = native.state_dict()
    own = {name: state.pop(_native_name(name, extra)) for name in shallow.state_dict()}
    if not all(torch.equal(tensor, _identity(name, tensor)) for name, tensor in state.items()):
        return None
    load_exactly(shallow, own, "native form")
    return deepen(shallow, extra)


def _native_name(name: str, extra: int) -> str:
    """A shallow model's parameter in the native one: the encoder's blocks move back, the decoder's stay."""
    prefix = "encoder.down_blocks."
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{int(number) + extra}.{rest}"


def _identity(name: str, like: Tensor) -> Tensor:
    """A parameter of an added block: residual parts give 0, down- and upsampling kernels copy one pixel."""
    value = torch.zeros_like(like)
    if name.endswith("samplers.0.conv.weight"):
        # diffusers pads right and below before downsampling: the window's first corner is the pixel (2i, 2j)
        row = 0 if ".downsamplers." in name else 1
        channels = torch.arange(like.shape[0], device=like.device)
        value[channels, channels, row, row] = 1
    elif ".norm" in name and name.endswith("weight"):
        value.fill_(1)
    return value


def _read_note(config: dict[str, Any], folder: Path) -> tuple[str, Depth]:
    note, stride = config.get(KEY), config.get(RELEASED_KEY, 1)
    if note is None and stride == 1:
        return "native", Depth()
    if note is None and stride == 2:
        return "released", Depth(1, legacy_shift=True)
    try:
        if note is None or note["layout"] not in ("native", "strided"):
            raise ValueError(f"{RELEASED_KEY} {stride}" if note is None else f"layout {note['layout']}")
        return note["layout"], Depth(int(note["doublings"]), bool(note["legacy_shift"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: deeper compression cannot be read ({error}); restore it") from None


def _like(vae: AutoencoderKL, dtype: torch.dtype, device: torch.device | None = None) -> AutoencoderKL:
    nn.Module.to(vae, device=device, dtype=dtype)
    return vae


def _built(config: dict[str, Any], folder: Path | None) -> AutoencoderKL:
    public = {name: value for name, value in config.items() if not name.startswith("_") and name != RELEASED_KEY}
    try:
        with quiet_libraries():
            built: Any = AutoencoderKL.from_config(public)
    except LOAD_ERRORS as error:
        raise ModelError(f"{folder}: no AutoencoderKL can be made of its configuration ({one_line(error)})") from None
    return built.eval()


def _from_diffusers(folder: Path) -> AutoencoderKL:
    kind: Any = AutoencoderKL
    try:
        with quiet_libraries():
            loaded, info = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    except LOAD_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded as an AutoencoderKL ({one_line(error)}); restore it") from None
    if info["missing_keys"]:
        raise ModelError(f"{folder}: {len(info['missing_keys'])} weights are missing; restore it")
    return loaded
