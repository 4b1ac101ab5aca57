"""Rows as torch batches: the same from any number of workers, from where a loader stands, on a device; never a hang."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.planted import planted  # noqa: F401
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.feeding.rows import resident_batches, torch_batches
from tfbind_store.query.loader import Loader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than there are cores


@pytest.fixture(scope="module")
def make(planted):  # noqa: F811
    def loader(**options):
        arrays = choose_arrays(planted.store)
        return Loader(planted.store, planted.selection, "train", arrays=arrays, **{"batch_size": 32, **options})

    return loader


@pytest.fixture(scope="module")
def serial(make):
    return list(make(seed=1))


def same(tensors, arrays):
    assert len(tensors) == len(arrays)
    for batch, plain in zip(tensors, arrays, strict=True):
        for name, tensor, array in zip(batch._fields, batch, plain, strict=True):
            assert (tensor is None) == (array is None), name
            if array is not None:
                assert np.array_equal(tensor.numpy(), array, equal_nan=array.dtype.kind == "f"), name
    return True


@pytest.mark.parametrize("workers", [0, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_forked_workers_give_what_one_process_gives_in_its_order(make, serial, workers):
    loader = make(seed=1)
    assert same(list(torch_batches(loader, workers=workers)), serial)
    assert loader.cursor == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_spawned_workers_do_too(make, serial, workers):
    assert same(list(torch_batches(make(seed=1), workers=workers, start="spawn")), serial)


def test_a_stopped_epoch_goes_on_at_the_exact_row(make, serial):
    loader = make(seed=1)
    reading = torch_batches(loader, workers=2)
    begun = [next(reading) for _ in range(3)]
    reading.close()
    again = make(seed=1)
    again.resume(loader.state())
    assert same([*begun, *torch_batches(again, workers=2)], serial)


# in a process of its own: torch raises from a signal's handler, in whatever frame runs just then
KILL = """
import multiprocessing, os, signal, sys
from tfbind_store.errors import TfbindError
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.query.loader import Loader
from tfbind_store.feeding.rows import torch_batches
from tfbind_store.store.folder import Store

store = Store.open(sys.argv[1])
def make():
    return Loader(store, sys.argv[2], "train", arrays=choose_arrays(store), batch_size=2, seed=1)
loader = make()
reading = torch_batches(loader, workers=2, ahead=1)
next(reading)
os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
try:
    list(reading)
    raise SystemExit("nobody noticed")
except TfbindError as error:
    assert "a worker that reads rows is gone" in error.what, error
    assert "resume" in error.fix
rest = make()
rest.resume(loader.state())
rows = [row for batch in rest for row in batch.rows.tolist()]
whole = [row for batch in make() for row in batch.rows.tolist()]
assert rows == whole[loader.cursor.row :], "rows lost or repeated"
"""


def test_a_killed_worker_is_an_error_and_no_hang_and_its_rows_come_when_resumed(planted):  # noqa: F811
    command = [sys.executable, "-c", KILL, str(planted.store.path), planted.selection]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_device_the_batches_are_the_same(make, serial):
    loader = make(seed=1)
    assert same(list(resident_batches(loader, torch.device("cpu"))), serial)
    assert loader.cursor == (1, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_they_are_the_same(make, serial):
    found = [
        b._replace(**{n: t.cpu() for n, t in b._asdict().items() if t is not None})
        for b in resident_batches(make(seed=1), torch.device("cuda"))
    ]
    assert same(found, serial)
