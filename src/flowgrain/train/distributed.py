"""The processes that ``accelerate launch`` or ``torchrun`` started: meet, work, and end together.

They end together whatever happens: an error of one process ends all and is printed once, a killed process ends the
others within seconds, and no process leaves before all are done. Object collectives and barriers run on the CPU
(gloo), tensors of a CUDA device go by NCCL.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from flowgrain.errors import ConfigError, FlowgrainError, ProcessLostError
from flowgrain.train.lifeline import Departure, Lifeline
from flowgrain.train.runtime import ALONE, Runtime

COLLECTIVE_TIMEOUT = timedelta(hours=24)
"""How long processes wait for one another: while one fills the caches, for hours. The lifeline sees dead ones."""

INTERRUPTED = 130

_WAIT_FOR_NEWS = 3.0
"""Seconds in which a broken connection is explained by a departure, or another process has printed its error."""


@dataclass(frozen=True)
class Launch:
    """What a launcher says of this process in its environment."""

    rank: int
    world: int
    local_rank: int
    environment: Mapping[str, str]

    @staticmethod
    def read(environment: Mapping[str, str]) -> "Launch":
        """The variables of ``torchrun``, which ``accelerate launch`` uses; one process where there are none."""
        rank, world, local = (int(environment.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Launch(rank, max(world, 1), local, environment)

    @property
    def sharded(self) -> bool:
        """Whether frozen weights are to be sharded with FSDP2."""
        return self.world > 1 and self._says("ACCELERATE_USE_FSDP")

    def check(self) -> None:
        """Raise ConfigError for a way of running that was asked for and would not happen."""
        env = self.environment
        if self._says("ACCELERATE_USE_DEEPSPEED"):
            raise ConfigError(
                "DeepSpeed is not supported: it partitions optimizer states and gradients, which an adapter hardly "
                "has; to shard the frozen weights use accelerate launch --use_fsdp --fsdp_version 2"
            )
        if self._says("ACCELERATE_USE_MEGATRON_LM") or self._says("ACCELERATE_USE_PARALLELISM_CONFIG"):
            raise ConfigError(
                "Megatron-LM and accelerate's parallelism config are not supported; use accelerate launch "
                "--multi_gpu, or --use_fsdp --fsdp_version 2"
            )
        if self._says("ACCELERATE_USE_FSDP"):
            if env.get("FSDP_VERSION", "1") != "2":
                raise ConfigError(
                    f"FSDP version {env.get('FSDP_VERSION', '1')} is not supported; use accelerate launch --use_fsdp "
                    "--fsdp_version 2"
                )
            if self._says("FSDP_OFFLOAD_PARAMS"):
                raise ConfigError("fsdp_offload_params is not supported; set it to false, or use memory.quantize")
            if self._says("FSDP_ACTIVATION_CHECKPOINTING"):
                raise ConfigError(
                    "fsdp_activation_checkpointing is not read; set it to false and memory.gradient_checkpointing=true "
                    "in the recipe"
                )
        if self.world == 1 and self._says("ACCELERATE_USE_CPU") and "MASTER_PORT" in env:
            raise ConfigError(
                "accelerate launch --cpu starts a single process, whatever --num_processes says; use accelerate "
                "launch --multi_gpu with device=cpu, or torchrun --nproc-per-node N -m flowgrain"
            )

    def _says(self, name: str) -> bool:
        return self.environment.get(name, "false").lower() == "true"


@contextmanager
def launched(speak: Callable[[FlowgrainError], None]) -> Iterator[Runtime]:
    """The Runtime of this process for the block; with one process alone nothing is started.

    With several, an error of the block is given to ``speak`` in one process and all exit with its code (SystemExit).
    Raises ConfigError for ways of running that are not supported.
    """
    launch = Launch.read(os.environ)
    if launch.world == 1:
        launch.check()
        yield ALONE
        return
    signal.signal(signal.SIGTERM, _terminate)
    company = _Company(launch, speak)
    try:
        launch.check()
        yield Runtime(launch.rank, launch.world, launch.local_rank, launch.sharded)
        dist.barrier()  # a launcher takes the first process that ends as a sign to stop the others
    except BaseException as error:
        exit_code = company.leave(error)
        if exit_code is None or (os.environ.get("FLOWGRAIN_DEBUG") and isinstance(error, FlowgrainError)):
            raise
        raise SystemExit(exit_code) from None
    company.part()


class _Company:
    """The connections among the processes of a run."""

    def __init__(self, launch: Launch, speak: Callable[[FlowgrainError], None]):
        self._launch = launch
        self._speak = speak
        # rank, world and the main process's address are in the environment; under torchrun its agent keeps the
        # store, which then outlives every process of the run
        self._store, rank, world = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        group_store = dist.PrefixStore("flowgrain/group", self._store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
        one_machine = launch.environment.get("LOCAL_WORLD_SIZE") == str(world)
        self._lifeline = Lifeline(rank, world, self._store, "127.0.0.1" if one_machine else "", self._end_now)

    def part(self) -> None:
        """Leave in good order."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._lifeline.close(exit_code=0)
        dist.destroy_process_group()

    def leave(self, error: BaseException) -> int | None:
        """Leave because of ``error``; the exit code, None for an error that nobody foresaw and must be seen."""
        # the launcher sends SIGTERM as soon as one process has ended: this one is ending already
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        exit_code = self._judge(error)
        self._lifeline.close(1 if exit_code is None else exit_code)
        return exit_code

    def _judge(self, error: BaseException) -> int | None:
        if isinstance(error, FlowgrainError):
            self._say(error, spokesman_without_store=self._launch.rank)
            return error.exit_code
        departure = self._lifeline.departure(_WAIT_FOR_NEWS)
        if departure is not None:
            return self._mourn(departure)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else None

    def _mourn(self, departure: Departure) -> int:
        """Say that a process was lost, unless it has spoken itself; the exit code."""
        if departure.exit_code is not None:
            return departure.exit_code
        lost = ProcessLostError(f"process {departure.rank} of {self._launch.world} was killed or crashed")
        self._say(lost, spokesman_without_store=1 if departure.rank == 0 else 0)
        return lost.exit_code

    def _say(self, error: FlowgrainError, spokesman_without_store: int) -> None:
        """Speak in the first process that comes here; the others return when that one has spoken."""
        try:
            if self._store.add("flowgrain/speakers", 1) == 1:
                self._speak(error)
                self._store.set("flowgrain/spoken", "")
            else:
                self._store.wait(["flowgrain/spoken"], timedelta(seconds=_WAIT_FOR_NEWS))
        except RuntimeError:  # the store went down with the process that kept it, or with the launcher
            if self._launch.rank == spokesman_without_store:
                self._speak(error)

    def _end_now(self, departure: Departure) -> None:
        """End this process, which hangs in an operation that waits for the lost one."""
        os._exit(self._mourn(departure))


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM outside of the training loop, which has its own handler, ends a process as Ctrl-C does."""
    raise KeyboardInterrupt
