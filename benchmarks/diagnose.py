"""Time and memory of the data fields of `flowgrain diagnose` against the number of training slices.

An embedded model after one update, its data set replaced by made-up latents of 16 x 16 x 16 that are computed whenever
they are read: nothing but the measurement itself takes memory. For each number of slices: seconds, and the largest
resident memory so far (it never falls, hence sizes grow). It may grow by the latents' labels alone.

    python benchmarks/diagnose.py [--slices 1000 10000] [--queries 8] [--memory 64] [--arch flux|sdxl]
"""

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from flowgrain import rng
from flowgrain.config import load_config
from flowgrain.demo.domains import load_domain
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.fields import measure_interference
from flowgrain.diagnose.latents import LatentSpace
from flowgrain.diagnose.opened import OpenedRun, open_run
from flowgrain.geometry.queries import LatentSource
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_path
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe, find_recipe


class MadeUpLatents(LatentSource):
    """Latents of one shape from their numbers: a smooth part that a tenth of them share, and noise."""

    def __init__(self, samples: int, shape: tuple[int, ...]):
        self._samples, self._shape = samples, shape

    @property
    def shape(self) -> tuple[int, ...]:
        """See :attr:`LatentSource.shape`."""
        return self._shape

    def __len__(self) -> int:
        return self._samples

    def read(self, start: int, stop: int) -> Tensor:
        """See :meth:`LatentSource.read`."""
        rows = [
            0.6 * rng.normal(self._shape, n % 10, "shared") + 0.8 * rng.normal(self._shape, n, "own")
            for n in range(start, stop)
        ]
        return torch.stack(rows)


def short_run(folder: Path, arch: str, config: DiagnoseConfig) -> OpenedRun:
    """A run of one update on four pictures, opened."""
    domain = load_domain("openmoji")
    cutting, _ = load_config(DecomposeConfig, preset_path("tiny-128"), [])
    decompose(domain.train, folder / "slices", cutting, lambda _name, _done, _total: None)
    overrides = [f"data.path={folder / 'slices'}", "data.max_roots=4", f"output={folder / 'run'}"]
    overrides += ["budget.amount=1", "budget.unit=updates", "budget.checkpoints=[1.0]", "previews=null"]
    train(load_config(Recipe, find_recipe(f"tiny-{arch}-granularity"), overrides)[0], False, Observer())
    return open_run(folder / "run", config, [], folder / "cache", lambda _what, _done, _total: None)


def with_slices(opened: OpenedRun, samples: int) -> OpenedRun:
    """The run with ``samples`` made-up latents, which share its slices' levels and captions."""
    changed, slices = dataclasses.replace(opened), len(opened.train.dataset)
    shape = (opened.family.capabilities.latent_channels, 16, 16)
    index = tuple(n % slices for n in range(samples))
    space = LatentSpace(shape, index, (False,) * samples, MadeUpLatents(samples, shape))
    changed.__dict__["spaces"] = (space,)  # in place of what would be read from the data set
    return changed


def main() -> None:
    """Print one JSON line for each number of slices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--memory", type=int, default=64, help="MiB that fields and latents may take")
    parser.add_argument("--arch", choices=["flux", "sdxl"], default="flux")
    arguments = parser.parse_args()
    config = DiagnoseConfig(queries=arguments.queries, memory_mib=arguments.memory)
    with tempfile.TemporaryDirectory() as folder:
        opened = short_run(Path(folder), arguments.arch, config)
        for samples in sorted(arguments.slices):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.perf_counter()
            values = measure_interference(with_slices(opened, samples), config, lambda *_: None).as_json()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            line = {"slices": samples, "latents": values["latents"], "seconds": round(time.perf_counter() - started, 1)}
            print(json.dumps({**line, "peak_mib": peak // 1024, "grown_mib": (peak - before) // 1024}), flush=True)


if __name__ == "__main__":
    main()
