"""A window that breaks its embedder is tried three times, recorded with its reason, and stops nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.precompute.small import N_WINDOWS, Watched, make_store
from tfbind_store.arrays.sharded import WindowState
from tfbind_store.errors import EmbeddingError, MissingWindow
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.attempts import Attempts
from tfbind_store.precompute.embedder import batches, make_window_embedder
from tfbind_store.precompute.run import embed_windows

NAME = "embeddings/windows"
ROOT = Path(__file__).resolve().parents[2]


class Raising(Watched):
    """The toy that raises on some windows, in a batch or alone; counts the tries."""

    def __init__(self, poison, *, until: int = 99) -> None:
        super().__init__()
        self.poison, self.until, self.tries = poison, until, 0

    def embed(self, windows, codes, tiling):
        for window in windows:
            if window in self.poison and self.tries < self.until:
                self.tries += 1
                raise RuntimeError(f"kernel panic at {window}")
            yield from super().embed([window], codes, tiling)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    return make_store(tmp_path)


def states(store) -> dict[WindowState, list[int]]:
    array = store.array(NAME)
    return {state: [w for w in range(N_WINDOWS) if array.state(w) is state] for state in WindowState}


class TestRaising:
    def test_is_tried_three_times_then_recorded_and_the_rest_is_done(self, store):
        embedder = Raising({2})
        report = embed_windows(store, embedder)
        assert embedder.tries == 3
        reason = "RuntimeError: kernel panic at 2 (tried 3 times)"
        assert [(f.row, f.reason) for f in report.failures] == [(2, reason)]
        assert states(store)[WindowState.ok] == [0, 1, 3, 4, 5, 8, 9, 10, 11]
        with pytest.raises(EmbeddingError, match="1 of 12 windows failed"):
            report.require_complete()
        with pytest.raises(MissingWindow, match="kernel panic"):
            store.array(NAME).row(2)
        assert not list(store.path.rglob("*.attempt"))

    def test_that_passes_the_second_time_is_no_failure(self, store):
        assert embed_windows(store, Raising({2, 9}, until=2)).is_complete

    def test_an_embedder_that_fails_on_everything_records_nothing(self, store):
        with pytest.raises(EmbeddingError, match="fails on every window"):
            embed_windows(store, Raising(set(range(N_WINDOWS))))
        assert states(store)[WindowState.failed] == []
        assert embed_windows(store, Watched()).is_complete

    def test_out_of_memory_halves_the_batch_and_blames_no_window(self, store):
        embedder = Hungry(fits=2)
        assert embed_windows(store, embedder).is_complete
        assert embedder.batches[:3] == [4, 4, 2]  # a shard of four windows, with 8, 4 and 2 at once
        assert all(size <= 2 for size in embedder.batches[2:])
        assert not list(store.path.rglob("*.attempt"))

    def test_a_window_that_never_fits_is_recorded(self, store):
        embedder = Hungry(fits=0)
        with pytest.raises(EmbeddingError, match=r"fails on every window.*out of memory"):
            embed_windows(store, embedder)
        assert embedder.batch_size == 1

    @pytest.mark.parametrize(("size", "sizes"), [(5, [2, 1, 0]), (1, [0])])
    def test_embedders_halve_down_to_one(self, size, sizes):
        module = make_window_embedder(
            "module",
            {"target": "tests.precompute.small_module:Bins", "bin_bp": 128, "dim": 6, "batch_size": size},
        )
        assert [module.halve_batch() for _ in sizes] == sizes
        enformer = make_window_embedder("enformer", {"dim": 48, "depth": 1, "batch_size": size, "device": "cpu"})
        chunks = [1, 1, 1]  # of 128, 64 and 32 tokens
        assert [enformer.halve_batch() for _ in sizes + chunks] == [*sizes[:-1], *chunks, 0]
        assert (enformer.batch_size, enformer.chunk_tokens) == (1, 32)


class Hungry(Watched):
    """The toy that runs out of memory when it reads more windows at once than fit."""

    def __init__(self, *, fits: int) -> None:
        super().__init__()
        self.batch_size, self.fits, self.batches = 8, fits, []

    def halve_batch(self) -> int:
        self.batch_size = max(1, self.batch_size // 2)
        return self.batch_size if self.batches[-1] > 1 else 0

    def embed(self, windows, codes, tiling):
        for batch in batches(windows, self.batch_size):
            self.batches.append(len(batch))
            if len(batch) > self.fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
            yield from super().embed(batch, codes, tiling)


DEADLY = """
    import os, sys
    from tests.precompute.small import Watched
    from tfbind_store.precompute import run
    from tfbind_store.store.folder import Store

    class Deadly(Watched):
        def embed(self, windows, codes, tiling):
            for window in windows:
                if window == 2:
                    os.write(1, b"x")
                    os.kill(os.getpid(), 9)
                yield from super().embed([window], codes, tiling)

    run.WINDOWS_PER_SHARD = 4
    report = run.embed_windows(Store.open(sys.argv[1]), Deadly())
    report.require_complete()
"""


class TestDeadly:
    def test_a_window_that_kills_the_process_is_given_up_after_three_deaths(self, store):
        command = [sys.executable, "-c", textwrap.dedent(DEADLY), str(store.path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        runs = [subprocess.run(command, capture_output=True, env=environment, check=False) for _ in range(4)]
        assert [run.returncode for run in runs] == [-9, -9, -9, 1]
        assert b"".join(run.stdout for run in runs) == b"xxx"
        assert b"the process died 3 times while embedding it" in runs[-1].stderr
        assert states(store)[WindowState.failed] == [2]
        assert states(store)[WindowState.not_asked] == []
        assert embed_windows(store, Watched(), retry_failed=True).is_complete

    def test_an_unreadable_count_is_no_count(self, store):
        embed_windows(store, Watched())
        attempts = Attempts(store.array(NAME).layout, 0)
        attempts.path.write_bytes(b"\xff not json")
        assert Attempts(store.array(NAME).layout, 0).earlier == {}
