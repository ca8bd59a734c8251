"""Train one network with several single-threaded processes that update shared weights without waiting.

Each worker has its own batches and its own momentum. On a machine shared with other work this does several times more
than threads in lockstep; the price is that two runs are not bitwise alike.
"""

from __future__ import annotations

import json
import multiprocessing
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .training import Average, Run, save_atomically

BATCH = 32
WORKERS = 2
AVERAGE_DECAY = 0.999


@dataclass(frozen=True)
class Objective(ABC):
    """What a stage optimises; only the work folder travels to the workers, each loads the rest itself."""

    work: Path

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def seed(self) -> int: ...

    @property
    @abstractmethod
    def learning_rate(self) -> float: ...

    @abstractmethod
    def build(self) -> nn.Module: ...

    @abstractmethod
    def start(self) -> nn.Module: ...

    @abstractmethod
    def solvers(self, model: nn.Module) -> list[torch.optim.Optimizer]: ...

    @abstractmethod
    def rate(self, progress: float, step: int) -> float: ...

    @abstractmethod
    def loss(self, model: nn.Module, number: int) -> Tensor: ...

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]: ...


@dataclass(frozen=True)
class _Shared:
    """The weights, how many steps each worker has done, and the sign to stop."""

    model: nn.Module
    steps: Tensor
    stop: Tensor


def train(objective: Objective, seconds: float) -> None:
    """Train for ``seconds`` of work; resumable; ends with ``final.pt`` (averaged weights) and ``report.json``."""
    target = objective.work / objective.name
    run = Run(target / "checkpoint.pt", seconds)
    if (target / "final.pt").exists() and run.done:
        print(f"{objective.name} is trained", flush=True)
        return
    torch.manual_seed(objective.seed)
    model = objective.start()
    steps, stop = torch.zeros(WORKERS, dtype=torch.long), torch.zeros(1)
    shared = _Shared(model.share_memory(), steps.share_memory_(), stop.share_memory_())
    if run.state:
        model.load_state_dict(run.state["model"])
        shared.steps.copy_(run.state["steps"])
    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=_work, args=(rank, shared, objective, seconds)) for rank in range(WORKERS)]
    for worker in crew:
        worker.start()
    for worker in crew:
        worker.join()
    if any(worker.exitcode for worker in crew):
        raise SystemExit(f"a worker of {objective.name} failed; see above")


def _work(rank: int, shared: _Shared, objective: Objective, seconds: float) -> None:
    """One worker's loop; the first also keeps the clock, the average and the checkpoints."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    target, model, leads = objective.work / objective.name, shared.model, rank == 0
    run, memory = Run(target / "checkpoint.pt", seconds), target / f"momentum-{rank}.pt"
    solvers = objective.solvers(model)
    if run.state and memory.exists():
        for solver, state in zip(solvers, torch.load(memory, weights_only=True), strict=True):
            solver.load_state_dict(state)
    average = Average(model, AVERAGE_DECAY)
    if run.state:
        average.values, average.updates = run.state["average"], int(shared.steps[0])
    while not shared.stop.item():
        progress, step = run.tick(), int(shared.steps[rank])
        _update(objective, model, solvers, WORKERS * step + rank, objective.rate(progress, step))
        shared.steps[rank] += 1
        if leads:
            average.update(model)
            shared.stop.fill_(run.done)
        if run.due or shared.stop.item():
            save_atomically([solver.state_dict() for solver in solvers], memory)
            if leads:
                run.save(model=model.state_dict(), average=average.values, steps=shared.steps.clone())
                _report(objective, run, average, shared)
            else:
                run.mark_saved()
    if leads:
        report = _report(objective, run, average, shared)
        save_atomically({"weights": average.values, "samples": report["samples"]}, target / "final.pt")
        (target / "report.json").write_text(json.dumps(report, indent=1))


def _update(
    objective: Objective,
    model: nn.Module,
    solvers: list[torch.optim.Optimizer],
    number: int,
    rate: float,
) -> None:
    for solver in solvers:
        solver.zero_grad()
        for group in solver.param_groups:
            group["lr"] = objective.learning_rate * rate
    objective.loss(model, number).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for solver in solvers:
        solver.step()


def _report(objective: Objective, run: Run, average: Average, shared: _Shared) -> dict:
    model = objective.build()
    model.load_state_dict(average.values)
    steps = int(shared.steps.sum())
    loss = objective.validate(model)
    report = {"seconds": round(run.spent), "steps": steps, "samples": steps * BATCH, "validation": loss}
    print(json.dumps(report), flush=True)
    return report
