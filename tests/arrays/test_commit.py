"""Publishing shards: the order of calls, failures, kills, power loss, races, gaps."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import (
    ALL_N,
    FAILED,
    NOT_ASKED,
    OK,
    Failing,
    PowerLoss,
    Recording,
    Short,
    all_ok,
    open_small,
    rows_of,
    small_array,
)
from tfbind_store.arrays.commit import claim_shard
from tfbind_store.arrays.receipts import read_receipt, receipt_path
from tfbind_store.arrays.sharded import publish_shard
from tfbind_store.errors import DamagedShard, EmbeddingError, MissingWindow, NoSpace, StoreError, StoreReadOnly

WORKER = Path(__file__).parents[1] / "crash_worker.py"


def publish(layout, shard_id=0, *, states=None, seed=0, **options):
    data = rows_of(layout, shard_id, seed=seed)
    return publish_shard(layout, shard_id, data, states or all_ok(layout, shard_id), **options)


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def readable(layout, *, seed=0) -> int:
    """Count the windows that are served, each of which must be what was published."""
    array = open_small(layout, verify="first-touch", on_damage="exclude")
    served = 0
    for shard_id in range(layout.n_shards):
        for place, expected in enumerate(rows_of(layout, shard_id, seed=seed)):
            try:
                row = array.row(shard_id * layout.shard_rows + place)
            except (MissingWindow, DamagedShard):
                continue
            np.testing.assert_array_equal(row, expected)
            served += 1
    return served


class TestOrder:
    def test_shard_is_synced_named_and_its_name_synced_before_the_receipt_is_begun(self, tmp_path):
        layout = small_array(tmp_path)
        layout.receipts_dir.mkdir()
        fs = Recording()
        publish(layout, fs=fs)
        shard = ["open", "write", "write", "fsync", "close", "rename", "fsync_directory"]
        receipt = ["open", "write", "fsync", "close", "rename", "fsync_directory"]
        assert [verb for verb, _ in fs.calls] == shard + receipt
        renamed = [name for verb, name in fs.calls if verb == "rename"]
        assert renamed == ["c.0.0.0", "000000.json"]

    @pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
    def test_the_kernel_sees_the_same_order(self, tmp_path):
        layout = small_array(tmp_path, n_rows=8)
        trace = tmp_path / "trace"
        calls = "openat,fsync,rename,renameat,renameat2,rmdir,unlink"
        command = ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(trace), sys.executable, str(WORKER)]
        done = subprocess.run([*command, str(tmp_path), "1"], capture_output=True, timeout=120)
        if done.returncode and b"ptrace" in done.stderr:
            pytest.skip("strace may not trace here")
        events = []
        for line in trace.read_text().splitlines():
            if "= -1" in line or not ("w.zarr" in line or "receipts" in line):
                continue
            if match := re.search(r"(fsync)\(\d+<([^>]+)>", line):
                events.append(("fsync", Path(match[2]).name))
            elif match := re.search(r'rename\w*\((?:AT_FDCWD[^,]*, )?"[^"]+", (?:AT_FDCWD[^,]*, )?"([^"]+)"', line):
                events.append(("rename", Path(match[1]).name))
            elif match := re.search(r'openat\([^"]*"([^"]+\.tmp)", O_WRONLY\|O_CREAT\|O_EXCL', line):
                events.append(("create", Path(match[1]).name))
        events = [(verb, re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", name)) for verb, name in events]
        assert layout.n_shards == 1
        assert [event for event in events if event[1] != tmp_path.name] == [
            ("create", ".c.0.0.0.tmp"),
            ("fsync", ".c.0.0.0.tmp"),
            ("rename", "c.0.0.0"),
            ("fsync", "w.zarr"),
            ("create", ".000000.json.tmp"),
            ("fsync", ".000000.json.tmp"),
            ("rename", "000000.json"),
            ("fsync", "receipts"),
        ]


class TestFailures:
    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
    def test_any_failing_call_gives_a_typed_error_and_the_next_run_completes(self, tmp_path, code):
        layout = small_array(tmp_path)
        layout.receipts_dir.mkdir()
        expected = {errno.EIO: StoreError, errno.ENOSPC: NoSpace, errno.EROFS: StoreReadOnly}[code]
        for nth in range(1, 14):
            fs = Failing(nth, code)
            with pytest.raises(expected):
                publish(layout, fs=fs)
            assert temporaries(tmp_path) == []
            # only the very last call, the receipt's directory, fails when the receipt has its name already
            assert readable(layout) == (8 if nth == 13 else 0)
        assert publish(layout).states == (OK,) * 8
        assert readable(layout) == 8

    def test_interrupted_writes_are_repeated(self, tmp_path):
        layout = small_array(tmp_path)
        for nth in range(1, 16):
            publish(layout, seed=0, fs=Failing(nth, errno.EINTR))
        assert readable(layout) == 8

    def test_short_writes_are_continued(self, tmp_path):
        layout = small_array(tmp_path)
        publish(layout, fs=Short())
        assert readable(layout) == 8

    def test_a_full_disk_says_what_it_needs_and_has(self, tmp_path):
        layout = small_array(tmp_path)
        with pytest.raises(NoSpace, match=r"need 1,988 bytes, have [\d,]+"):
            publish(layout, fs=Failing(2 + 3, errno.ENOSPC))

    def test_a_failed_second_generation_keeps_the_first(self, tmp_path):
        layout = small_array(tmp_path)
        publish(layout, states=[OK] * 5 + [NOT_ASKED] * 3)
        for nth in range(1, 14):
            with pytest.raises(StoreError):
                publish(layout, fs=Failing(nth, errno.EIO))
            # after the shard has its new name its receipt is the old one: the old windows are served, by their hashes
            assert readable(layout) in ((5,) if nth < 13 else (8,))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite_are_refused_with_nothing_written(self, tmp_path, value):
        layout = small_array(tmp_path)
        data = rows_of(layout, 1)
        data[3, 2, 1] = value
        with pytest.raises(EmbeddingError, match="window 11 holds a value that is not finite"):
            publish_shard(layout, 1, data, all_ok(layout, 1))
        assert not layout.shard_path(1).exists()

    def test_a_shard_of_another_shape_or_dtype_is_refused(self, tmp_path):
        layout = small_array(tmp_path)
        with pytest.raises(EmbeddingError, match="shape"):
            publish_shard(layout, 0, rows_of(layout, 0)[:7], all_ok(layout, 0))
        with pytest.raises(EmbeddingError, match="float32"):
            publish_shard(layout, 0, rows_of(layout, 0).astype(np.float32), all_ok(layout, 0))
        with pytest.raises(EmbeddingError, match="not one of"):
            publish_shard(layout, 3, rows_of(layout, 0), all_ok(layout, 0))


class TestKills:
    def run_worker(self, folder, seed, call=""):
        command = [sys.executable, str(WORKER), str(folder), str(seed), *([str(call)] if call else [])]
        return subprocess.run(command, capture_output=True, timeout=120)

    @pytest.mark.parametrize("call", [1, 4, 6, 7, 8, 12, 13, 14])
    def test_killed_between_any_two_calls_the_next_run_is_as_if_nothing_happened(self, tmp_path, call):
        layout = small_array(tmp_path, n_rows=12)
        layout.receipts_dir.mkdir()
        died = self.run_worker(tmp_path, 3, call)
        assert died.returncode == -signal.SIGKILL, died.stderr
        # the receipt has its name from the 12th call on; the 14th belongs to the other shard
        assert readable(layout) in ((0,) if call <= 12 else (4, 8))
        assert self.run_worker(tmp_path, 4).returncode == 0
        assert readable(layout) == 12
        clean = small_array(tmp_path / "clean", n_rows=12)
        for shard_id in range(2):
            publish(clean, shard_id)
            assert clean.shard_path(shard_id).read_bytes() == layout.shard_path(shard_id).read_bytes()

    def kill_loop(self, tmp_path, n_kills, seed):
        """Two racing workers, killed at random times, begun again until all shards are there."""
        rng = np.random.default_rng(seed)
        n_rows, kills, runs = 64 * 8, 0, 0
        layout = small_array(tmp_path, n_rows=n_rows)
        while kills < n_kills:
            runs += 1
            workers = [
                subprocess.Popen(
                    [sys.executable, str(WORKER), str(tmp_path), str(runs * 2 + k)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                for k in range(2)
            ]
            try:
                # from the first published shard on, so that kills hit the work on fast and on busy machines alike
                assert workers[0].stdout is not None
                workers[0].stdout.readline()
                time.sleep(rng.random() * 0.1)
                kills += sum(worker.poll() is None for worker in workers)
            finally:
                for worker in workers:
                    worker.kill()
                    worker.communicate()
            if readable(layout) == n_rows:
                shutil.rmtree(layout.path)
                shutil.rmtree(layout.receipts_dir)
                small_array(tmp_path, n_rows=n_rows)
        assert self.run_worker(tmp_path, 1).returncode == 0
        assert readable(layout) == n_rows

    def test_two_racing_workers_lose_nothing_in_some_kills(self, tmp_path):
        self.kill_loop(tmp_path, 4, seed=1)

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_two_racing_workers_lose_nothing_in_200_kills(self, tmp_path):
        self.kill_loop(tmp_path, 200, seed=2)


class TestPowerLoss:
    def disagreements(self, tmp_path, fs) -> tuple[int, int, set[int]]:
        """Publish twice, then count the states of the disk, and those in which a receipt promises what is not there."""
        layout = small_array(tmp_path / "live", n_rows=8)
        layout.receipts_dir.mkdir()
        publish(layout, states=[OK] * 3 + [FAILED] + [NOT_ASKED] * 4, reasons={3: "out of memory"}, fs=fs)
        publish(layout, fs=fs)
        n_states, n_bad, served_counts = 0, 0, set()
        for number, state in enumerate(fs.states()):
            crashed = replace(layout, path=tmp_path / f"{number}.zarr", receipts_dir=tmp_path / f"{number}.receipts")
            crashed.path.mkdir()
            crashed.receipts_dir.mkdir()
            shutil.copy(layout.path / "zarr.json", crashed.path)
            for path, content in state.items():
                where = crashed.receipts_dir if path.endswith(".json") else crashed.path
                (where / Path(path).name).write_bytes(content)
            try:
                receipt = read_receipt(receipt_path(crashed.receipts_dir, 0))
                n_bad += readable(crashed) != (receipt.count(OK) if receipt else 0)
            except DamagedShard:
                n_bad += 1
            served_counts.add(readable(crashed))
            n_states += 1
        return n_states, n_bad, served_counts

    def test_whatever_the_disk_kept_a_receipt_is_kept_its_word(self, tmp_path):
        n_states, n_bad, served = self.disagreements(tmp_path, PowerLoss())
        assert (n_states > 20, n_bad, served) == (True, 0, {0, 3, 8})

    @pytest.mark.parametrize("forgotten", ["fsync", "fsync_directory"])
    def test_the_simulation_notices_a_forgotten_fsync_and_even_then_no_wrong_byte_is_served(self, tmp_path, forgotten):
        class Forgetful(PowerLoss):
            pass

        setattr(Forgetful, forgotten, lambda self, of: getattr(Recording, forgotten)(self, of))
        n_states, n_bad, served = self.disagreements(tmp_path, Forgetful())
        assert n_states > 20
        assert n_bad > 0
        assert served <= {0, 3, 8}


class TestRacesAndGaps:
    def test_publishing_the_same_again_writes_nothing(self, tmp_path):
        layout = small_array(tmp_path)
        first = publish(layout)
        fs = Recording()
        assert publish(layout, fs=fs) == first
        assert fs.calls == []

    def test_a_gap_is_filled_and_what_was_there_stays_bit_equal(self, tmp_path):
        layout = small_array(tmp_path)
        publish(layout, states=[OK, NOT_ASKED, ALL_N, FAILED, OK, OK, OK, OK], reasons={3: "loss of signal"})
        before = open_small(layout)
        assert [before.state(row) for row in range(4)] == [OK, NOT_ASKED, ALL_N, FAILED]
        receipt = publish(layout, states=[NOT_ASKED, OK, NOT_ASKED, OK] + [OK] * 4, seed=9)
        assert (receipt.generation, receipt.reasons) == (2, {})
        assert receipt.states == (OK, OK, ALL_N, OK, OK, OK, OK, OK)
        after = open_small(layout, verify="first-touch")
        np.testing.assert_array_equal(after.row(0), rows_of(layout, 0)[0])
        np.testing.assert_array_equal(after.row(1), rows_of(layout, 0, seed=9)[1])
        np.testing.assert_array_equal(after.row(4), rows_of(layout, 0)[4])

    def test_of_two_jobs_with_other_bytes_exactly_one_is_accepted(self, tmp_path):
        layout = small_array(tmp_path, n_rows=8)
        threads = [threading.Thread(target=publish, args=(layout,), kwargs={"seed": seed}) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        array = open_small(layout, verify="first-touch")
        accepted = [s for s in range(6) if np.array_equal(array.row(0), rows_of(layout, 0, seed=s)[0])]
        assert len(accepted) == 1
        np.testing.assert_array_equal(array.rows(0, 8), rows_of(layout, 0, seed=accepted[0]))
        assert temporaries(tmp_path) == []

    def test_two_writers_that_fill_other_gaps_at_once_both_keep_their_work(self, tmp_path):
        layout = small_array(tmp_path, n_rows=8)
        threads = []
        for mine in range(8):
            states = [OK if place == mine else NOT_ASKED for place in range(8)]
            threads.append(threading.Thread(target=publish, args=(layout,), kwargs={"states": states}))
            threads[-1].start()
        for thread in threads:
            thread.join()
        assert readable(layout) == 8

    def test_a_damaged_shard_or_receipt_is_written_anew(self, tmp_path):
        layout = small_array(tmp_path)
        publish(layout)
        layout.shard_path(0).write_bytes(b"short")
        publish(layout)
        assert readable(layout) == 8
        receipt_path(layout.receipts_dir, 0).write_bytes(b"{}")
        assert publish(layout).generation == 1
        assert readable(layout) == 8

    def test_a_failed_window_keeps_its_reason(self, tmp_path):
        layout = small_array(tmp_path)
        publish(layout, states=[FAILED] + [OK] * 7, reasons={0: "NaN in 3 bins"})
        with pytest.raises(MissingWindow, match="window 0 failed: NaN in 3 bins"):
            open_small(layout).row(0)
        receipt = read_receipt(receipt_path(layout.receipts_dir, 0))
        assert receipt is not None
        assert receipt.reasons == {0: "NaN in 3 bins"}

    def test_a_claim_is_held_by_one_at_a_time_and_goes_with_its_holder(self, tmp_path):
        layout = small_array(tmp_path)
        with claim_shard(layout, 0) as first, claim_shard(layout, 0) as second, claim_shard(layout, 1) as other:
            assert (first, second, other) == (True, False, True)
        with claim_shard(layout, 0) as again:
            assert again

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_array_says_so(self, tmp_path):
        layout = small_array(tmp_path)
        layout.path.chmod(0o500)
        with pytest.raises(StoreReadOnly):
            publish(layout)
        layout.path.chmod(0o700)
