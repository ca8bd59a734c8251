"""One forward and backward pass of the largest micro-batch before update one: does it fit, and how long will it take?

Nothing of the run changes: parameters, gradients, moving average, optimizer and random states are what they were.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from flowgrain import rng
from flowgrain.data.records import MicroBatch, Update
from flowgrain.errors import ConfigError
from flowgrain.train.memory_forecast import MemoryModel, Shape, largest_micro_batch, readable, shape_of
from flowgrain.train.setup import Session

_CPU_OUT_OF_MEMORY = "can't allocate memory"
"""In the RuntimeError that torch's CPU allocator raises."""

_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class TrialReport:
    """What the largest micro-batch took, and what the run may take at that speed."""

    shape: Shape
    seconds: float
    """Of the second pass; the first one warms up kernels, caches and compiled blocks."""
    warm_up_seconds: float
    memory: int
    """Bytes: the device's peak with weights and all (CUDA), or what the process grew by (CPU)."""
    device: str
    epoch_seconds: float
    run_seconds: float
    """Of training alone, as in the budget: no caching, validation, previews or saving."""

    def line(self) -> str:
        """One line for people."""
        kind = "growth of the process" if self.device == "cpu" else "peak on the device"
        return (
            f"trial: micro-batch of {self.shape} took {self.seconds:.2f} s and {readable(self.memory)} ({kind}); "
            f"at this speed an epoch takes about {_duration(self.epoch_seconds)}, the run {_duration(self.run_seconds)}"
        )


def trial_update(session: Session) -> TrialReport:
    """Run the largest micro-batch of the first epoch forward and backward, twice, without any lasting change.

    The time of the run follows from pixels: a smaller slice is taken to cost its share. Raises ConfigError naming the
    micro-batch and the settings that would save most where it does not fit in memory.
    """
    plan = session.plan(0)
    micro = largest_micro_batch(session.dataset, plan)
    shape = shape_of(session.dataset, micro)
    try:
        with _unchanged(session), _MemoryMeter(session.device) as meter:
            warm_up = _pass_seconds(session, micro)
            seconds = _pass_seconds(session, micro)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_OUT_OF_MEMORY not in str(error):
            raise
        raise ConfigError(_does_not_fit(session, shape)) from None
    epoch = seconds * _pixels(session, plan) / (shape.slices * shape.height * shape.width)
    run = _run_seconds(session, plan, epoch)
    return TrialReport(shape, seconds, warm_up, meter.peak, session.device.type, epoch, run)


def _pass_seconds(session: Session, micro: MicroBatch) -> float:
    started = time.perf_counter()
    batch = session.builder.build(micro, 0)
    with rng.seeded(session.recipe.seed, 0, 0, "dropout"):
        with session.autocast():
            losses = session.objective.per_sample(batch)
        (batch.weight.to(losses.total.dtype) * losses.total).sum().backward()
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)
    return time.perf_counter() - started


@contextmanager
def _unchanged(session: Session) -> Iterator[None]:
    """Put gradients and torch's random states back after the block."""
    parameters = [parameter for _, parameter in session.objective.parameters()]
    kept = [parameter.grad for parameter in parameters]
    devices = [session.device] if session.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            for parameter in parameters:
                parameter.grad = None
            yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _pixels(session: Session, plan: list[Update]) -> int:
    shapes = [shape_of(session.dataset, micro) for update in plan for micro in update.micro_batches]
    return sum(shape.slices * shape.height * shape.width for shape in shapes)


def _run_seconds(session: Session, plan: list[Update], epoch_seconds: float) -> float:
    budget = session.recipe.budget
    total = budget.amount * budget.checkpoints[-1]
    if budget.unit == "seconds":
        return total
    per_epoch = len(plan) if budget.unit == "updates" else sum(update.slices for update in plan)
    return total / per_epoch * epoch_seconds


def _does_not_fit(session: Session, shape: Shape) -> str:
    forecast = MemoryModel(session.recipe, session.device, session.precision).forecast(shape)
    best = ", ".join(f"{setting} (saves about {readable(size)})" for setting, size in forecast.switches[:3])
    return (
        f"out of memory: a micro-batch of {shape.slices} slices in bucket {shape.width}x{shape.height} does not fit on "
        f"{session.device}; it needs about {readable(forecast.total)}. Try {best or 'smaller buckets'}"
    )


class _MemoryMeter:
    """Peak memory of a block: the allocator's on CUDA, the growth of the resident set elsewhere, sampled."""

    def __init__(self, device: torch.device):
        self._device = device
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak = 0

    def __enter__(self) -> "_MemoryMeter":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._before = self._process.memory_info().rss
            self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss - self._before)
            if self._done.wait(_SAMPLE_SECONDS):
                return


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
