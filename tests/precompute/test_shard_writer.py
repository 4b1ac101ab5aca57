"""Writing goes on while the next shard is computed, within bounds, and the log has a line per shard."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.precompute.small import Watched, make_store
from tfbind_store.errors import ConfigError, StoreError
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute import shard_writer
from tfbind_store.precompute.plan import Plan
from tfbind_store.precompute.run import embed_windows, shards_in_memory

WRITE_SECONDS = 0.25


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 2)
    return make_store(tmp_path)


@pytest.fixture
def slow_disk(monkeypatch):
    """Each shard takes a quarter of a second to write."""
    real, threads = shard_writer.publish_shard, []

    def publish(*args, **kwargs):
        threads.append(threading.current_thread().name)
        time.sleep(WRITE_SECONDS)
        return real(*args, **kwargs)

    monkeypatch.setattr(shard_writer, "publish_shard", publish)
    return threads


def seconds_of(store, **options) -> float:
    started = time.monotonic()
    assert embed_windows(store, Watched(seconds=WRITE_SECONDS / 2), **options).is_complete
    return time.monotonic() - started


class TestOverlap:
    def test_computing_and_writing_take_the_longer_of_the_two_not_the_sum(self, store, slow_disk, tmp_path):
        (tmp_path / "turns").mkdir()
        overlapped = seconds_of(store)
        in_turn = seconds_of(make_store(tmp_path / "turns"), max_memory_bytes=320)
        # six shards, five of them computed: 1.5 s of writing, 1.25 s of computing
        assert overlapped < in_turn - 0.5
        assert all(name.startswith("shard-writer") for name in slow_disk)

    def test_no_more_shards_wait_than_allowed(self, store, slow_disk, monkeypatch):
        events, real = [], shard_writer.ShardWriter._write

        def write(self, computed, release):
            events.append(-1)
            return real(self, computed, release)

        def put(self, computed, release, original=shard_writer.ShardWriter.put):
            events.append(1)
            yield from original(self, computed, release)

        monkeypatch.setattr(shard_writer.ShardWriter, "_write", write)
        monkeypatch.setattr(shard_writer.ShardWriter, "put", put)
        embed_windows(store, Watched())
        waiting = most = 0
        for event in events:
            waiting += event
            most = max(most, waiting)
        assert events.count(1) == 6
        assert most <= 3  # two waiting or being handed over, one more just computed

    def test_a_disk_that_refuses_ends_the_run_with_its_error(self, store, monkeypatch):
        def refuse(*args, **kwargs):
            raise StoreError("the disk is on fire")

        monkeypatch.setattr(shard_writer, "publish_shard", refuse)
        with pytest.raises(StoreError, match="on fire"):
            embed_windows(store, Watched())


class TestMemory:
    PLAN = Plan(shards=((0, (), ()),), n_planned=1, n_asked=1, n_done=0, n_failed_before=0, shard_bytes=100)

    @pytest.mark.parametrize(("allowed", "waiting"), [(None, 1), (1000, 1), (400, 1), (300, 0), (299, -1), (100, -1)])
    def test_decides_how_many_shards_wait(self, allowed, waiting):
        assert shards_in_memory(self.PLAN, allowed) == waiting

    def test_less_than_a_shard_is_refused(self):
        with pytest.raises(ConfigError, match="a shard takes 100 bytes of memory, 99 are allowed"):
            shards_in_memory(self.PLAN, 99)


def test_the_log_has_one_line_per_shard_and_the_first_shard_an_estimate(store):
    told: list[str] = []
    embed_windows(store, Watched(seconds=0.01), tell=told.append)
    lines = [json.loads(line) for line in (store.path / "logs" / "embed.jsonl").read_text().splitlines()]
    assert [line["shard"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["n_ok"] + line["n_all_n"] for line in lines] == [2] * 6
    receipts = store.array("embeddings/windows").receipts()
    assert [line["xxh3_128"] for line in lines] == [receipts[shard].xxh3_128 for shard in range(6)]
    assert all(line["write_seconds"] >= 0 for line in lines)
    (text,) = told
    assert text.startswith("first shard: ")
    assert "windows/s; about" in text
