"""Fetching pages ahead, on a real file whose pages were given back."""

import mmap
import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.arrays.test_sharded import everything, layout, open_small  # noqa: F401
from tfbind_store.arrays import fetching, shards
from tfbind_store.arrays.fetching import Fetcher, fetcher, is_in_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="advice on memory is Linux's")
PAGES = 64


class Mapped:
    """A file's pages where a `Space` would have them."""

    def __init__(self, path):
        with path.open("rb") as file:
            self.pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.pages.madvise(mmap.MADV_RANDOM)
        self.flat = np.frombuffer(self.pages, dtype=np.uint8)
        self.address = self.flat.__array_interface__["data"][0]


@pytest.fixture
def cold(tmp_path):
    """A mapped file of which nothing is in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    space = Mapped(path)
    if is_in_memory(space, 0):
        pytest.skip("this disk keeps what it was told to give back")
    return space


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_pages_come_into_memory_and_no_others(cold):
    own = Fetcher()
    own.fetch(cold, 10 * mmap.PAGESIZE + 5, 3 * mmap.PAGESIZE)
    assert wait_for(lambda: own.n_asked == 1)
    fetched = range(10, 14)  # the fourth is touched by the last five bytes
    assert wait_for(lambda: all(is_in_memory(cold, page * mmap.PAGESIZE) for page in fetched))
    assert not is_in_memory(cold, 40 * mmap.PAGESIZE)
    assert is_in_memory(cold, 12 * mmap.PAGESIZE + 100)


def test_what_is_gone_or_refused_stops_nobody(cold):
    own = Fetcher()
    gone = type("Gone", (), {"address": 0x10000})()
    own.fetch(gone, 0, mmap.PAGESIZE)
    own.fetch(cold, 0, mmap.PAGESIZE)
    assert wait_for(lambda: own.n_asked == 2)
    assert wait_for(lambda: is_in_memory(cold, 0))


def test_a_thread_that_broke_is_begun_anew(cold, monkeypatch):
    own = Fetcher()
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_system", lambda name: 1 / 0)
        patch.setattr(threading, "excepthook", lambda *given: None)
        own.fetch(cold, 0, mmap.PAGESIZE)
        assert wait_for(lambda: own._thread is not None and not own._thread.is_alive())
    own.fetch(cold, 0, mmap.PAGESIZE)
    assert wait_for(lambda: is_in_memory(cold, 0))


def test_a_forked_child_has_a_thread_of_its_own(cold):
    fetcher().fetch(cold, 0, mmap.PAGESIZE)
    assert wait_for(lambda: is_in_memory(cold, 0))
    child = os.fork()
    if child == 0:
        fetcher().fetch(cold, 20 * mmap.PAGESIZE, mmap.PAGESIZE)
        os._exit(0 if wait_for(lambda: is_in_memory(cold, 20 * mmap.PAGESIZE)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_without_advice_nothing_happens(cold, monkeypatch):
    monkeypatch.setattr(fetching, "_WILL_NEED", None)
    own = Fetcher()
    own.fetch(cold, 0, mmap.PAGESIZE)
    assert own._thread is None
    assert not is_in_memory(cold, 0)


def test_an_array_asks_for_the_pages_on_which_bins_begin(layout, everything, monkeypatch):  # noqa: F811
    array, asked = open_small(layout), []
    flat = array.gather_bins(np.arange(layout.shape[0] * layout.shape[1]))[:, 0]
    bin_bytes, shard_bins = flat[0].nbytes, layout.windows_per_shard * layout.shape[1]

    def answer(space, byte):
        asked.append(space.flat.reshape(-1).view(np.uint8)[byte : byte + bin_bytes].tobytes())
        return len(asked) < 3

    monkeypatch.setattr(shards, "is_in_memory", answer)
    bins = np.array([0, 5, shard_bins + 1, 2])
    assert not array.are_in_memory(bins)
    assert asked == [flat[place].tobytes() for place in bins[:3]]
    assert array.are_in_memory(bins[:0])


def test_an_array_fetches_bins_and_windows_where_they_lie(layout, everything, monkeypatch):  # noqa: F811
    array, asked = open_small(layout), []
    monkeypatch.setattr(shards, "fetcher", lambda: SimpleNamespace(fetch=lambda *given: asked.append(given)))
    flat = array.gather_bins(np.arange(layout.shape[0] * layout.shape[1]))[:, 0]
    array.will_need_bins(np.array([7, 3]), 2)
    array.will_need([1])
    kept = layout.shape[1]
    found = [space.flat.reshape(-1).view(np.uint8)[begin : begin + size].tobytes() for space, begin, size in asked]
    assert found == [flat[3:5].tobytes(), flat[7:9].tobytes(), flat[kept : 2 * kept].tobytes()]
