import builtins
import importlib

import numpy as np
import pytest

from tests.planted import planted  # noqa: F401
from tfbind_store.errors import DependencyError, InputFileError
from tfbind_store.evaluation.baselines import (
    LOWEST,
    FactorProtein,
    factor_proteins,
    motif_scores,
    motifs_of,
    nearest_training_factor,
    read_motifs,
    scan_bins,
)

JASPAR = """>MA0001.1\tWE\tP00001
A  [ 0 0 8 ]
C  [ 0 0 0 ]
G  [ 0 8 0 ]
T  [ 8 0 0 ]
>MA0002.1\tAAA::BBB\tP00002
A  [ 4 4 ]
C  [ 4 0 ]
G  [ 0 4 ]
T  [ 0 0 ]
"""


@pytest.fixture
def jaspar(tmp_path):
    pytest.importorskip("lightmotif")
    path = tmp_path / "motifs.jaspar"
    path.write_text(JASPAR)
    return path


def protein(genes, sequence):
    return FactorProtein(frozenset(genes), sequence)


PROTEINS = {
    0: protein({"A"}, "MKVLAAGIRTW"),
    1: protein({"B"}, "MKVLAAGIRWW"),
    2: protein({"C"}, "WWYYFFHHPPW"),
    3: protein({"A", "D"}, "MKVLAAGIRTWQQQQ"),
    4: protein({"E"}, "MKVLAAGIRTW"),
}


class TestNearest:
    def test_is_the_most_similar_other_factor(self):
        found = nearest_training_factor(PROTEINS, [0, 2], [0, 1, 2])
        assert found.factor_id[0] == 1
        assert found.similarity[0] > 0.7

    def test_factors_with_a_shared_gene_or_sequence_do_not_count(self):
        assert nearest_training_factor(PROTEINS, [0], [0, 3, 4, 2]).factor_id.tolist() == [2]

    def test_no_training_factor_gives_none(self):
        assert nearest_training_factor(PROTEINS, [0], []).factor_id.tolist() == [-1]

    def test_factor_without_a_protein_has_none(self):
        assert nearest_training_factor(PROTEINS, [9], [1, 2]).factor_id.tolist() == [-1]


def test_proteins_of_the_store_are_found(planted):  # noqa: F811
    with planted.store.reader() as catalog:
        proteins = factor_proteins(catalog)
    assert proteins[0].genes == {"WEA"}
    assert proteins[0].sequence.startswith("M")
    assert len(proteins) == 8


class TestMotifs:
    def test_jaspar_file_is_read(self, jaspar):
        motifs = read_motifs(jaspar)
        assert [(motif.name, motif.accessions) for motif in motifs] == [("WE", ("P00001",)), ("AAA::BBB", ("P00002",))]

    def test_matrices_are_found_by_gene_or_accession(self, jaspar):
        motifs = read_motifs(jaspar)
        assert [m.name for m in motifs_of(motifs, frozenset({"WE"}))] == ["WE"]
        assert [m.name for m in motifs_of(motifs, frozenset({"BBB"}))] == ["AAA::BBB"]
        assert [m.name for m in motifs_of(motifs, frozenset({"X"}), frozenset({"P00001"}))] == ["WE"]
        assert motifs_of(motifs, frozenset({"X"})) == []

    def test_file_that_is_no_jaspar_is_refused(self, tmp_path):
        pytest.importorskip("lightmotif")
        path = tmp_path / "x.jaspar"
        path.write_text("hello\n")
        with pytest.raises(InputFileError):
            read_motifs(path)
        with pytest.raises(InputFileError):
            read_motifs(tmp_path / "absent.jaspar")

    def test_a_fasta_of_a_genome_is_refused_in_a_few_words(self, tmp_path):
        pytest.importorskip("lightmotif")
        path = tmp_path / "genome.fa"
        path.write_text(">chr1\n" + "ACGTCCGATTGA\n" * 5_000)
        with pytest.raises(InputFileError) as caught:
            read_motifs(path)
        assert len(str(caught.value)) < 600

    def test_best_match_of_each_bin_by_brute_force(self, jaspar):
        motif = read_motifs(jaspar)[0]
        codes = np.random.default_rng(0).integers(0, 5, 1003).astype(np.uint8)
        got = scan_bins(codes, [motif], 64)
        counts = np.array([[0, 0, 8], [0, 0, 0], [0, 8, 0], [8, 0, 0]]) + 0.1
        odds = np.log2(counts / counts.sum(0) / 0.25)
        expected = np.full(16 * 64, LOWEST)
        for place in range(1003 - 2):
            bases = codes[place : place + 3]
            if (bases < 4).all():
                forward = odds[bases, np.arange(3)].sum()
                reverse = odds[(3 - bases)[::-1], np.arange(3)].sum()
                expected[place] = max(forward, reverse)
        np.testing.assert_allclose(got, expected.reshape(16, 64).max(1), rtol=1e-4)

    def test_chromosome_shorter_than_the_motif_matches_nothing(self, jaspar):
        assert scan_bins(np.array([0, 1], np.uint8), read_motifs(jaspar), 4).tolist()[0] < 10

    def test_planted_sites_score_highest(self, planted, tmp_path):  # noqa: F811
        pytest.importorskip("lightmotif")
        rows = {base: " ".join(str(9 * (letter == base)) for letter in "TGACGTCAAG") for base in "ACGT"}
        path = tmp_path / "we.jaspar"
        path.write_text(">M1\tWEA\n" + "".join(f"{base}  [ {row} ]\n" for base, row in rows.items()))
        bins = planted.store.tiling.global_bins(3)
        scores = motif_scores(planted.store.genome, planted.store.tiling, read_motifs(path), bins)
        sites = {start // 32 for start in planted.sites["chr4"]["WE"]}
        assert set(np.argsort(scores)[-len(sites) :].tolist()) == sites

    def test_absent_scanner_says_how_to_get_it(self, jaspar, monkeypatch):
        def refuse(name, *rest):
            raise ImportError(name)

        monkeypatch.setattr(importlib, "import_module", refuse)
        with pytest.raises(DependencyError, match=r"pip install .*motifs"):
            read_motifs(jaspar)
        assert builtins.__import__ is not refuse
