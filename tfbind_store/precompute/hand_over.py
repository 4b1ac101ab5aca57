"""Bring results from the device that computes to the host, without making it wait.

One block behind: while the device computes the next block, the last one is on its way through pinned memory and its
reader on the host is at work. On a CPU there is nothing to bring, and nothing is held back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32


def to_host(blocks: Iterable[Float[torch.Tensor, "..."]], device: torch.device) -> Iterator[Float32[np.ndarray, "..."]]:
    """Yield each block as float32 on the host, in order; half precision crosses the bus as such."""
    if device.type != "cuda":
        for block in blocks:
            yield block.float().cpu().numpy()
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for block in blocks:
        arriving = _send(block, stream)
        if waiting is not None:
            yield _received(*waiting)
        waiting = arriving
    if waiting is not None:
        yield _received(*waiting)


def _send(block: torch.Tensor, stream: torch.cuda.Stream) -> tuple[torch.Tensor, torch.cuda.Event]:
    """Begin to copy `block` to pinned memory once the device has computed it."""
    host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(block.device))
    with torch.cuda.stream(stream):
        host.copy_(block, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(stream)
    block.record_stream(stream)  # its memory is not given to another tensor before the copy is done
    return host, arrived


def _received(host: torch.Tensor, arrived: torch.cuda.Event) -> np.ndarray:
    arrived.synchronize()
    return host.float().numpy()
