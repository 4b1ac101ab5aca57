"""Tests of protein and synonym files: headers, the choice among entries, alphabets, similarity."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tfbind_store import textfiles
from tfbind_store.errors import InputFileError, ProteinError
from tfbind_store.factors import (
    Protein,
    clean_sequence,
    clusters,
    kmer_similarity,
    read_proteins,
    read_synonyms,
    unambiguous,
)

UNIPROT = """>sp|P48431|SOX2_HUMAN Transcription factor SOX-2 OS=Homo sapiens OX=9606 GN=SOX2 PE=1 SV=1
MYNMMETELK
PPGPQQ
>tr|A0A0U3|A0A0U3_HUMAN Other OS=Homo sapiens OX=9606 GN=SOX2 PE=1 SV=1
MYNMMETELKPPGPQQAAAAAAAAA
>sp|P48432|SOX2_MOUSE Transcription factor SOX-2 OS=Mus musculus OX=10090 GN=Sox2 PE=1 SV=2
MYNMMETELKPPGPQQA
>sp|P48431-2|SOX2_HUMAN Isoform 2 of SOX-2 OS=Homo sapiens OX=9606 GN=SOX2
MYNMMETELKPPGPQQAAAA
"""


def write(folder: Path, text: str, name: str = "p.fa") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def only(path: Path, **options: object) -> Protein:
    (protein,) = read_proteins(path, **options).chosen  # type: ignore[arg-type]
    return protein


class TestHeaders:
    @pytest.mark.parametrize(
        ("header", "symbol", "accession", "species", "reviewed", "others"),
        [
            ("sp|P1|A_HUMAN x OS=Homo sapiens OX=9606 GN=SOX2 PE=1", "SOX2", "P1", "human", True, ("P1",)),
            ("tr|P1|A_MOUSE x OX=10090 GN=Sox2", "Sox2", "P1", "mouse", False, ("P1",)),
            ("sp|P1|SWI4_YEAST x OX=559292 GN=SWI4", "SWI4", "P1", "yeast", True, ("P1",)),
            ("sp|P1|E2F8_HUMAN no gene", "E2F8", "P1", "human", True, ("P1",)),
            ("YER069W gene=ARG5,6 sgd=S0 protein_id=D1", "ARG5,6", "D1", "unknown", False, ("YER069W", "S0", "D1")),
            ("YIL154C gene=IMP2' sgd=S1 protein_id=D2", "IMP2'", "D2", "unknown", False, ("YIL154C", "S1", "D2")),
            ("lcl|x [gene=abc] [locus_tag=b1] [protein_id=N1]", "abc", "N1", "unknown", False, ("lcl|x", "b1", "N1")),
            ("ENSP1 pep gene:ENSG1 gene_symbol:TP53", "ENSG1", "ENSP1", "unknown", False, ("ENSP1",)),
            ("NP_1 tumor antigen [Homo sapiens]", "NP_1", "NP_1", "human", False, ()),
            ("SOX2", "SOX2", "SOX2", "unknown", False, ()),
        ],
    )
    def test_table(
        self, tmp_path: Path, header: str, symbol: str, accession: str, species: str, reviewed: bool,
        others: tuple[str, ...],
    ) -> None:  # fmt: skip
        protein = only(write(tmp_path, f">{header}\nMKV\n"))
        assert protein[:4] == (symbol, accession, species, reviewed)
        assert protein.other_names == others

    def test_headers_without_gene_are_noted(self, tmp_path: Path) -> None:
        assert "1 entries name no gene" in read_proteins(write(tmp_path, ">SOX2\nMKV\n")).notes[0]

    def test_crlf_gz_and_many_lines(self, tmp_path: Path) -> None:
        path = write(tmp_path, ">a gene=A\r\nMK\r\nVL\r\n\r\n>b gene=B\r\nWW*", "p.fa.gz")
        assert [(p.symbol, p.sequence) for p in read_proteins(path).chosen] == [("A", "MKVL"), ("B", "WW")]

    def test_synonyms_come_from_headers(self, tmp_path: Path) -> None:
        table = read_proteins(write(tmp_path, ">YAL068C gene=PAU8\nMKV\n"))
        assert table.synonyms == (("YAL068C", "PAU8"),)


class TestChoice:
    def test_reviewed_canonical_human_wins_whatever_the_order(self, tmp_path: Path) -> None:
        records = [">" + record for record in UNIPROT.split(">")[1:]]
        for order in (records, records[::-1]):
            table = read_proteins(write(tmp_path, "".join(order)))
            assert [(p.symbol, p.accession, p.chosen_by) for p in table.chosen] == [("SOX2", "P48431", "canonical")]
            assert (table.n_read, table.dropped) == (4, {"another_entry_of_the_gene": 3})

    def test_species_priority(self, tmp_path: Path) -> None:
        protein = only(write(tmp_path, UNIPROT), species_priority=("mouse", "human"))
        assert (protein.symbol, protein.accession, protein.chosen_by) == ("Sox2", "P48432", "species")

    @pytest.mark.parametrize(
        ("text", "accession", "rule"),
        [
            (">x1 gene=A protein_id=Z\nMKVL\n>x2 gene=A protein_id=B\nMK\n", "Z", "longest"),
            (">x1 gene=A protein_id=Z\nMK\n>x2 gene=A protein_id=B\nMK\n", "B", "accession"),
            (">x1 gene=A\nMK\n", "x1", "only entry"),
        ],
    )
    def test_rules(self, tmp_path: Path, text: str, accession: str, rule: str) -> None:
        protein = only(write(tmp_path, text))
        assert (protein.accession, protein.chosen_by) == (accession, rule)

    def test_folder_names_the_gene_and_subfolders_count(self, tmp_path: Path) -> None:
        write(tmp_path, ">x\nMKV\n", "all/NKX3-1.NKX31_HUMAN.fasta")
        write(tmp_path, ">x\nMKW\n", "all/deep/ETV1.ETV1_MOUSE.fasta")
        write(tmp_path, ">sp|P5|ETV1_HUMAN x OX=9606 GN=ETV1\nMKL\n", "all/ETV1.P5.fasta.gz")
        write(tmp_path, "x", "all/readme.txt")
        table = read_proteins(tmp_path / "all")
        assert [(p.symbol, p.sequence, p.species) for p in table.chosen] == [
            ("ETV1", "MKL", "human"),
            ("NKX3-1", "MKV", "human"),
        ]

    def test_folder_without_fasta(self, tmp_path: Path) -> None:
        with pytest.raises(ProteinError, match="no FASTA files"):
            read_proteins(tmp_path)


class TestSequences:
    @pytest.mark.parametrize("letter", ["\u00df", "\ufb01", "\u0131", "\u017f", "\u212a", "\uff2d"])
    def test_letters_of_other_alphabets_do_not_become_amino_acids(self, tmp_path: Path, letter: str) -> None:
        # upper() makes SS, FI, I and S of the first four
        with pytest.raises(ProteinError, match=r"A: letter .* at residue 3 is no amino acid"):
            read_proteins(write(tmp_path, f">a gene=A\nMK{letter}V\n"))

    @pytest.mark.parametrize("symbol", ["\x1b[31mSOX2", "SOX2\u202e", "S" * 129])
    def test_what_is_no_symbol_is_refused(self, tmp_path: Path, symbol: str) -> None:
        (tmp_path / "a.fa").write_text(f">x GN={symbol}\nMKVL\n", encoding="utf-8")
        with pytest.raises(ProteinError, match="is no gene's symbol") as caught:
            read_proteins(tmp_path / "a.fa")
        assert str(caught.value).isascii()

    def test_a_line_that_would_fill_the_memory_is_refused_on_the_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(textfiles, "LONGEST_LINE_BYTES", 1 << 20)
        monkeypatch.setattr(textfiles, "CHUNK_BYTES", 1 << 16)
        (tmp_path / "a.fa.gz").write_bytes(gzip.compress(b">x GN=A\n" + b"M" * (1 << 26)))
        tracemalloc.start()
        try:
            with pytest.raises(ProteinError, match="a line of more than"):
                read_proteins(tmp_path / "a.fa.gz")
            assert tracemalloc.get_traced_memory()[1] < 1 << 24
        finally:
            tracemalloc.stop()

    def test_a_record_as_long_as_a_genome_is_refused_before_it_fills_the_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.fa.gz"
        with gzip.open(path, "wt") as file:
            file.write(">a gene=A\n" + ("M" * 1000 + "\n") * 200)
        with pytest.raises(ProteinError, match="a record of more than 100,000 letters is no protein") as caught:
            read_proteins(path)
        assert caught.value.where == f"{path}:1"

    @pytest.mark.parametrize(
        ("text", "clean"), [("mkv*", "MKV"), ("M-K.V", "MKV"), ("MKU BXZOJ", "MKUBXZOJ"), ("M*K*", "M*K"), ("", "")]
    )
    def test_rule(self, text: str, clean: str) -> None:
        assert clean_sequence(text) == clean

    @pytest.mark.parametrize(
        ("sequence", "what"),
        [
            ("MK1V", "A: letter '1' at residue 3 is no amino acid"),
            ("MK*V", "A: letter '*' at residue 3 is no amino acid"),
            ("MKÄ", "A: letter 'Ä' at residue 3 is no amino acid"),
            ("", "A: the sequence is empty"),
            ("*", "A: the sequence is empty"),
        ],
    )
    def test_bad_ones_are_refused_with_gene_residue_and_line(self, tmp_path: Path, sequence: str, what: str) -> None:
        path = write(tmp_path, f">B\nMK\n>A\n{sequence}\n")
        with pytest.raises(ProteinError) as caught:
            read_proteins(path)
        assert (caught.value.what, caught.value.where) == (what, f"{path}:3")
        table = read_proteins(path, drop_bad=True)
        assert [p.symbol for p in table.chosen] == ["B"]
        assert table.dropped == {"bad_sequence": 1}

    @pytest.mark.parametrize(("text", "what"), [("", "no sequence"), ("MKV\n", "does not begin with '>'")])
    def test_no_fasta(self, tmp_path: Path, text: str, what: str) -> None:
        with pytest.raises(ProteinError, match=what):
            read_proteins(write(tmp_path, text))

    def test_dna_is_no_protein(self, tmp_path: Path) -> None:
        with pytest.raises(ProteinError, match="DNA or RNA"):
            read_proteins(write(tmp_path, ">chrI\n" + "ACGTN" * 20))


class TestSynonyms:
    SGD = "S000000871\tORF\tVerified\tYER069W\tARG5,6\targC|argB|two words\tx\nS000031098\tCDS\t\t\t\t\tYAL069W\n"

    def test_sgd(self, tmp_path: Path) -> None:
        pairs = read_synonyms(write(tmp_path, self.SGD, "s.tab.gz"))
        assert pairs == [("YER069W", "ARG5,6"), ("argB", "ARG5,6"), ("argC", "ARG5,6"), ("two words", "ARG5,6")]

    def test_a_known_symbol_is_the_symbol_whatever_the_file_prefers(self, tmp_path: Path) -> None:
        pairs = read_synonyms(write(tmp_path, self.SGD), known_symbols=["YER069W"])
        assert ("ARG5,6", "YER069W") in pairs

    def test_hgnc(self, tmp_path: Path) -> None:
        text = 'hgnc_id\tsymbol\talias_symbol\tprev_symbol\nH:1\tNKX3-1\t"NKX3.1|BAPX2"\tNKX3A\nH:2\tSOX2\t\t\n'
        assert read_synonyms(write(tmp_path, text)) == [
            ("BAPX2", "NKX3-1"),
            ("NKX3.1", "NKX3-1"),
            ("NKX3A", "NKX3-1"),
        ]

    @pytest.mark.parametrize("header", ["", "synonym\tsymbol\n"])
    def test_two_columns(self, tmp_path: Path, header: str) -> None:
        assert read_synonyms(write(tmp_path, f"{header}OCT4\tPOU5F1\n")) == [("OCT4", "POU5F1")]

    def test_anything_else_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match="not a synonym table"):
            read_synonyms(write(tmp_path, "a\tb\tc\n"))

    def test_shared_synonyms_and_symbols_are_left_out(self) -> None:
        pairs = [("p", "A"), ("p", "B"), ("q", "A"), ("B", "A")]
        assert unambiguous(pairs, ["A", "B"]) == {"q": "A"}


class TestSimilarity:
    def test_same_related_other_and_short(self) -> None:
        alike = kmer_similarity(["MKVLAWWQ", "MK"], ["MKVLAWWQ", "MKVLAGGG", "PPPPPPPP", "MK"])
        assert alike.dtype == np.float32
        assert alike[0, 0] == pytest.approx(1)
        assert alike[0, 1] == pytest.approx(0.5)  # 3 of 6 k-mers
        assert alike[0, 2] == 0
        assert alike[1].tolist() == [0, 0, 0, 0]

    def test_unknown_residues_belong_to_no_kmer(self) -> None:
        assert kmer_similarity(["XXXX"], ["XXXX"]).tolist() == [[0.0]]

    def test_single_linkage(self) -> None:
        chain = ["MKVLAWWQ", "PPPPPPPP", "MKVLAGGG", "HHHLAGGG", "PPPPPPPA"]
        assert clusters(chain, 0.45).tolist() == [0, 1, 0, 0, 1]
        assert clusters(chain, 0.9).tolist() == [0, 1, 2, 3, 1]
        assert clusters(chain, 0.999).tolist() == [0, 1, 2, 3, 4]
        assert clusters([], 0.5).tolist() == []


@pytest.mark.real_data
class TestRealProteins:
    def test_yeast(self, data_dir: Path) -> None:
        folder = data_dir / "yeast_sacCer3"
        table = read_proteins(folder / "sacCer3.proteins.fa.gz")
        assert (table.n_read, table.dropped) == (5983, {})
        by_symbol = {protein.symbol: protein for protein in table.chosen}
        assert len(by_symbol["ARG5,6"].sequence) == 863
        assert by_symbol["IMP2'"].sequence != by_symbol["IMP2"].sequence
        assert sum(len(p.sequence) > 1022 for p in table.chosen) > 63
        pairs = [*table.synonyms, *read_synonyms(folder / "SGD_features_170331.tab.gz", known_symbols=by_symbol)]
        names = unambiguous(pairs, by_symbol)
        assert names["YER069W"] == "ARG5,6"
        assert names["AOR1"] == "SWC5"

    def test_human(self, data_dir: Path) -> None:
        table = read_proteins(data_dir / "human_hg19_chr22" / "lambert_human_TF_proteins.uniprot.fa.gz")
        assert table.n_read == 1613
        assert len(table.chosen) + sum(table.dropped.values()) == 1613
        assert {p.species for p in table.chosen} == {"human"}
        ctcf = next(p for p in table.chosen if p.symbol == "CTCF")
        assert (ctcf.accession, ctcf.reviewed, len(ctcf.sequence)) == ("P49711", True, 727)
