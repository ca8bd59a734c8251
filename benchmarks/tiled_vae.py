"""Peak memory, time and exactness of tiled encoding and decoding, with the embedded autoencoder.

``whole``: one pass; ``exact``: our tiles, the whole pass to rounding; ``blended``: diffusers' own tiles, each with
norms of its own, cross-faded. Every case runs in a process of its own, whose resident set before the pass is
subtracted from its peak. ``difference`` compares with the whole pass on a mosaic of embedded pictures: relative
root mean square of the latents' mean, of the decoded picture, and the largest difference in steps of 1/255.

    python benchmarks/tiled_vae.py [--quick]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowgrain.data.images import is_picture, to_tensor
from flowgrain.demo.domains import load_domain
from flowgrain.families import tiled_autoencoder
from flowgrain.families.autoencoder import VaeTiling, pass_bytes, set_tiling
from flowgrain.families.base import Posterior
from flowgrain.families.registry import load_family

MIB = 2**20
MODES: dict[str, VaeTiling] = {"exact": "exact", "whole": "off", "blended": "blended"}


def picture(side: int) -> Tensor:
    """A square mosaic of embedded pictures, (1, 3, side, side) in [-1, 1]."""
    files = [path for path in sorted(load_domain("fluent3d").train.iterdir()) if is_picture(path.name)]
    each = 256
    mosaic = Image.new("RGB", (side, side))
    for number in range((side // each) ** 2):
        row, column = divmod(number, side // each)
        with Image.open(files[number % len(files)]) as image:
            mosaic.paste(image.convert("RGB").resize((each, each)), (column * each, row * each))
    return to_tensor(mosaic)[None]


def family(mode: str) -> Any:
    """The embedded FLUX model, its autoencoder set."""
    loaded = load_family("tiny-flux", None, torch.float32, torch.device("cpu"))
    set_tiling(loaded.encoders()["vae"], MODES[mode], "tiny-flux")
    return loaded


def one_case(mode: str, what: str, side: int) -> None:
    """Print seconds and peak bytes of one pass; runs in a process of its own."""
    model = family(mode)
    cells = side // model.capabilities.latent_scale
    generator = torch.Generator().manual_seed(0)
    channels = 3 if what == "encode" else model.capabilities.latent_channels
    size = side if what == "encode" else cells
    value = torch.rand(1, channels, size, size, generator=generator) * 2 - 1
    before = resident()
    started = time.perf_counter()
    if what == "encode":
        model.encode_pixels(value)
    else:
        model.decode(value)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"mib": round((peak - before) / MIB), "seconds": round(seconds, 1)}))


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def differences(side: int) -> dict[str, dict[str, float]]:
    """Of exact and blended tiles from the whole pass, with tiles small enough that there are many."""
    tiled_autoencoder.TILE = 128
    pixels, model = picture(side), family("whole")
    whole = model.encode_pixels(pixels)
    latents = model.latents(Posterior(whole.mean, torch.full_like(whole.logvar, -60.0)), torch.zeros_like(whole.mean))
    decoded = model.decode(latents)
    found = {}
    for mode in ("exact", "blended"):
        model = family(mode)
        mean, drawn = model.encode_pixels(pixels).mean, model.decode(latents)
        found[mode] = {
            "latent": relative(mean, whole.mean),
            "picture": relative(drawn, decoded),
            "largest_255": round(float((drawn.clamp(-1, 1) - decoded.clamp(-1, 1)).abs().max()) * 127.5, 4),
        }
    return found


def relative(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference over that of ``other``."""
    return float(f"{float((one - other).square().mean().sqrt() / other.square().mean().sqrt()):.2e}")


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Memory, time and exactness of tiled autoencoder passes.")
    parser.add_argument("--quick", action="store_true", help="1024 px alone")
    parser.add_argument("--case", nargs=3, metavar=("MODE", "WHAT", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        one_case(options.case[0], options.case[1], int(options.case[2]))
        return
    sides = (1024,) if options.quick else (2048, 4096)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    vae = family("whole").encoders()["vae"]
    for side in sides:
        for what in ("encode", "decode"):
            for mode in MODES:
                ended = subprocess.run(
                    [sys.executable, __file__, "--case", mode, what, str(side)],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                case = json.loads(ended.stdout) if ended.returncode == 0 else {"failed": ended.returncode}
                set_tiling(vae, MODES[mode], "tiny-flux")
                expected = pass_bytes(vae, side, side, 8)
                if expected is not None and mode != "blended":
                    case["forecast_mib"] = round((expected.encode if what == "encode" else expected.decode) / MIB)
                results.setdefault(str(side), {}).setdefault(what, {})[mode] = case
                print(f"{side:5d} {what} {mode:8s} {case}", flush=True)
    found = differences(512 if options.quick else 1024)
    for mode, values in found.items():
        print(f"difference {mode:8s} {values}")
    print(json.dumps({"benchmark": "tiled_vae", "model": "tiny-flux", "peak": results, "difference": found}))


if __name__ == "__main__":
    main()
