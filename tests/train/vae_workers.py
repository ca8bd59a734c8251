"""What the tests of autoencoders run in one process or several."""

import os
import signal
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from flowgrain.cli.processes import Spokesman
from flowgrain.data.tuples import shard
from flowgrain.train.distributed import launched
from flowgrain.train.loop import Observer
from flowgrain.train.runtime import ALONE
from flowgrain.train.state import complete_checkpoints
from flowgrain.train.vae_run import train_vae
from flowgrain.train.vae_setup import prepare_vae


@dataclass
class Gradient:
    """Of one update, before any step."""

    autoencoder: torch.Tensor
    discriminator: torch.Tensor
    loss: float
    weights: dict


def vae_gradient(recipe, runtime=ALONE):
    stage = prepare_vae(recipe, lambda *_: None, runtime)
    whole = stage.plan(0)[0]
    own = shard(whole, runtime.rank, runtime.world)
    batches = [stage._session.builder.build(micro, 0) for micro in own.micro_batches]
    total = float(sum(micro.weights.sum() for micro in whole.micro_batches))
    result = stage._update.gradients(batches, total, 0)
    players = stage._players
    flat = [
        torch.cat([p.grad.reshape(-1) for _, p in learner.parameters if p.grad is not None])
        for learner in (players.autoencoder, players.discriminator)
    ]
    numbers = {name: value for name, value in result.extra["numbers"].items() if name.startswith("weight of")}
    return Gradient(flat[0], flat[1], result.loss, numbers)


def vae_gradient_of_process(recipe):
    with launched(Spokesman().report) as runtime:
        return vae_gradient(recipe, runtime)


class Signal(Observer):
    def __init__(self, update, rank):
        self.update, self.rank = update, rank

    def updated(self, progress, part, result):
        if progress.updates == self.update and self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def vae_whole_run(recipe, stop=None, resume=False):
    """A run; process 1 is asked to stop after update ``stop``."""
    with launched(Spokesman().report) as runtime:
        return train_vae(recipe, resume, Signal(stop, runtime.rank), runtime)


def last_tensors(output):
    return load_file(complete_checkpoints(output)[-1] / "trainable.safetensors")
