"""Bring the rows of a selection to torch: through worker processes, or with all embeddings on the device.

`torch_batches` wraps ``query.loader`` for ``torch.utils.data``: worker processes read whole batches, which come in the
order in which one process would give them, each row once. `resident_batches` moves what a split needs to the device
once and picks rows there. Both go on where the loader stands, and move its cursor on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tfbind_store.batch import Batch
from tfbind_store.errors import ConfigError, TfbindError
from tfbind_store.feeding.feed import room_on, to_torch
from tfbind_store.query.loader import Cursor, Loader

CPU = torch.device("cpu")


class RowBatches(IterableDataset[tuple[int, Batch[Tensor]]]):
    """What is left of a loader's epoch, for a ``DataLoader`` with ``batch_size=None`` and any number of workers.

    Items are (rows of the epoch up to the end of the batch, batch).

    Parameters
    ----------
    loader
        Its cursor says where to begin; it is sent to workers without files or connections.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[int, Batch[Tensor]]]:
        """Yield the batches of this worker: every n-th one."""
        worker = get_worker_info()
        turn = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, row = self.loader.cursor
        for seen, batch in self.loader.epoch(epoch, first_row=row, turn=turn):
            yield seen, to_torch(batch, CPU)


def torch_batches(
    loader: Loader,
    *,
    workers: int = 0,
    device: torch.device = CPU,
    start: Literal["fork", "spawn", "forkserver"] = "fork",
    ahead: int = 2,
    timeout_s: float = 30,
) -> Iterator[Batch[Tensor]]:
    """Yield what is left of a loader's epoch as tensors on a device, read by worker processes.

    Parameters
    ----------
    workers
        0 reads in this process.
    start
        How workers are started: ``spawn`` where this process has threads or a GPU in use.
    ahead
        Batches that each worker reads ahead.
    timeout_s
        After so long without a batch something is wrong.

    Raises
    ------
    TfbindError
        If a worker ended, or gave nothing in time.
    """
    epoch = loader.cursor.epoch
    options: dict[str, Any] = {}
    if workers:
        options = {"multiprocessing_context": start, "prefetch_factor": ahead, "timeout": timeout_s}
    data = DataLoader(
        RowBatches(loader), batch_size=None, num_workers=workers, pin_memory=device.type == "cuda", **options
    )
    items = iter(data)
    while True:
        try:
            seen, batch = next(items)
        except StopIteration:
            break
        except (RuntimeError, ConnectionError, EOFError) as error:  # a worker died, in the midst of sending or not
            if isinstance(error, TfbindError) or not workers:
                raise
            fix = "resume with the loader's state; start with fewer workers if memory ran out"
            raise TfbindError(f"a worker that reads rows is gone: {error}", where="loader", fix=fix) from error
        loader.cursor = Cursor(epoch, int(seen))
        there = [None if field is None else field.to(device, non_blocking=True) for field in batch]
        yield Batch(*cast(list[Tensor], there))
    loader.cursor = Cursor(epoch + 1, 0)


def resident_batches(loader: Loader, device: torch.device) -> Iterator[Batch[Tensor]]:
    """Yield what is left of a loader's epoch, the embeddings that its split needs kept on the device.

    Raises
    ------
    ConfigError
        If they do not fit there.
    """
    epoch, row = loader.cursor
    names = loader.window_arrays
    size = sum(loader.in_memory(name).values.nbytes for name in names)
    if device.type == "cuda" and size > (room := room_on(device)):
        fix = "read by memory map, or project the embeddings: tfbind project"
        what = f"the rows need {size / 1e9:.1f} GB of embeddings, {room / 1e9:.1f} GB are free"
        raise ConfigError(what, where=str(device), fix=fix)
    values = [torch.from_numpy(loader.in_memory(name).values).to(device) for name in names]
    for seen, places in loader.batches(epoch, first_row=row):
        strand = loader.strands(places, epoch)
        dna: Tensor | None = None
        for mine, there, name in zip((~strand, strand), values, names, strict=False):
            picked = there[torch.from_numpy(loader.resident_places(places, name)).to(device)]
            chosen = torch.from_numpy(mine).to(device)[:, None, None]
            dna = picked if dna is None else torch.where(chosen, picked, dna)
        loader.cursor = Cursor(epoch, seen)
        assert dna is not None, "a loader has an array of windows"
        yield to_torch(loader.around(places), device)._replace(dna=dna)
    loader.cursor = Cursor(epoch + 1, 0)
