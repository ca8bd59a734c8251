"""The processes of a run: who they are, and the few things that they must agree on.

Every process computes its share of an update's micro-batches; the weights of the whole update are already in them, so
the gradient of the update is the plain *sum* over processes. Trainable parameters are replicated and small (an
adapter), hence one flat all-reduce an update, after the last micro-batch, replaces a wrapper around the model.
:mod:`flowgrain.train.distributed` makes a Runtime of what a launcher started.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from flowgrain.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """This process among the ``world`` processes of a run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Place among the processes of this machine: the index of its CUDA device."""
    sharded: bool = False
    """Whether the frozen weights are in shards (FSDP2): all processes must then make the same forward passes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and draws progress."""
        return self.rank == 0

    def sum_gradients(self, parameters: list[tuple[str, nn.Parameter]]) -> None:
        """Replace every gradient by its sum over processes.

        A process without a gradient adds zero; a parameter that has none anywhere keeps none, as in one process.
        """
        if self.world == 1:
            return
        present = [0.0 if parameter.grad is None else 1.0 for _, parameter in parameters]
        for _, parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for _, parameter in parameters if parameter.grad is not None]
        # who has a gradient travels in the same message
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), gradients[0].new_tensor(present)])
        dist.all_reduce(flat)
        *sums, present_anywhere = flat.split([*(g.numel() for g in gradients), len(present)])
        for gradient, part in zip(gradients, sums, strict=True):
            gradient.copy_(part.view_as(gradient))
        for (_, parameter), count in zip(parameters, present_anywhere.tolist(), strict=True):
            if count == 0:
                parameter.grad = None

    def maximum(self, *values: float) -> list[float]:
        """The largest of each value over processes: what one of them saw, all act on."""
        if self.world == 1:
            return list(values)
        return [max(column) for column in zip(*self.gather(values), strict=True)]

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; values are pickled and should be small."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def require_equal(self, facts: Mapping[str, str]) -> None:
        """Raise ConfigError, in all processes, where one of them has another value of a named fact than the main one.

        Processes that trained on other data or from another checkpoint would spoil the run without a word.
        """
        everywhere = self.gather(dict(facts))
        for name, expected in everywhere[0].items():
            other = [(rank, own[name]) for rank, own in enumerate(everywhere) if own[name] != expected]
            if other:
                rank, value = other[0]
                raise ConfigError(
                    f"the {name} differs between processes: {expected} in process 0, {value} in process {rank}; all "
                    "machines must see the same files and run the same versions"
                )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run a block in the main process, then in the others, which find on disk what it has written."""
        if self.world > 1 and not self.is_main:
            dist.barrier()
        yield
        if self.world > 1 and self.is_main:
            dist.barrier()


ALONE = Runtime()
