"""Sequences by the name of a factor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.precompute.small import make_store
from tfbind_store.errors import NameParseError
from tfbind_store.ingest import import_peaks, import_proteins

PROTEINS = {"PAX3": "MTTLAGAVPR", "FOXO1": "MAEAPQVVEI", "NKX3-1": "MLRVPEPRPG", "SMAD2": "MSSILPFTPP", "SMAD3": "MSSI"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("sequences")
    store = make_store(folder)
    (folder / "p.fa").write_text("".join(f">{gene} gene={gene}\n{text}\n" for gene, text in PROTEINS.items()))
    (folder / "names.tsv").write_text("FKHR\tFOXO1\n")
    names = ("PAX3", "PAX3-FOXO1", "PAX3-NCOA1", "XYZ")
    (folder / "p.bed").write_text("".join(f"a\t{300 * n}\t{300 * n + 9}\tE.{f}.x\n" for n, f in enumerate(names)))
    import_peaks(store, folder / "p.bed")
    report = import_proteins(store, folder / "p.fa", synonyms=[folder / "names.tsv"])
    return store, report


def test_a_factor_is_its_sequence_and_a_complex_a_tuple(store):
    proteins = store[0].proteins
    assert proteins["PAX3"] == PROTEINS["PAX3"]
    assert proteins["PAX3-FOXO1"] == (PROTEINS["PAX3"], PROTEINS["FOXO1"])
    assert proteins["PAX3-FKHR_K4ac"] == (PROTEINS["PAX3"], PROTEINS["FOXO1"])
    assert proteins["SMAD2-3"] == (PROTEINS["SMAD2"], PROTEINS["SMAD3"])
    assert proteins["NKX3-1"] == PROTEINS["NKX3-1"]
    assert proteins.subunits("PAX3") == (PROTEINS["PAX3"],)
    assert (sorted(proteins), len(proteins)) == (sorted(PROTEINS), 5)


def test_what_is_missing_is_named_with_what_is_close(store):
    proteins = store[0].proteins
    with pytest.raises(NameParseError, match="no protein of NCOA1"):
        proteins["PAX3-NCOA1"]
    with pytest.raises(NameParseError) as caught:
        proteins["NKX3.1"]
    assert caught.value.fix == "did you mean NKX3-1?"
    assert [name in proteins for name in ("PAX3", "pax3", "PAX3-NCOA1", "XYZ", "", 3)] == [True, True, *[False] * 4]


def test_the_import_counts_complexes_of_which_a_part_is_missing(store):
    notes = store[1].notes
    assert any(note.startswith("2 of 4 factors have no protein: ") for note in notes)
    assert "1 of them are complexes of which a part is missing: PAX3-NCOA1" in notes
