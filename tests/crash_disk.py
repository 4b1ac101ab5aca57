"""File systems that misbehave on purpose, and a small array to try them on.

`Recording` writes down the order of the calls, `Failing` breaks the N-th of them, `Killing` ends the process before
one, `PowerLoss` replays a recorded commit and gives every state that a disk may be left in when the power goes.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfbind_store.arrays.layouts import ArrayLayout, read_layout
from tfbind_store.arrays.receipts import WindowState
from tfbind_store.arrays.sharded import ShardedArray, create_array
from tfbind_store.durable import FileSystem
from tfbind_store.spec import EmbeddingSpec

OK, ALL_N, FAILED, NOT_ASKED = WindowState.ok, WindowState.all_n, WindowState.failed, WindowState.not_asked
N_BINS, DIM, SHARD_ROWS = 7, 16, 8
NAME = "embeddings/windows"


def small_spec(**changes) -> EmbeddingSpec:
    return EmbeddingSpec(**{"kind": "windows", "embedder": "toy", "dim": DIM, **changes})


def small_array(folder: Path, *, n_rows: int = 20, spec: EmbeddingSpec | None = None) -> ArrayLayout:
    """An empty array of 7 bins and 16 columns in shards of 8 windows."""
    spec = spec or small_spec()
    row = (N_BINS, spec.dim)
    create_array(folder / "w.zarr", spec, shape=(n_rows, *row), shard=(SHARD_ROWS, *row), chunk=(1, *row))
    return read_layout(folder / "w.zarr", folder / "receipts", name=NAME)


def rows_of(layout: ArrayLayout, shard_id: int, *, seed: int = 0) -> np.ndarray:
    """What a deterministic embedder would give for a shard."""
    rng = np.random.default_rng([seed, shard_id])
    return rng.normal(size=(layout.rows_in(shard_id), *layout.row_shape)).astype(layout.dtype)


def all_ok(layout: ArrayLayout, shard_id: int) -> list[WindowState]:
    return [OK] * layout.windows_in(shard_id)


def open_small(layout: ArrayLayout, **options) -> ShardedArray:
    return ShardedArray.open(layout.path, layout.receipts_dir, name=layout.name, **options)


class Recording(FileSystem):
    """Writes down each call as (verb, name of the file)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._names: dict[int, str] = {}

    def note(self, verb: str, path: Path | str) -> None:
        self.calls.append((verb, Path(path).name))

    def open_exclusive(self, path):
        self.note("open", path)
        descriptor = super().open_exclusive(path)
        self._names[descriptor] = str(path)
        return descriptor

    def write(self, descriptor, data):
        self.note("write", self._names[descriptor])
        return super().write(descriptor, data)

    def fsync(self, descriptor):
        self.note("fsync", self._names[descriptor])
        super().fsync(descriptor)

    def close(self, descriptor):
        self.note("close", self._names[descriptor])
        super().close(descriptor)

    def rename(self, source, target):
        self.note("rename", target)
        super().rename(source, target)

    def fsync_directory(self, path):
        self.note("fsync_directory", path)
        super().fsync_directory(path)


class Failing(Recording):
    """The N-th call (from 1) fails with an errno, or a write that is short."""

    def __init__(self, nth: int, code: int) -> None:
        super().__init__()
        self.nth, self.code = nth, code

    def note(self, verb, path):
        super().note(verb, path)
        if len(self.calls) == self.nth and (self.code != errno.EINTR or verb == "write"):
            raise OSError(self.code, os.strerror(self.code))


class Short(Recording):
    """Writes at most 100 bytes at a time."""

    def write(self, descriptor, data):
        return super().write(descriptor, data[:100])


class Killing(Recording):
    """Kills this process just before the N-th call (from 1)."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.nth = nth

    def note(self, verb, path):
        super().note(verb, path)
        if len(self.calls) == self.nth:
            os.kill(os.getpid(), signal.SIGKILL)


class PowerLoss(Recording):
    """Keeps every step of a commit, and says what may be on the disk if the power goes after each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple] = []

    def open_exclusive(self, path):
        descriptor = super().open_exclusive(path)
        self.steps.append(("create", str(path)))
        return descriptor

    def write(self, descriptor, data):
        n = super().write(descriptor, data)
        self.steps.append(("write", self._names[descriptor], bytes(data[:n])))
        return n

    def fsync(self, descriptor):
        super().fsync(descriptor)
        self.steps.append(("fsync", self._names[descriptor]))

    def rename(self, source, target):
        super().rename(source, target)
        self.steps.append(("rename", str(source), str(target)))

    def fsync_directory(self, path):
        super().fsync_directory(path)
        self.steps.append(("fsync_directory", str(path)))

    def states(self) -> Iterator[dict[str, bytes]]:
        """Yield every content of the disk, by final path, after each step."""
        for n_steps in range(len(self.steps) + 1):
            yield from _disk_states(self.steps[:n_steps])


def _disk_states(steps: list[tuple]) -> Iterator[dict[str, bytes]]:
    written: dict[str, bytes] = {}  # by temporary name, which stands for the inode
    is_synced: dict[str, bool] = {}
    renames: list[tuple[str, str]] = []
    durable: dict[str, str] = {}
    for step in steps:
        if step[0] == "create":
            written[step[1]], is_synced[step[1]] = b"", False
        elif step[0] == "write":
            written[step[1]] += step[2]
            is_synced[step[1]] = False
        elif step[0] == "fsync":
            is_synced[step[1]] = True
        elif step[0] == "rename":
            renames.append((step[1], step[2]))
        else:
            done = [pair for pair in renames if str(Path(pair[1]).parent) == step[1]]
            durable.update({target: source for source, target in done})
            renames = [pair for pair in renames if pair not in done]
    for size in range(len(renames) + 1):
        for kept in itertools.combinations(renames, size):
            names = {**durable, **{target: source for source, target in kept}}
            variants = [_contents(written[source], is_synced[source]) for source in names.values()]
            for contents in itertools.product(*variants):
                yield dict(zip(names, contents, strict=True))


def _contents(data: bytes, is_synced: bool) -> list[bytes]:
    """What may be in a file: all of it once synced, else also nothing, zeros, or its first half."""
    return [data] if is_synced else [data, b"", bytes(len(data)), data[: len(data) // 2]]
