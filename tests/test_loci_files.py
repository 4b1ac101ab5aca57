"""`--loci`: only windows that hold loci of interest, from an imported set or a BED file; more later."""

from __future__ import annotations

import gzip
import json

import pytest
from click.testing import CliRunner

from tests.precompute.small import ALL_N, make_store
from tfbind_store.cli import main
from tfbind_store.errors import PeakFileError
from tfbind_store.ingest import import_loci
from tfbind_store.ingest.loci import read_loci
from tfbind_store.loci import Locus
from tfbind_store.precompute import run as run_module


@pytest.fixture
def store(tmp_path, monkeypatch):
    """`a` has 11 windows of 512 kept bp, of which 6 and 7 are all N; `b` one of 8 bp."""
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    return make_store(tmp_path)


def embed(store, loci, *words, verb="embed"):
    words = [verb, str(store.path), "windows", "--embedder", "toy", "--loci", str(loci), *words]
    return CliRunner().invoke(main, words)


def ok(store):
    array = store.array("embeddings/windows")
    return [w for w in range(array.shape[0]) if array.is_ok(w)]


def test_a_bed_file_and_an_imported_set_ask_for_the_same_windows(store, tmp_path):
    bed = tmp_path / "some.bed"
    bed.write_text("# a comment\na\t511\t513\tfirst\na\t1100\t1101\n")
    import_loci(store, bed, "some")
    plans = [json.loads(embed(store, loci, "--json", verb="plan").stdout) for loci in (bed, "some")]
    for plan in plans:  # the machine's own, which other programs change from one second to the next
        del plan["free_bytes"], plan["free_memory_bytes"]
    assert plans[0] == plans[1]
    assert plans[0]["n_compute"] == 3
    assert embed(store, bed).exit_code == 0
    assert ok(store) == [0, 1, 2]


def test_loci_that_come_later_compute_only_what_is_missing(store, tmp_path):
    first, second = tmp_path / "first.bed", tmp_path / "second.bed.gz"
    first.write_text("a\t0\t10\na\t600\t700\n")
    second.write_bytes(gzip.compress(b"a\t650\t1030\r\nb\t0\t8\r\n"))
    assert embed(store, first).exit_code == 0
    before = store.array("embeddings/windows").row(1).tobytes()
    result = embed(store, second, "--json")
    report = json.loads(result.stdout)
    assert (report["n_asked"], report["n_done_before"], report["n_computed"]) == (3, 1, 2)
    assert ok(store) == [0, 1, 2, 11]
    assert store.array("embeddings/windows").row(1).tobytes() == before
    assert json.loads(embed(store, second, "--json").stdout)["n_computed"] == 0


def test_windows_of_only_n_are_recorded_and_not_computed(store, tmp_path):
    bed = tmp_path / "n.bed"
    bed.write_text("a\t3200\t3210\n")
    report = json.loads(embed(store, bed, "--json").stdout)
    assert (report["n_asked"], report["n_computed"], report["n_all_n"]) == (1, 0, 1)
    assert store.array("embeddings/windows").state(ALL_N[0]) == "all_n"


def test_loci_and_chromosomes_go_together(store, tmp_path):
    bed = tmp_path / "x.bed"
    bed.write_text("a\t0\t10\n")
    assert embed(store, bed, "--chroms", "b").exit_code == 0
    assert ok(store) == [0, 11]


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("a\t0\t10\nz\t5\t6\nz\t7\t8\n", "2 of 3 loci do not lie on the genome; first: z:5-6", 2),
        ("# x\na\t0\t10\n\na\t5\t999999\n", "1 of 2 loci do not lie on the genome", 4),
        ("a\t0\t10\na\t9\t9\n", "end 9 <= start 9", 2),
        ("a\t0\t10\na\tx\t9\n", "start 'x' is not a whole number", 2),
        ("a\t0\n", "columns", 1),
        ("# nothing\n", "the file has no loci", None),
    ],
)
def test_a_row_that_is_no_locus_refuses_the_file_with_its_line(store, tmp_path, text, reason, line):
    bed = tmp_path / "odd.bed"
    bed.write_text(text)
    with pytest.raises(PeakFileError, match=reason) as caught:
        read_loci(store, bed)
    assert caught.value.where == (f"{bed}:{line}" if line else str(bed))
    result = embed(store, bed)
    assert result.exit_code == 1
    assert [part.split(":")[0] for part in result.stderr.splitlines()] == ["Error", "  where", "  fix"]
    assert store.array_names() == []


def test_a_name_that_is_neither_says_so(store):
    result = embed(store, "nowhere")
    assert result.exit_code == 1
    assert "no set of loci and no file is called 'nowhere'" in result.stderr


def test_names_of_chromosomes_are_the_stores_own(tmp_path, store):
    bed = tmp_path / "alias.bed"
    bed.write_text("".join(f"{alias}\t1\t2\n" for alias in store.meta.aliases) or "a\t1\t2\n")
    assert {locus.chrom for locus in read_loci(store, bed)} <= {"a", "b"}
    assert read_loci(store, bed)[0] == Locus(store.meta.aliases.get(next(iter(store.meta.aliases), "a"), "a"), 1, 2)
