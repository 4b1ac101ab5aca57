"""Tests of the name parser: one table of names as ReMap, ENCODE and the yeast community write them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfbind_store.errors import NameParseError
from tfbind_store.names import (
    chromosome_aliases,
    near_miss,
    parse_experiment_name,
    parse_factor_name,
    path_safe_name,
    roman_number,
    split_treatment,
    to_roman,
)

SYMBOLS = """
    SOX2 CTCF PAX3 FOXO1 SMAD2 SMAD3 SMAD4 NKX2-1 NKX2-5 NKX3-1 NKX6-1 HLA-A HLA-DRA ERVK3-1 ZNF8 SS18 SSX1 RXRA
    RXRB STAT5A STAT5B NFYA NFYB POLR2A ZNF580 TP53 ESR1 AR RARA EWSR1 FLI1 MYC MAX GATA1 TAL1 BCL11A KMT2A AFF1 RUNX1
    H3-3A H2AZ1 E2F1 ERG TMPRSS2 C11orf30 BRD4 NR3C1 T ARG5,6 IMP2'
"""
HUMAN = frozenset(SYMBOLS.split())
SYNONYMS = {"BRG1": "SMARCA4", "OCT4": "POU5F1", "NKX3.1": "NKX3-1", "GR": "NR3C1", "H2A.Z": "H2AZ1", "MLL": "KMT2A"}

FACTORS = [
    # name, genes, modification
    ("SOX2", ("SOX2",), None),
    ("sox2", ("SOX2",), None),
    ("CTCF", ("CTCF",), None),
    ("PAX3-FOXO1", ("PAX3", "FOXO1"), None),
    ("PAX3-FOXO1_K4ac", ("PAX3", "FOXO1"), "K4ac"),
    ("PAX3::FOXO1", ("PAX3", "FOXO1"), None),
    ("EWSR1-FLI1", ("EWSR1", "FLI1"), None),
    ("SMAD2-3", ("SMAD2", "SMAD3"), None),
    ("SMAD2-3-4", ("SMAD2", "SMAD3", "SMAD4"), None),
    ("SMAD2/3", ("SMAD2", "SMAD3"), None),
    ("SMAD2-SMAD3", ("SMAD2", "SMAD3"), None),
    ("SMAD2-3_S465ph", ("SMAD2", "SMAD3"), "S465ph"),
    ("STAT5A-B", ("STAT5A", "STAT5B"), None),
    ("STAT5A-5B", ("STAT5A", "STAT5B"), None),
    ("NFYA-NFYB", ("NFYA", "NFYB"), None),
    ("NKX3-1", ("NKX3-1",), None),
    ("NKX6-1", ("NKX6-1",), None),
    ("NKX2-5", ("NKX2-5",), None),
    ("NKX2-1_dox", ("NKX2-1",), "dox"),
    ("NKX3.1", ("NKX3-1",), None),
    ("HLA-A", ("HLA-A",), None),
    ("HLA-DRA", ("HLA-DRA",), None),
    ("HLA-B", ("HLA-B",), None),
    ("ERVK3-1", ("ERVK3-1",), None),
    ("ZNF8-ERVK3-1", ("ZNF8", "ERVK3-1"), None),
    ("ERVK3-1-ZNF8", ("ERVK3-1", "ZNF8"), None),
    ("NKX3-1-FOXO1-HLA-A", ("NKX3-1", "FOXO1", "HLA-A"), None),
    ("SS18-SSX", ("SS18", "SSX"), None),
    ("SS18-SSX1", ("SS18", "SSX1"), None),
    ("RXR", ("RXRA",), None),
    ("RXR_x", ("RXRA",), "x"),
    ("RARA-RXR", ("RARA", "RXRA"), None),
    ("SOX2_K4ac", ("SOX2",), "K4ac"),
    ("TP53_S15ph", ("TP53",), "S15ph"),
    ("AR_a_b", ("AR",), "a_b"),
    ("POLR2AphosphoS5", ("POLR2A",), "phosphoS5"),
    ("eGFP-ZNF580", ("ZNF580",), None),
    ("3xFLAG-CTCF", ("CTCF",), None),
    ("BRG1", ("SMARCA4",), None),
    ("OCT4-SOX2", ("POU5F1", "SOX2"), None),
    ("GR_phospho", ("NR3C1",), "phospho"),
    ("H2A.Z", ("H2AZ1",), None),
    ("MLL-AFF1", ("KMT2A", "AFF1"), None),
    ("H3-3A", ("H3-3A",), None),
    ("C11orf30", ("C11orf30",), None),
    ("ARG5,6", ("ARG5,6",), None),
    ("IMP2'", ("IMP2'",), None),
    ("T", ("T",), None),
    # not all of it is known: nothing is cut off or invented
    ("PAX3-NCOA1", ("PAX3", "NCOA1"), None),
    ("NCOA9-PAX3", ("NCOA9", "PAX3"), None),
    ("PAX3-ZZZ3-1", ("PAX3", "ZZZ3-1"), None),
    ("CTCF-2", ("CTCF-2",), None),
    ("NKX9-9", ("NKX9-9",), None),
    ("XXX_K4ac", ("XXX",), "K4ac"),
    ("XX-YY_K4ac", ("XX-YY",), "K4ac"),
    ("-", ("-",), None),
    ("SOX2-", ("SOX2-",), None),
    ("_", ("_",), None),
    ("SOX2_", ("SOX2_",), None),
]

EXPERIMENTS = [
    # raw, accession, factor, genes, modification, biotype, base, treatment
    ("GSE1.SOX2.H1-hESC", "GSE1", "SOX2", ("SOX2",), None, "H1-hESC", "H1-hESC", None),
    ("GSE1.CTCF.U2.OS", "GSE1", "CTCF", ("CTCF",), None, "U2.OS", "U2.OS", None),
    ("GSE1.NR3C1.U2.OS_dex.1h", "GSE1", "NR3C1", ("NR3C1",), None, "U2.OS_dex.1h", "U2.OS", "dex.1h"),
    ("GSE1.ESR1.MCF-7_E2", "GSE1", "ESR1", ("ESR1",), None, "MCF-7_E2", "MCF-7", "E2"),
    ("GSE1.ESR1.MCF-7_E2_1h", "GSE1", "ESR1", ("ESR1",), None, "MCF-7_E2_1h", "MCF-7", "E2_1h"),
    ("ENCSR000AHD.CTCF.MCF-7", "ENCSR000AHD", "CTCF", ("CTCF",), None, "MCF-7", "MCF-7", None),
    ("ERP1-x.SOX2_K4ac.A549", "ERP1-x", "SOX2_K4ac", ("SOX2",), "K4ac", "A549", "A549", None),
    ("GSE1.H2A.Z.K-562", "GSE1", "H2A.Z", ("H2AZ1",), None, "K-562", "K-562", None),
    ("GSE1.NKX3.1.LNCaP_R1881", "GSE1", "NKX3.1", ("NKX3-1",), None, "LNCaP_R1881", "LNCaP", "R1881"),
    ("GSE147927.ARG5,6.BY4741", "GSE147927", "ARG5,6", ("ARG5,6",), None, "BY4741", "BY4741", None),
    ("GSE147927.IMP2'.BY4741", "GSE147927", "IMP2'", ("IMP2'",), None, "BY4741", "BY4741", None),
    ("GSE1.PAX3-FOXO1.RH4", "GSE1", "PAX3-FOXO1", ("PAX3", "FOXO1"), None, "RH4", "RH4", None),
    ("GSE1.SOX2.CD4+ T cell, naive", "GSE1", "SOX2", ("SOX2",), None, "CD4+ T cell, naive", "CD4+ T cell, naive", None),
]


class TestFactors:
    @pytest.mark.parametrize(("name", "genes", "modification"), FACTORS)
    def test_table(self, name: str, genes: tuple[str, ...], modification: str | None) -> None:
        assert parse_factor_name(name, known_symbols=HUMAN, synonyms=SYNONYMS) == (genes, modification)

    def test_without_known_symbols_nothing_is_split(self) -> None:
        for name in ("PAX3-FOXO1", "NKX3-1", "SMAD2-3", "HLA-A", "ZNF8-ERVK3-1", "ARG5,6"):
            assert parse_factor_name(name).genes == (name,)
        assert parse_factor_name("SOX2_K4ac") == (("SOX2",), "K4ac")

    def test_a_symbol_wins_over_a_synonym_of_the_same_spelling(self) -> None:
        assert parse_factor_name("GR", known_symbols={"GR", "NR3C1"}, synonyms={"GR": "NR3C1"}).genes == ("GR",)

    def test_a_callers_synonym_wins_over_the_built_in_one(self) -> None:
        assert parse_factor_name("RXR", known_symbols={"RXRA", "RXRB"}, synonyms={"RXR": "RXRB"}).genes == ("RXRB",)

    def test_mouse_symbols_are_found_from_upper_case(self) -> None:
        assert parse_factor_name("SOX2", known_symbols={"Sox2"}).genes == ("Sox2",)
        assert parse_factor_name("RXR", known_symbols={"Rxra"}).genes == ("Rxra",)

    def test_factor_name_of_a_complex(self) -> None:
        assert parse_factor_name("SMAD2-3_ph", known_symbols=HUMAN).factor == "SMAD2-SMAD3"

    def test_empty_is_refused(self) -> None:
        with pytest.raises(NameParseError, match="empty"):
            parse_factor_name(" ")

    @given(st.lists(st.sampled_from(sorted(HUMAN - {"T"})), min_size=1, max_size=4))
    def test_a_complex_of_known_symbols_keeps_every_member(self, members: list[str]) -> None:
        assert "-".join(parse_factor_name("-".join(members), known_symbols=HUMAN).genes) == "-".join(members)

    @given(st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())))
    def test_any_text_gives_genes_that_are_not_empty(self, name: str) -> None:
        assert all(parse_factor_name(name, known_symbols=HUMAN, synonyms=SYNONYMS).genes)


class TestExperiments:
    @pytest.mark.parametrize("row", EXPERIMENTS, ids=lambda row: row[0])
    def test_table(self, row: tuple[object, ...]) -> None:
        assert parse_experiment_name(str(row[0]), known_symbols=HUMAN, synonyms=SYNONYMS) == row

    @pytest.mark.parametrize("raw", ["", "SOX2", "GSE1.SOX2", "GSE1..A549", ".SOX2.A549", "GSE1.SOX2.", " a.b.c"])
    def test_refusals(self, raw: str) -> None:
        with pytest.raises(NameParseError, match=r"is not ACCESSION\.FACTOR\.BIOTYPE"):
            parse_experiment_name(raw)

    @pytest.mark.parametrize(
        ("biotype", "parts"),
        [
            ("MCF-7_E2", ("MCF-7", "E2")),
            ("MCF-7_E2_1h", ("MCF-7", "E2_1h")),
            ("A549", ("A549", None)),
            ("_x", ("_x", None)),
            ("x_", ("x_", None)),
            ("K562+IFNg", ("K562", "IFNg")),
            ("K562 + IFNg", ("K562", "IFNg")),
            ("+x", ("+x", None)),
            ("CD34+", ("CD34+", None)),
            ("CD4+CD25+ T cell", ("CD4+CD25+ T cell", None)),
            ("CD4+ T cell", ("CD4+ T cell", None)),
            ("T cell CD8a+ naive", ("T cell CD8a+ naive", None)),
            ("CD34+_GATA1", ("CD34+", "GATA1")),
            ("HepG2 (FOXA1 KO)", ("HepG2", "FOXA1 KO")),
            ("(x)", ("(x)", None)),
            ("K562 (a) b", ("K562 (a) b", None)),
            ("MCF-7 treated with estradiol", ("MCF-7", "estradiol")),
            ("MCF-7, Treated with 10 nM estradiol for 1 hour", ("MCF-7", "10 nM estradiol for 1 hour")),
            ("MCF-7 untreated", ("MCF-7", "untreated")),
            ("K562 genetically modified using CRISPR", ("K562", "genetically modified using CRISPR")),
            ("HEK293 stably expressing GFP-CTCF", ("HEK293", "stably expressing GFP-CTCF")),
            ("HCT116 CTCF KO", ("HCT116", "CTCF KO")),
            ("HCT116 WT", ("HCT116", "WT")),
            ("HeLa siCTCF", ("HeLa", "siCTCF")),
            ("smooth muscle cell", ("smooth muscle cell", None)),
            ("left shoulder skin", ("left shoulder skin", None)),
            ("withers", ("withers", None)),
            ("liver male adult (34 years)", ("liver male adult (34 years)", None)),
        ],
    )
    def test_treatment(self, biotype: str, parts: tuple[str, str | None]) -> None:
        assert split_treatment(biotype) == parts


class TestChromosomes:
    def test_roman_genome(self) -> None:
        chroms = [f"chr{to_roman(n)}" for n in range(1, 17)] + ["chrM"]
        aliases = chromosome_aliases(chroms)
        for alias, chrom in [
            ("chr1", "chrI"), ("1", "chrI"), ("I", "chrI"), ("01", "chrI"), ("chr10", "chrX"), ("X", "chrX"),
            ("Chr16", "chrXVI"), ("Mito", "chrM"), ("chrMT", "chrM"), ("MT", "chrM"), ("chrmt", "chrM"),
        ]:  # fmt: skip
            assert aliases[alias] == chrom
        assert not set(aliases) & set(chroms)

    def test_human_genome(self) -> None:
        chroms = [*(f"chr{n}" for n in range(1, 23)), "chrX", "chrY", "chrM"]
        aliases = chromosome_aliases(chroms)
        assert (aliases["1"], aliases["X"], aliases["MT"]) == ("chr1", "chrX", "chrM")
        assert {"II", "chrXXII", "chr23"}.isdisjoint(aliases)

    def test_names_without_prefix(self) -> None:
        aliases = chromosome_aliases(["2L", "2R", "4", "X", "mitochondrion_genome"])
        assert (aliases["chr2L"], aliases["chrX"], aliases["chr4"]) == ("2L", "X", "4")

    def test_a_sex_chromosome_that_was_left_out_does_not_become_the_tenth(self) -> None:
        for chroms in (["chr10"], [f"chr{n}" for n in range(1, 23)], ["I", "II", "III", "IV", "V"]):
            assert {"X", "chrX"}.isdisjoint(chromosome_aliases(chroms))

    def test_x_of_a_worm_is_no_ten(self) -> None:
        aliases = chromosome_aliases(["I", "II", "III", "IV", "V", "X"])
        assert (aliases["chrX"], aliases["chrI"], aliases["chr1"]) == ("X", "I", "I")
        assert "10" not in aliases

    def test_arabic_genome_takes_roman_names(self) -> None:
        aliases = chromosome_aliases(["1", "2", "3"])
        assert (aliases["chrIII"], aliases["II"]) == ("3", "2")

    def test_a_part_of_a_roman_genome(self) -> None:
        aliases = chromosome_aliases(["chrIV", "chrXVI"])
        assert (aliases["chr4"], aliases["16"]) == ("chrIV", "chrXVI")

    def test_an_alias_that_fits_two_is_left_out(self) -> None:
        aliases = chromosome_aliases(["chr1", "Chr1", "a"])
        assert {"1", "CHR1"}.isdisjoint(aliases)
        assert aliases["chra"] == "a"

    @given(st.integers(1, 399))
    def test_roman_numbers_round_trip(self, number: int) -> None:
        assert roman_number(to_roman(number)) == number

    @pytest.mark.parametrize("text", ["", "IIX", "IIII", "A", "VX", "i"])
    def test_no_roman_numbers(self, text: str) -> None:
        assert roman_number(text) is None


class TestNearMiss:
    @pytest.mark.parametrize(
        ("name", "close"), [("NKX3.1", "NKX3-1"), ("sox2", "SOX2"), ("SMARCA", None), ("FOX01", "FOXO1")]
    )
    def test_table(self, name: str, close: str | None) -> None:
        assert near_miss(name, ["NKX3-1", "SOX2", "FOXO1"]) == close


class TestPathSafeNames:
    @pytest.mark.parametrize("name", ["a", "hg38.v2", "run-1_x", "9", "a" * 64, "CONS", "com10"])
    def test_accepted(self, name: str) -> None:
        assert path_safe_name(name) == name

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "../x", "/abs", "a//b", "a/b", "a\0", "a" * 65, "CON", "nul.txt", "-x", "_x", "a\n", "\u202ea",
         "é", "a b", "a\\b"],
    )  # fmt: skip
    def test_refused(self, name: str) -> None:
        with pytest.raises(NameParseError, match="cannot become a path"):
            path_safe_name(name)

    @given(st.text(max_size=80))
    def test_whatever_is_accepted_stays_inside_the_folder(self, name: str) -> None:
        try:
            path_safe_name(name)
        except NameParseError:
            return
        root = Path("/store/selections")
        assert (root / name).resolve().parent == root


@pytest.mark.real_data
class TestRealNames:
    def test_every_human_factor_stands_for_itself_alone_tagged_modified_and_in_a_complex(self, data_dir: Path) -> None:
        fasta = data_dir / "human_hg19_chr22" / "lambert_human_TF_proteins.uniprot.fa.gz"
        with gzip.open(fasta, "rt", encoding="utf-8") as file:
            headers = [line for line in file if line.startswith(">")]
        symbols = {match[1] for line in headers if (match := re.search(r" GN=(\S+)", line))}
        assert len(headers) == 1613
        assert len(symbols) > 1600
        for symbol in symbols:
            assert parse_factor_name(symbol, known_symbols=symbols) == ((symbol,), None)
            assert parse_factor_name(f"{symbol}_K4ac", known_symbols=symbols) == ((symbol,), "K4ac")
            assert parse_factor_name(f"eGFP-{symbol}", known_symbols=symbols) == ((symbol,), None)
            assert parse_factor_name(f"CTCF-{symbol}", known_symbols=symbols) == (("CTCF", symbol), None)
            raw = f"GSE1.{symbol}.U2.OS_dex"
            parsed = parse_experiment_name(raw, known_symbols=symbols)
            assert parsed[3:] == ((symbol,), None, "U2.OS_dex", "U2.OS", "dex")
