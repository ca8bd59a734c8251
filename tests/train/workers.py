"""Run functions in several real processes, and the functions that the tests of several processes run there."""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from flowgrain.align.base import Term
from flowgrain.cli.processes import Spokesman
from flowgrain.data.tuples import shard
from flowgrain.errors import DataError, NonFiniteError
from flowgrain.families.registry import load_family
from flowgrain.train import lifeline
from flowgrain.train.distributed import launched
from flowgrain.train.loop import Observer, train
from flowgrain.train.setup import prepare
from flowgrain.train.step import accumulate, run_update

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What ``accelerate launch --use_fsdp --fsdp_version 2`` sets."""

# one server imports everything once; its forks start at once, from a process in which no computation ever ran
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["flowgrain.train.loop", "flowgrain.cli.main", "diffusers"])


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    exit_code: int
    value: Any
    output: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(folder, world, function, *arguments, environment=None, limit=120) -> list[Ended]:
    """``function(*arguments)`` in ``world`` processes with a launcher's environment; results by rank."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(world):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, **(environment or {})}
        target = (function, arguments, {k: str(v) for k, v in variables.items()}, folder / f"rank{rank}")
        processes.append(_CONTEXT.Process(target=_enter, args=target))
        processes[-1].start()
    deadline = time.monotonic() + limit
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    outputs = [(folder / f"rank{rank}.log").read_text() for rank in range(world)]
    assert not alive, f"{len(alive)} of {world} processes still ran after {limit} s: {outputs}"
    values = [folder / f"rank{rank}.pt" for rank in range(world)]
    return [
        Ended(process.exitcode, torch.load(value, weights_only=False) if value.exists() else None, output)
        for process, value, output in zip(processes, values, outputs, strict=True)
    ]


def _enter(function, arguments, variables, place):
    os.environ.update(variables)
    log = os.open(f"{place}.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    Path(f"{place}.pt").unlink(missing_ok=True)
    torch.set_num_threads(1)
    torch.save(function(*arguments), f"{place}.pt")


def prepare_double(recipe, runtime):
    """A session in float64, so that a difference is one of mathematics and not of rounding."""

    def load_double(*arguments):
        family = load_family(*arguments)
        family.components()["transformer"].double()
        return family

    with mock.patch("flowgrain.train.setup.load_family", load_double):
        session = prepare(recipe, lambda what, done, total: None, runtime)
    # an untrained adapter has B = 0 and hence no gradient in A: start from a point where all parameters matter
    for i, (_, parameter) in enumerate(session.objective.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        parameter.data = parameter.data.double().add_(0.02 * noise)
    return session


def gradient(session, update):
    """(slices of this process that count, gradient of the whole update) of one planned update."""
    parameters = session.objective.parameters()
    for _, parameter in parameters:
        parameter.grad = None
    own = shard(update, session.runtime.rank, session.runtime.world)
    batches = (session.builder.build(micro, 0) for micro in own.micro_batches)
    accumulate(session.objective, batches, session.autocast, session.runtime)
    session.runtime.sum_gradients(parameters)
    share = sum(int((micro.weights != 0).sum()) for micro in own.micro_batches)
    return share, torch.cat([parameter.grad.flatten() for _, parameter in parameters])


def gradients(recipes):
    """Of each recipe: this process's slices of its smallest update (batch 1) or its largest, gradient, validation."""
    results = []
    with launched(Spokesman().report) as runtime:
        for recipe in recipes:
            session = prepare_double(recipe, runtime)
            plan = sorted(session.plan(0), key=lambda update: update.slices)
            share, value = gradient(session, plan[0] if recipe.tuples.batch_size == 1 else plan[-1])
            results.append((share, value, session.validator and session.validator.measure(session.autocast)))
    return results


class Poison(Term):
    """A term that is not a number in one process."""

    name = "poison"
    weight = 1.0

    def __init__(self, active):
        self.active = active

    def __call__(self, context):
        value = context.output.prediction.float().square().flatten(1).mean(dim=1)
        return value * float("nan") if self.active else value


def non_finite_in_the_last_rank(recipe):
    """The error of this process, and whether its parameters are as before."""
    with launched(Spokesman().report) as runtime:
        session = prepare(recipe, lambda what, done, total: None, runtime)
        objective = replace(session.objective, terms=(Poison(runtime.rank == runtime.world - 1),))
        before = [parameter.detach().clone() for _, parameter in objective.parameters()]
        own = shard(session.plan(0)[0], runtime.rank, runtime.world)
        batches = (session.builder.build(micro, 0) for micro in own.micro_batches)
        try:
            run_update(objective, batches, session.optimizer, 1.0, session.autocast, runtime)
        except NonFiniteError as error:
            after = [parameter for _, parameter in objective.parameters()]
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            return str(error), same and all(parameter.grad is None for parameter in after)
    return None


class Signals(Observer):
    """Sends this process a signal after an update, where its rank is ``rank``."""

    def __init__(self, number, update):
        self.number, self.update = number, update

    def updated(self, progress, part, result):
        if progress.updates == self.update:
            os.kill(os.getpid(), self.number)


def whole_run(recipe, resume=False, stop=None, rank=None, number=signal.SIGTERM):
    """A run as the command line does it; ``number`` reaches process ``rank`` after update ``stop``."""
    spokesman = Spokesman()
    spokesman.run = recipe.output
    with launched(spokesman.report) as runtime:
        observer = Signals(number, stop) if runtime.rank == rank else Observer()
        outcome = train(recipe, resume, observer, runtime)
    return outcome


def one_fails():
    """The last process meets an error of its own while the others wait for it."""
    with launched(Spokesman().report) as runtime:
        if runtime.rank == runtime.world - 1:
            raise DataError("fox.png: cannot be read")
        runtime.gather(0)


def all_fail():
    """Every process meets the same error."""
    with launched(Spokesman().report):
        raise DataError("fox.png: cannot be read")


def one_is_killed(rank, waiting):
    """Process ``rank`` is killed while the others meet in an operation, or (``waiting``) do something long alone."""
    lifeline.GRACE_SECONDS = 0.5
    with launched(Spokesman().report) as runtime:
        if runtime.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        if waiting:
            time.sleep(60)
        runtime.gather(0)


def differing_facts():
    """Each process believes something else."""
    with launched(Spokesman().report) as runtime:
        runtime.require_equal({"recipe": "same", "data set": f"data {runtime.rank}"})


def summed_gradients():
    """Gradients that no process, one process, or all have."""
    with launched(Spokesman().report) as runtime:
        names = ("none", "one", "all")
        parameters = [(name, torch.nn.Parameter(torch.zeros(2, 3))) for name in names]
        if runtime.rank == 0:
            parameters[1][1].grad = torch.ones(2, 3)
        parameters[2][1].grad = torch.full((2, 3), float(runtime.rank + 1))
        runtime.sum_gradients(parameters)
        return [parameter.grad for _, parameter in parameters], runtime.maximum(-1.0, float(runtime.rank))
