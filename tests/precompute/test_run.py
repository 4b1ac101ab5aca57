"""Embedding a genome: what is stored, what is recorded, and going on after every kind of stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.precompute.small import ALL_N, N_WINDOWS, Watched, make_store
from tfbind_store.arrays.sharded import WindowState
from tfbind_store.errors import EmbeddingError, Interrupted, LocusError, MissingWindow, NoSpace, SpecError
from tfbind_store.loci import Locus
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute import upkeep
from tfbind_store.precompute.run import embed_windows, plan_windows, windows_of
from tfbind_store.precompute.toy import BIN_RADIX, ToyEmbedder
from tfbind_store.store.folder import Store

TO_COMPUTE = [w for w in range(N_WINDOWS) if w not in ALL_N]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("template")).path


@pytest.fixture
def fresh(template, tmp_path):
    """Makes copies of one small store that nothing was embedded into."""

    def copy(name: str = "store") -> Store:
        shutil.copytree(template, tmp_path / name)
        return Store.open(tmp_path / name)

    return copy


@pytest.fixture
def store(fresh) -> Store:
    return fresh()


@pytest.fixture
def shards_of_4(monkeypatch) -> None:
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)


def shard_bytes(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store.path / "embeddings").rglob("c.*"))}


class TestWhatIsStored:
    def test_every_window_says_its_own_address(self, store, shards_of_4):
        report = embed_windows(store, ToyEmbedder())
        assert (report.n_computed, report.n_all_n, report.n_missing, report.is_complete) == (10, 2, 0, True)
        array = store.array("embeddings/windows")
        assert array.n_shards == 3
        for window in TO_COMPUTE:
            kept = store.tiling.kept(window)
            row = np.asarray(array.row(window), dtype=np.int64)
            assert (row[:, 0] == store.tiling.chrom_index[kept.chrom]).all()
            assert (row[:, 1] * BIN_RADIX + row[:, 2]).tolist() == [kept.start // 128 + bin_ for bin_ in range(4)]
            for bin_ in range(4):
                gc, _, n = store.genome.base_counts(*store.tiling.bin_locus(window, bin_))
                assert row[bin_, 3:5].tolist() == [gc, n]

    def test_windows_of_only_n_are_recorded_and_never_computed(self, store):
        embedder = Watched()
        embed_windows(store, embedder)
        assert embedder.asked == TO_COMPUTE
        array = store.array("embeddings/windows")
        assert [w for w in range(N_WINDOWS) if array.state(w) is WindowState.all_n] == list(ALL_N)
        with pytest.raises(MissingWindow, match="only N"):
            array.row(6)

    def test_the_catalog_knows_the_shards(self, store):
        embed_windows(store, ToyEmbedder())
        with store.reader() as catalog:
            sql = "SELECT array_name, n_ok, n_all_n, n_failed, n_not_asked FROM data.shards"
            assert catalog.rows(sql) == [("embeddings/windows", 10, 2, 0, 0)]

    def test_receipts_say_how_long_it_took(self, store):
        embed_windows(store, ToyEmbedder())
        (receipt,) = store.array("embeddings/windows").receipts().values()
        assert receipt.provenance["n_computed"] == 10
        assert receipt.provenance["seconds"] >= 0


class TestGoingOn:
    def test_the_same_command_again_does_nothing(self, store, shards_of_4):
        embed_windows(store, ToyEmbedder())
        before, snapshot = shard_bytes(store), store.snapshot
        embedder = Watched()
        report = embed_windows(store, embedder)
        assert embedder.asked == []
        assert (report.n_done_before, report.n_computed) == (12, 0)
        assert (shard_bytes(store), store.snapshot) == (before, snapshot)

    def test_loci_first_then_the_rest_equals_all_at_once(self, store, fresh, shards_of_4):
        embed_windows(store, ToyEmbedder(), loci=[Locus("a", 600, 601), Locus("a", 2047, 2049)])
        array = store.array("embeddings/windows")
        assert array.completeness().n_ok == 3
        assert [w for w in range(N_WINDOWS) if array.state(w) is WindowState.ok] == [1, 3, 4]
        embedder = Watched()
        assert embed_windows(store, embedder).is_complete
        assert embedder.asked == [1, *(w for w in TO_COMPUTE if w not in (1, 3, 4))]  # the canary, then the gaps
        whole = fresh("whole")
        embed_windows(whole, ToyEmbedder())
        assert shard_bytes(store) == shard_bytes(whole)

    def test_another_embedder_under_the_same_name_is_refused_and_another_name_is_not(self, store):
        class Other(ToyEmbedder):
            def spec(self, genome_digest, grid):
                from dataclasses import replace

                return replace(super().spec(genome_digest, grid), identity={"class": "other"})

        embed_windows(store, ToyEmbedder())
        before = shard_bytes(store)
        with pytest.raises(SpecError, match="identity") as caught:
            embed_windows(store, Other())
        assert "--name" in caught.value.fix
        assert shard_bytes(store) == before
        assert embed_windows(store, Other(), name="other").is_complete
        assert store.array_names() == ["embeddings/other", "embeddings/windows"]

    def test_an_embedder_that_gives_other_numbers_than_stored_is_refused(self, store, shards_of_4):
        embed_windows(store, ToyEmbedder(), loci=[Locus("a", 0, 1)])
        liar = Watched(broken={0: 60000.0})
        with pytest.raises(SpecError, match="other numbers"):
            embed_windows(store, liar)
        assert liar.asked == [0]
        assert store.array("embeddings/windows").completeness().n_ok == 1

    def test_a_deleted_shard_is_embedded_again(self, store, shards_of_4):
        embed_windows(store, ToyEmbedder())
        before = shard_bytes(store)
        next(iter((store.path / "embeddings").rglob("c.1.*"))).unlink()
        embedder = Watched()
        assert embed_windows(store, embedder).is_complete
        assert embedder.asked == [0, 4, 5]
        assert shard_bytes(store) == before


class TestFailedWindows:
    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (np.nan, "1 of 32 numbers are not finite"),
            (np.inf, "1 of 32 numbers are not finite"),
            (70000.0, "largest value 70000 does not fit float16"),
        ],
    )
    def test_are_recorded_with_their_reason_while_others_finish(self, store, shards_of_4, value, reason):
        report = embed_windows(store, Watched(broken={5: value}))
        assert [(f.row, f.name, f.reason) for f in report.failures] == [(5, "a:2560-3072", reason)]
        assert not report.is_complete
        with pytest.raises(EmbeddingError, match="1 of 12 windows failed; first a:2560-3072"):
            report.require_complete()
        array = store.array("embeddings/windows")
        assert array.completeness()[:4] == (9, 2, 1, 0)
        assert array.state(5) is WindowState.failed
        with pytest.raises(MissingWindow, match=r"not fin|does not fit"):
            array.row(5)

    def test_stay_failed_until_a_retry_is_asked_for(self, store, shards_of_4):
        embed_windows(store, Watched(broken={5: np.nan}))
        embedder = Watched()
        assert not embed_windows(store, embedder).is_complete
        assert embedder.asked == []
        assert embed_windows(store, embedder, retry_failed=True).is_complete
        assert embedder.asked == [0, 5]

    def test_all_failed(self, store):
        report = embed_windows(store, Watched(broken=dict.fromkeys(range(N_WINDOWS), np.nan)))
        assert len(report.failures) == 10
        assert store.array("embeddings/windows").completeness().n_ok == 0


class TestSpace:
    def test_is_checked_before_anything_is_written(self, store, monkeypatch):
        monkeypatch.setattr(upkeep, "free_bytes", lambda path: 1000)
        with pytest.raises(NoSpace, match=r"needs 67,\d{3},\d{3} bytes, the disk has 1,000"):
            embed_windows(store, ToyEmbedder())
        assert store.array_names() == []

    def test_a_finished_array_needs_none(self, store, monkeypatch):
        embed_windows(store, ToyEmbedder())
        monkeypatch.setattr(upkeep, "free_bytes", lambda path: 0)
        assert embed_windows(store, ToyEmbedder()).is_complete


class TestPlan:
    def test_says_what_would_be_done_and_writes_nothing(self, store):
        plan = plan_windows(store, ToyEmbedder())
        assert (plan.n_compute, plan.n_all_n, len(plan.shards)) == (10, 2, 1)
        assert store.array_names() == []
        embed_windows(store, ToyEmbedder())
        assert plan_windows(store, ToyEmbedder()).shards == ()

    def test_knows_the_speed_of_earlier_shards(self, store, shards_of_4):
        embed_windows(store, Watched(seconds=0.01), loci=[Locus("a", 0, 1)])
        estimate = plan_windows(store, ToyEmbedder()).estimate_seconds
        assert 0.05 < estimate < 5


class TestLoci:
    def test_windows_whose_kept_bins_touch(self, store):
        assert windows_of(store, [Locus("a", 511, 513), Locus("b", 0, 8)]).tolist() == [0, 1, 11]
        assert windows_of(store, [Locus("a", 512, 1024)]).tolist() == [1]

    @pytest.mark.parametrize(
        "loci", [[], [Locus("c", 0, 1)], [Locus("a", 5, 5)], [Locus("a", -1, 4)], [Locus("b", 0, 9)]]
    )
    def test_off_the_genome_are_refused(self, store, loci):
        with pytest.raises(LocusError):
            windows_of(store, loci)


class TestStopping:
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_publishes_what_is_there_and_leaves_the_rest(self, store, shards_of_4, number, status):
        def between(window):
            if window == 1:  # the toy is asked for window 2 then
                os.kill(os.getpid(), number)

        embedder = Watched(between=between)
        with pytest.raises(Interrupted) as caught:
            embed_windows(store, embedder)
        assert caught.value.exit_status == status
        array = store.array("embeddings/windows")
        done = [w for w in range(N_WINDOWS) if array.state(w) is WindowState.ok]
        assert done == embedder.asked == [0, 1, 2]
        with store.reader() as catalog:
            assert catalog.one("SELECT sum(n_ok) FROM data.shards")[0] == len(done)
        rest = Watched()
        assert embed_windows(store, rest).is_complete
        assert set(rest.asked) - {0} == set(TO_COMPUTE) - set(done)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_a_second_signal_abandons_the_shard(self, store, shards_of_4):
        def between(window):
            if window in (0, 1):
                os.kill(os.getpid(), signal.SIGTERM)

        class Deaf(Watched):
            def embed(self, windows, codes, tiling):  # answers only when all is done
                return iter(list(super().embed(windows, codes, tiling)))

        with pytest.raises(Interrupted, match="abandoned at once"):
            embed_windows(store, Deaf(between=between))
        assert store.array("embeddings/windows").completeness().n_ok == 0

    def test_a_window_that_takes_too_long_is_abandoned(self, store, monkeypatch):
        from tfbind_store.precompute import stopping

        def between(window):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

        monkeypatch.setattr(stopping.stop_requests.__wrapped__, "__kwdefaults__", {"grace_seconds": 0.2})
        started = time.monotonic()
        with pytest.raises(Interrupted, match=r"abandoned after 0\.2 s"):
            embed_windows(store, Watched(between=between))
        assert time.monotonic() - started < 10

    def test_outside_the_main_thread_it_runs_without_handlers(self, store):
        reports = []
        thread = threading.Thread(target=lambda: reports.append(embed_windows(store, ToyEmbedder())))
        thread.start()
        thread.join()
        assert reports[0].is_complete


CHILD = """
    import sys, time
    from tests.precompute.small import Watched
    from tfbind_store.precompute import run
    from tfbind_store.store.folder import Store
    run.WINDOWS_PER_SHARD = 4
    run.embed_windows(Store.open(sys.argv[1]), Watched(seconds=float(sys.argv[2])))
"""


def start_child(store: Store, seconds: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(store.path), str(seconds)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_receipt(store: Store, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not list((store.path / "receipts").rglob("*.json")):
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestAnotherProcess:
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, None)])
    def test_killed_and_run_again_gives_the_bytes_of_an_undisturbed_run(
        self, store, fresh, shards_of_4, number, status
    ):
        with start_child(store, 0.15) as child:
            wait_for_receipt(store, child)
            child.send_signal(number)
            assert child.wait(30) == (status if status is not None else 1)
            if number == signal.SIGTERM:
                assert b"stopped by SIGTERM" in child.stderr.read()
        n_before = store.array("embeddings/windows").completeness().n_ok
        assert 0 < n_before < 10
        rest = Watched()
        assert embed_windows(store, rest).is_complete
        assert len(rest.asked) == 10 - n_before + 1
        whole = fresh("whole")
        embed_windows(whole, ToyEmbedder())
        assert shard_bytes(store) == shard_bytes(whole)


def test_a_stored_enformer_is_the_plain_forward_to_float16(store, shards_of_4):
    import torch
    from enformer_pytorch import seq_indices_to_one_hot

    from tfbind_store.precompute.embedder import make_window_embedder

    embedder = make_window_embedder("enformer", {"dim": 48, "depth": 1, "dim_divisible_by": 8, "device": "cpu"})
    assert embed_windows(store, embedder).is_complete
    array = store.array("embeddings/windows")
    for window in TO_COMPUTE:
        codes = torch.from_numpy(store.genome.codes(*store.tiling.read(window))).long()
        codes[codes == 5] = -1
        with torch.no_grad():
            plain = embedder.model(seq_indices_to_one_hot(codes)[None], return_only_embeddings=True)[0, 2:6]
        np.testing.assert_allclose(array.row(window).astype(np.float32), plain.numpy(), rtol=1e-3, atol=1e-4)
