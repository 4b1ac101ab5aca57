"""Several processes that train one model together, as ``torchrun`` or ``accelerate launch`` started them.

Nothing here starts a process: the launcher's environment (``RANK``, ``WORLD_SIZE``, …) says who is there. The first
process alone validates, logs and writes; what it decides by the clock it tells the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=2)
"""How long the others wait while the first one validates."""


class Processes(NamedTuple):
    """Which of the processes that train together this is."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one validates, logs and writes."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes."""
        if self.world > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def told(self, value: float, device: torch.device) -> float:
        """Return the first process's `value`."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(tensor, src=0)
        return float(tensor.item())

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.world > 1:
            dist.barrier()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return `model` with its gradients averaged over all processes."""
        return DistributedDataParallel(model) if self.world > 1 else model


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that a launcher started, or be the only one; leave them at the end.

    Parameters
    ----------
    device
        Decides the backend: nccl between CUDA devices, else gloo.
    """
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Return this process's own CUDA device where a launcher started one process for each."""
    local = os.environ.get("LOCAL_RANK")
    if str(device) != "cuda" or local is None:
        return device
    torch.cuda.set_device(int(local))
    return torch.device("cuda", int(local))
