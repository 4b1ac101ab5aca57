"""Verify names whatever was done to a store, repair sets it aside, gc removes only what nobody writes."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.precompute.small import Watched, make_store
from tfbind_store.arrays.commit import publish_shard
from tfbind_store.arrays.receipts import read_receipt, receipt_path
from tfbind_store.arrays.sharded import WindowState
from tfbind_store.durable import file_lock, sole_owner, sole_writer
from tfbind_store.errors import DamagedShard, MissingWindow, StoreBusy, TfbindError
from tfbind_store.keeping.garbage import collect_garbage
from tfbind_store.keeping.repair import repair_store
from tfbind_store.keeping.verify import Kind, verify_shard, verify_store
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.canaries import check_canaries
from tfbind_store.precompute.run import embed_windows
from tfbind_store.precompute.toy import ToyEmbedder
from tfbind_store.store.folder import Store

NAME = "embeddings/windows"
UNREAD = {"storage_transformers"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A store of three shards of four windows; windows 6 and 7 hold only N."""
    store = make_store(tmp_path_factory.mktemp("template"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
        embed_windows(store, ToyEmbedder())
    return store.path


@pytest.fixture
def store(template, tmp_path) -> Store:
    shutil.copytree(template, tmp_path / "store")
    return Store.open(tmp_path / "store")


def layout_of(store):
    return store.array(NAME, on_damage="exclude").layout


def shard_file(store, shard_id: int) -> Path:
    return layout_of(store).shard_path(shard_id)


def receipt_file(store, shard_id: int) -> Path:
    return receipt_path(layout_of(store).receipts_dir, shard_id)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def found(store, *, deep=False):
    return [(problem.kind, problem.shard, problem.window) for problem in verify_store(store, deep=deep).problems]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestVerify:
    @pytest.mark.parametrize("deep", [False, True])
    def test_a_store_as_written_is_clean_and_stays_untouched(self, store, deep):
        before = contents(store.path)
        report = verify_store(store, deep=deep)
        assert report.problems == ()
        assert (report.n_arrays, report.n_shards, report.n_windows) == (1, 3, 10)
        assert report.bytes_read == (sum(layout_of(store).size_bytes(s) for s in range(3)) if deep else 0)
        report.require_clean(store.path)
        assert contents(store.path) == before

    def test_every_one_of_200_flipped_bits_is_found_with_shard_and_window(self, store):
        layout, rng = layout_of(store), np.random.default_rng(3)
        receipts = store.array(NAME).receipts()
        n_named = 0
        for turn in range(200):
            shard_id = int(rng.integers(3))
            bit = int(rng.integers(8 * layout.body_bytes(shard_id)))
            window = shard_id * 4 + bit // 8 // layout.window_bytes
            # a flipped bit of a NaN may leave a NaN: only the file's hash knows
            expected = [(Kind.window, window), *([(Kind.shard, None)] if window in (6, 7) else [])]
            flip(shard_file(store, shard_id), bit)
            (problem,) = verify_shard(layout, receipts[shard_id], deep=True)
            n_named += (problem.kind, problem.window) in expected
            if turn < 10:
                assert found(store, deep=True) == [(problem.kind, shard_id, problem.window)]
            if turn < 50 and window not in (6, 7):
                with pytest.raises(DamagedShard, match=f"window {window} "):
                    store.array(NAME, verify="first-touch").row(window)
            flip(shard_file(store, shard_id), bit)
        assert n_named == 200
        assert found(store, deep=True) == []

    @pytest.mark.parametrize(
        ("damage", "kind"),
        [
            (lambda path: path.write_bytes(path.read_bytes()[:-100]), Kind.shard),
            (lambda path: path.write_bytes(b""), Kind.shard),
            (lambda path: path.write_bytes(bytes(path.stat().st_size)), Kind.shard),
            (lambda path: (path.unlink(), path.mkdir()), Kind.shard),
            (lambda path: (path.rename(path.with_name("elsewhere")), path.symlink_to("elsewhere")), Kind.shard),
            (lambda path: (path.unlink(), os.mkfifo(path)), Kind.shard),
            (lambda path: path.unlink(), Kind.missing),
        ],
        ids=["truncated", "empty", "NUL", "directory", "symlink", "pipe", "gone"],
    )
    def test_odd_shards_are_found_without_reading_bytes_and_never_served(self, store, damage, kind):
        damage(shard_file(store, 1))
        assert found(store) == [(kind, 1, None)]
        with pytest.raises((DamagedShard, MissingWindow)):
            store.array(NAME).row(5)
        with pytest.raises(MissingWindow):
            store.array(NAME, on_damage="exclude").row(5)
        repair_store(store, verify_store(store, deep=True))
        embed_windows(store, ToyEmbedder())
        assert found(store, deep=True) == []

    def test_a_body_of_zeros_under_a_whole_index_is_found_by_its_hash(self, store):
        layout, path = layout_of(store), shard_file(store, 0)
        path.write_bytes(bytes(layout.body_bytes(0)) + path.read_bytes()[layout.body_bytes(0) :])
        assert found(store) == []
        assert found(store, deep=True) == [(Kind.window, 0, window) for window in range(4)]
        with pytest.raises(DamagedShard):
            store.array(NAME, verify="first-touch").row(0)

    def test_every_flipped_bit_of_a_receipt_is_found(self, store):
        path, rng = receipt_file(store, 2), np.random.default_rng(1)
        for bit in rng.integers(8 * path.stat().st_size, size=30).tolist():
            before = path.read_bytes()
            flip(path, bit)
            assert [kind for kind, _, _ in found(store)] == [Kind.receipt]
            path.write_bytes(before)

    @pytest.mark.parametrize("name", ["zarr.json", "store.json"])
    def test_a_flipped_bit_of_other_metadata_is_refused_or_changes_nothing(self, store, name):
        path = store.path / ("store.json" if name == "store.json" else "embeddings/windows.zarr/zarr.json")
        meaning, whole = json.loads(path.read_bytes()), path.read_bytes()
        for bit in np.random.default_rng(2).integers(8 * len(whole), size=40).tolist():
            flip(path, bit)
            try:
                report = verify_store(Store.open(store.path))
            except TfbindError as error:
                named = error.where
            else:
                named = str(path)
                if not report.problems:  # blanks mean nothing in JSON, nor do fields of zarr's that nobody reads
                    changed = json.loads(path.read_bytes())
                    assert all(changed[key] == meaning[key] for key in meaning if key not in UNREAD)
            assert str(path) in named
            path.write_bytes(whole)

    def test_a_truncated_genome_or_snapshot_is_found(self, store):
        flip(store.path / "genome" / "codes.u8", 8 * 300)
        flip(store.snapshots.newest(), 8 * 5000)
        assert {kind for kind, _, _ in found(store, deep=True)} == {Kind.genome, Kind.catalog}

    def test_a_receipt_edited_to_fit_another_shard_is_found_by_the_label(self, store, tmp_path):
        layout = layout_of(store)
        shutil.copy(shard_file(store, 0), shard_file(store, 1))
        other, mine = (read_receipt(receipt_file(store, shard_id)) for shard_id in (0, 1))
        edited = dataclasses.replace(other, shard_id=1, created=mine.created)
        receipt_file(store, 1).write_bytes(edited.to_json())
        assert (Kind.unsettled, 1, None) in found(store)
        assert layout.name == NAME

    def test_numbers_of_another_model_under_edited_receipts_are_found_by_canaries_only(self, store, tmp_path):
        layout = layout_of(store)
        rng = np.random.default_rng(0)
        for path in (shard_file(store, 0), receipt_file(store, 0)):
            path.unlink()
        foreign = rng.normal(size=(4, *layout.row_shape)).astype(np.float16)
        publish_shard(layout, 0, foreign, [WindowState.ok] * 4)  # everything fits, label and hashes too
        assert found(store, deep=True) == []
        problems, n_compared, notes = check_canaries(store, n_canaries=3)
        assert (n_compared, notes) == (3, [])
        (problem,) = problems
        assert (problem.kind, problem.shard) == (Kind.canary, 0)
        report = dataclasses.replace(verify_store(store), problems=tuple(problems))
        with pytest.raises(DamagedShard, match="not what its model gives"):
            report.require_clean(store.path)
        (mended,) = repair_store(store, report).shards
        assert (mended.n_kept, mended.n_lost) == (0, 4)
        assert embed_windows(store, ToyEmbedder()).is_complete
        assert check_canaries(store, n_canaries=12)[:2] == ([], 10)

    def test_canaries_without_the_model_say_so(self, store):
        path = store.path / "embeddings" / "windows.zarr" / "zarr.json"
        text = json.loads(path.read_bytes())
        spec = store.array(NAME).spec
        other = dataclasses.replace(spec, embedder="enformer")
        text["attributes"]["tfbind_store"].update(spec=other.to_json(), fingerprint=other.fingerprint)
        path.write_text(json.dumps(text))
        assert check_canaries(store)[:2] == ([], 0)
        assert "--checkpoint" in check_canaries(store)[2][0]


class TestRepair:
    def test_good_windows_are_kept_the_bad_one_is_computed_again_and_nothing_is_deleted(self, store):
        layout = layout_of(store)
        whole = shard_file(store, 0).read_bytes()
        flip(shard_file(store, 0), 8 * (2 * layout.window_bytes + 5))
        damaged = shard_file(store, 0).read_bytes()
        report = repair_store(store, verify_store(store, deep=True))
        assert [(m.shard, m.n_kept, m.n_lost) for m in report.shards] == [(0, 3, 1)]
        kept = Path(report.quarantine) / NAME
        assert (kept / "c.0.0.0").read_bytes() == damaged
        assert (kept / "000000.json").exists()
        assert found(store, deep=True) == []
        with pytest.raises(MissingWindow):
            store.array(NAME).row(2)
        embedder = Watched()
        assert embed_windows(store, embedder).is_complete
        assert embedder.asked == [0, 2]  # the canary, and what was lost
        assert shard_file(store, 0).read_bytes() == whole

    def test_a_store_without_damage_is_left_alone(self, store):
        before = contents(store.path)
        report = repair_store(store, verify_store(store, deep=True))
        assert (report.shards, report.quarantine) == ((), "")
        assert contents(store.path) == before

    def test_a_shard_newer_than_its_receipt_is_settled_without_loss(self, store):
        receipt = read_receipt(receipt_file(store, 1))
        earlier = dataclasses.replace(
            receipt,
            states=(WindowState.not_asked, *receipt.states[1:]),
            window_xxh3_64=(None, *receipt.window_xxh3_64[1:]),
        )
        receipt_file(store, 1).write_bytes(earlier.to_json())
        assert found(store) == found(store, deep=True) == [(Kind.unsettled, 1, None)]
        (mended,) = repair_store(store, verify_store(store, deep=True)).shards
        assert mended.n_lost == 0
        assert found(store, deep=True) == []

    @pytest.mark.parametrize("damage", ["gone", "cut", "link", "folder"])
    def test_lost_metadata_stop_nobody_and_are_written_again_from_the_catalog(self, store, tmp_path, damage):
        path = store.path / "embeddings" / "windows.zarr" / "zarr.json"
        whole = path.read_bytes()
        with store.reader() as catalog:
            shards = catalog.rows("SELECT * FROM data.shards ORDER BY ALL")
        path.unlink()
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "link":
            (tmp_path / "elsewhere.json").write_bytes(whole)
            path.symlink_to(tmp_path / "elsewhere.json")
        elif damage == "folder":
            path.mkdir()
        assert found(store) == [(Kind.array, None, None)]
        assert (store.arrays(), list(store.unreadable_arrays())) == ([], [NAME])
        with store.writer() as catalog:  # a writer does its work and forgets nothing about the array
            catalog.execute("INSERT INTO data.meta VALUES ('written', 'yes')")
        with store.reader() as catalog:
            assert catalog.rows("SELECT * FROM data.shards ORDER BY ALL") == shards
        report = repair_store(store, verify_store(store, deep=True))
        assert (report.arrays, report.shards, report.left) == ((NAME,), (), ())
        assert json.loads(path.read_bytes()) == json.loads(whole)
        assert found(store, deep=True) == []
        aside = Path(report.quarantine or tmp_path) / NAME / "zarr.json"
        assert os.path.lexists(aside) == (damage != "gone")

    def test_metadata_that_nobody_has_kept_are_left_to_the_user(self, store):
        (store.path / "embeddings" / "windows.zarr" / "zarr.json").unlink()
        with store.writer() as catalog:
            catalog.execute("DELETE FROM data.arrays")
        report = repair_store(store, verify_store(store))
        assert (report.arrays, report.quarantine) == ((), "")
        assert [problem.kind for problem in report.left] == [Kind.array]

    def test_receipts_of_another_array_are_noted(self, store):
        folder = store.path / "receipts" / NAME / "0123456789ab"
        folder.mkdir()
        (folder / "000000.json").write_bytes(receipt_file(store, 0).read_bytes())
        report = verify_store(store)
        assert report.is_clean
        assert "0123456789ab" in report.notes[0]

    def test_nothing_is_moved_under_a_writer(self, store):
        flip(shard_file(store, 0), 77)
        report = verify_store(store, deep=True)
        with file_lock(layout_of(store).writing_lock, shared=True), pytest.raises(StoreBusy):
            repair_store(store, report)
        assert shard_file(store, 0).exists()


class TestGarbage:
    def leave_litter(self, store) -> list[Path]:
        layout = layout_of(store)
        litter = [
            layout.path / ".c.0.0.0.0123456789abcdef.tmp",
            layout.receipts_dir / ".000000.json.0123456789abcdef.tmp",
            store.path / "catalog" / ".catalog.duckdb.0123456789abcdef.tmp",
        ]
        for path in litter:
            path.write_bytes(b"half")
        return litter

    def test_unfinished_writes_go_and_all_else_stays(self, store):
        before = contents(store.path)
        litter = self.leave_litter(store)
        (store.path / "embeddings" / "windows.zarr" / "notes.tmp").write_text("the user's own")
        os.utime(litter[0], (0, time.time() + 1e6))
        wanted = collect_garbage(store, dry_run=True)
        assert all(path.exists() for path in litter)
        report = collect_garbage(store)
        assert (report.files, report.size_bytes) == (wanted.files, 12)
        after = contents(store.path)
        assert after.pop("embeddings/windows.zarr/notes.tmp")
        for names in (before, after):
            del names["locks/catalog.lock"]
        assert after == before

    def test_nothing_goes_while_somebody_writes_however_old_it_is(self, store):
        litter = self.leave_litter(store)
        for path in litter:
            os.utime(path, (0, 0))
        with file_lock(layout_of(store).writing_lock, shared=True), store.locked():
            report = collect_garbage(store)
        assert report.files == ()
        assert len(report.kept) == 2
        assert all(path.exists() for path in litter)

    def test_shards_without_a_receipt_go_only_when_asked_for(self, store):
        receipt_file(store, 2).unlink()
        assert collect_garbage(store).files == ()
        assert collect_garbage(store, orphans=True).files == ("embeddings/windows.zarr/c.2.0.0",)
        assert embed_windows(store, ToyEmbedder()).is_complete

    def test_runs_that_nobody_trains_are_cleared(self, store):
        left = [store.run_dir(name) / f".state.safetensors.{'ab' * 8}.tmp" for name in ("stopped", "training")]
        for path in left:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"half")
        (left[0].parent / "log.jsonl").write_text("{}\n")
        with sole_owner(store.run_dir("training"), doing="training"):
            report = collect_garbage(store)
        assert report.files == (str(left[0].relative_to(store.path)),)
        assert any(why.startswith("run training: another process is") for why in report.kept)
        assert [path.exists() for path in left] == [False, True]
        assert (left[0].parent / "log.jsonl").exists()

    def test_where_no_disk_locks_runs_are_left_alone(self, store, monkeypatch):
        left = store.run_dir("stopped") / f".state.safetensors.{'ab' * 8}.tmp"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"half")
        flock = fcntl.flock

        def unlocked(descriptor, kind):
            if os.path.samestat(os.fstat(descriptor), left.parent.stat()):
                raise OSError(errno.ENOLCK, "no locks available")
            flock(descriptor, kind)

        monkeypatch.setattr(fcntl, "flock", unlocked)
        assert "run stopped: the disk knows no locks" in collect_garbage(store).kept
        with sole_writer(left.parent, doing="training"):
            assert left.exists()
        monkeypatch.undo()
        with sole_writer(left.parent, doing="training"):
            assert not left.exists()

    def test_quarantine_goes_only_when_asked_for(self, store):
        flip(shard_file(store, 0), 77)
        folder = repair_store(store, verify_store(store, deep=True)).quarantine
        assert collect_garbage(store).files == ()
        assert len(collect_garbage(store, quarantine=True).files) == 1
        assert not Path(folder).exists()

    def test_a_writer_killed_at_work_is_no_writer(self, store):
        script = (
            "import os, sys; from pathlib import Path; from tfbind_store.durable import file_lock;"
            "lock = file_lock(Path(sys.argv[1]), shared=True); lock.__enter__(); os.kill(os.getpid(), 9)"
        )
        litter = self.leave_litter(store)
        subprocess.run([sys.executable, "-c", script, str(layout_of(store).writing_lock)], check=False, cwd=ROOT)
        assert len(collect_garbage(store).files) == len(litter)
