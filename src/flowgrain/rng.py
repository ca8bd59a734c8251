"""Randomness from identity, not from order.

Every random quantity of a slice (noise, u, posterior sample, flip, caption dropout) comes from a CPU generator
seeded by (run seed, epoch, identity, purpose). Micro-batch size, workers, processes and resuming therefore do
not change what is computed.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_SEPARATOR = b"\x1f"


def stable_seed(*identity: int | str) -> int:
    """A 63-bit seed that depends on the parts of ``identity`` alone, the same on every machine and Python."""
    parts = (f"{type(part).__name__}:{part}".encode() for part in identity)
    digest = hashlib.blake2b(_SEPARATOR.join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*identity: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`stable_seed`."""
    return torch.Generator(device="cpu").manual_seed(stable_seed(*identity))


def normal(shape: tuple[int, ...], *identity: int | str) -> Tensor:
    """Standard normal float32 values of ``shape``, drawn from the identity's own generator."""
    return torch.randn(shape, generator=generator(*identity), dtype=torch.float32)


def uniform(*identity: int | str) -> float:
    """One number, uniform in the open interval (0, 1), in float64."""
    value = torch.rand((), generator=generator(*identity), dtype=torch.float64).item()
    return min(max(value, 1e-12), 1.0 - 1e-12)


def numpy_generator(*identity: int | str) -> np.random.Generator:
    """A NumPy generator (PCG64) seeded by :func:`stable_seed`, for permutations."""
    return np.random.default_rng(stable_seed(*identity))


@contextmanager
def seeded(*identity: int | str) -> Iterator[None]:
    """Run a block under torch's global CPU generator seeded by ``identity``, then restore it.

    For third-party code that draws from the global generator (adapter initialisation in peft).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(*identity))
        yield
