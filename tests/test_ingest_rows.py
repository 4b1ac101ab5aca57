"""Tests of reading peak files block by block: where blocks begin changes nothing, and a stop leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfbind_store import textfiles
from tfbind_store.errors import PeakFileError
from tfbind_store.ingest import import_peaks
from tfbind_store.ingest import rows as reading
from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store

GRID = Grid(window_bp=64, n_bins=4, bin_bp=8)
NAMES = ("GSE1.SOX2.H1", "GSE2.CTCF.K-562_dox", "GSE3.ESR1.MCF-7")
N_ROWS = 120

KILLED = """
import os, signal, sys
from tfbind_store import textfiles
from tfbind_store.ingest import import_peaks, peaks, rows
from tfbind_store.store.folder import Store

left = [int(sys.argv[4])]
module, name = (rows, "_place_block") if sys.argv[3] == "reading" else (peaks._Importer, "_label")
plain = getattr(module, name)

def killed(*args, **options):
    plain(*args, **options)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, killed)
textfiles.CHUNK_BYTES, rows.BLOCK_BYTES = 37, 200
import_peaks(Store.open(sys.argv[1]), sys.argv[2])
"""


def line(number: int) -> str:
    """One row of chr1 or chr2, whose names and lengths change from row to row."""
    chrom, start = ("chr1", number % 50) if number < 70 else ("chr2", number % 30)
    return f"{chrom}\t{start}\t{start + 3 + number % 7}\t{NAMES[number % 3]}\t{number}\t."


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "g.fa").write_text(f">chr1\n{'ACGT' * 20}\n>chr2\n{'GGCA' * 10}\n")
    return Store.create(tmp_path / "store", fasta=tmp_path / "g.fa", grid=GRID)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "CHUNK_BYTES", 37)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 200)


def stored(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    with store.reader() as catalog:
        return {
            table: catalog.rows(f"SELECT * FROM {table} ORDER BY ALL")
            for table in ("peaks", "experiments", "data.source_chromosomes")
        } | {"n": catalog.rows("SELECT rows_read, rows_kept FROM data.sources")}


def test_many_small_blocks_give_what_one_gives(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line(number) for number in range(N_ROWS)]
    rows[40:40] = ["# half way", ""]
    rows[5] += "\tone\tcolumn\tmore"
    path = tmp_path / "p.bed"
    path.write_text("\n".join(rows) + "\n")
    (tmp_path / "other").mkdir()
    whole = Store.create(tmp_path / "other" / "store", fasta=tmp_path / "g.fa", grid=GRID)
    report = import_peaks(whole, path)
    monkeypatch.setattr(textfiles, "CHUNK_BYTES", 37)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 200)
    assert import_peaks(store, path)[2:] == report[2:]
    assert report.rows_read == N_ROWS
    assert stored(store) == stored(whole)


@pytest.mark.usefixtures("small_blocks")
def test_a_bad_row_in_a_late_block_is_named_by_its_own_line(tmp_path: Path, store: Store) -> None:
    rows = [line(number) for number in range(N_ROWS)]
    rows[100] = "chr2\t1\t99\tGSE1.SOX2.H1\t1\t."
    rows.insert(3, "# a comment")
    path = tmp_path / "p.bed"
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(
        PeakFileError, match=r"chr2:1-99 ends past the chromosome's 40 bp \(1 beyond end of 120"
    ) as told:
        import_peaks(store, path)
    assert told.value.where == f"{path}:102"


@pytest.mark.usefixtures("small_blocks")
def test_repeats_are_found_across_blocks(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "p.bed"
    path.write_text("".join(f"{line(number)}\n" for number in (*range(60), *range(10))))
    assert import_peaks(store, path).dropped == {"duplicate": 10}


@pytest.mark.parametrize(("stage", "number"), [("reading", 1), ("reading", 7), ("stored", 1)])
def test_a_killed_import_leaves_nothing_and_can_be_done_again(
    tmp_path: Path, store: Store, stage: str, number: int
) -> None:
    path = tmp_path / "p.bed"
    path.write_text("".join(f"{line(number)}\n" for number in range(N_ROWS)))
    before = stored(store)
    command = [sys.executable, "-c", KILLED, str(store.path), str(path), stage, str(number)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    again = Store.open(store.path)
    assert stored(again) == before
    report = import_peaks(again, path)
    assert (report.rows_read, report.rows_kept) == (N_ROWS, N_ROWS)
    assert [len(rows) for rows in stored(again).values()] == [N_ROWS, 3, 2, 1]
    assert "nothing changed" in import_peaks(again, path).notes[0]
