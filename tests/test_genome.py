"""Tests of the genome: every way a FASTA can be odd, and the bytes that come out."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from tfbind_store.errors import GenomeError
from tfbind_store.genome import Genome, GenomeSource, iter_chromosomes, read_chrom_sizes, write_genome

FASTA = ">a first chromosome\nACGTN\nacgtn\nRY\n>b\nTTTT\n"
A_CODES = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 4, 4]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(FASTA)
    return path


def genome_of(fasta: Path) -> Genome:
    out = fasta.parent / "codes.u8"
    return Genome(out, write_genome(fasta, out).chromosomes)


class TestReading:
    def test_codes_of_both_cases_and_of_iupac_letters(self, fasta: Path) -> None:
        read = dict(iter_chromosomes(fasta))
        assert list(read) == ["a", "b"]
        assert read["a"].tolist() == A_CODES
        assert read["b"].tolist() == [3, 3, 3, 3]

    @pytest.mark.parametrize("members", [1, 3])
    def test_gzip_and_many_membered_bgzip_read_the_same(self, tmp_path: Path, members: int) -> None:
        path = tmp_path / "g.fa.gz"
        data = FASTA.encode()
        step = -(-len(data) // members)
        path.write_bytes(b"".join(gzip.compress(data[i : i + step]) for i in range(0, len(data), step)))
        assert dict(iter_chromosomes(path))["a"].tolist() == A_CODES

    def test_crlf_reads_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "g.fa"
        path.write_bytes(FASTA.replace("\n", "\r\n").encode())
        assert dict(iter_chromosomes(path))["a"].tolist() == A_CODES

    def test_last_line_without_newline(self, tmp_path: Path) -> None:
        path = tmp_path / "g.fa"
        path.write_text(">a\nAC\nGT\nA")
        assert dict(iter_chromosomes(path))["a"].tolist() == [0, 1, 2, 3, 0]

    def test_leaves_no_index_beside_the_file(self, fasta: Path) -> None:
        list(iter_chromosomes(fasta))
        assert [path.name for path in fasta.parent.iterdir()] == ["g.fa"]

    def test_a_fitting_index_is_accepted(self, fasta: Path) -> None:
        (fasta.parent / "g.fa.fai").write_text("a\t12\t20\t5\t6\nb\t4\t38\t4\t5\n")
        assert len(dict(iter_chromosomes(fasta))) == 2


class TestRefusals:
    def refused(self, path: Path) -> GenomeError:
        with pytest.raises(GenomeError) as caught:
            list(iter_chromosomes(path))
        assert str(path.parent) in caught.value.where
        return caught.value

    def write(self, folder: Path, text: str | bytes, name: str = "g.fa") -> Path:
        path = folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def test_truncated_gz(self, tmp_path: Path) -> None:
        whole = gzip.compress(np.random.default_rng(0).choice(list(b"ACGT"), 5000).astype(np.uint8).tobytes())
        path = self.write(tmp_path, whole[: len(whole) // 2], "g.fa.gz")
        assert "truncated" in self.refused(path).what

    def test_damaged_gz(self, tmp_path: Path) -> None:
        whole = bytearray(gzip.compress(FASTA.encode()))
        whole[-6] ^= 0xFF
        assert "damaged" in self.refused(self.write(tmp_path, bytes(whole), "g.fa.gz")).what

    def test_stale_index(self, fasta: Path) -> None:
        (fasta.parent / "g.fa.fai").write_text("a\t13\t20\t5\t6\nb\t4\t38\t4\t5\n")
        error = self.refused(fasta)
        assert "stale index" in error.what
        assert "13 bp" in error.what
        assert error.where.endswith("g.fa.fai")

    def test_unreadable_index(self, fasta: Path) -> None:
        (fasta.parent / "g.fa.fai").write_text("a\n")
        assert "cannot be read" in self.refused(fasta).what

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("", "empty"),
            ("ACGT\n", "'>'"),
            (">a\nACGT\n>b\n>c\nAC\n", "1 chromosomes are empty (first: b)"),
            (">a\nACGT\n>a\nAC\n", "twice"),
            (">a\nAC\nGTAA\nAC\n", "not a regular FASTA"),
        ],
    )
    def test_odd_files(self, tmp_path: Path, text: str, what: str) -> None:
        assert what in self.refused(self.write(tmp_path, text)).what

    def test_absent_file(self, tmp_path: Path) -> None:
        assert "no such file" in self.refused(tmp_path / "none.fa").what

    def test_protein_given_as_genome(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, ">p\nMKVLLEWWFFQQPPHH\n")
        with pytest.raises(GenomeError, match="is this DNA"):
            write_genome(path, tmp_path / "codes")
        assert not (tmp_path / "codes").exists()


class TestWriting:
    def test_what_was_not_acgt_is_counted_by_letter(self, fasta: Path) -> None:
        written = write_genome(fasta, fasta.parent / "codes")
        assert written.counted == {"N": 2, "R": 1, "Y": 1}
        info = written.chromosomes[0]
        assert (info.chrom, info.length_bp, info.n_bp, info.offset) == ("a", 12, 4, 0)
        assert info.md5 == hashlib.md5(b"ACGTNACGTNNN").hexdigest()
        assert written.chromosomes[1].offset == 12

    def test_only_keeps_the_order_of_the_file(self, fasta: Path) -> None:
        written = write_genome(fasta, fasta.parent / "codes", only=["b"])
        assert [info.chrom for info in written.chromosomes] == ["b"]
        assert written.counted == {"chromosomes left out": 1}

    def test_only_unknown_chromosome_is_refused(self, fasta: Path) -> None:
        with pytest.raises(GenomeError, match="not in the FASTA"):
            write_genome(fasta, fasta.parent / "codes", only=["chrX"])

    def test_chrom_sizes_of_another_assembly(self, fasta: Path) -> None:
        sizes = fasta.parent / "sizes"
        sizes.write_text("a\t12\nb\t5\n")
        with pytest.raises(GenomeError, match="b has 4 bp in the FASTA and 5 bp in the table"):
            write_genome(fasta, fasta.parent / "codes", chrom_sizes=sizes)
        sizes.write_text("a\t12\nb\t4\nc\t9\n")
        assert write_genome(fasta, fasta.parent / "codes2", chrom_sizes=sizes).notes

    def test_bad_chrom_sizes_name_the_line(self, tmp_path: Path) -> None:
        path = tmp_path / "sizes"
        path.write_text("a\t12\nb\n")
        with pytest.raises(GenomeError) as caught:
            read_chrom_sizes(path)
        assert caught.value.where == f"{path}:2"

    def test_an_existing_file_is_not_overwritten(self, fasta: Path) -> None:
        (fasta.parent / "codes").write_bytes(b"x")
        with pytest.raises(FileExistsError):
            write_genome(fasta, fasta.parent / "codes")


class TestGenome:
    def test_pads_outside_the_chromosome_and_never_reads_the_next(self, fasta: Path) -> None:
        genome = genome_of(fasta)
        assert genome.codes("a", -2, 14).tolist() == [5, 5, *A_CODES, 5, 5]
        assert genome.codes("b", 3, 6).tolist() == [3, 5, 5]
        assert genome.codes("a", 20, 22).tolist() == [5, 5]
        assert genome.codes("a", -9, -7).tolist() == [5, 5]
        assert genome.codes("a", 4, 4).size == 0
        genome.release()
        assert genome.codes("a", -2, 14).tolist() == [5, 5, *A_CODES, 5, 5]

    def test_base_counts_leave_the_outside_out(self, fasta: Path) -> None:
        genome = genome_of(fasta)
        assert genome.base_counts("a", -5, 100) == (4, 8, 4)
        assert genome.base_counts("a", 50, 100) == (0, 0, 0)
        assert genome.base_counts("b", 0, 2) == (0, 2, 0)

    def test_digest_hangs_on_names_order_and_bases(self, fasta: Path) -> None:
        first = genome_of(fasta).digest
        lines = "".join(f"{i.chrom}\t{i.length_bp}\t{i.md5}\n" for i in genome_of_again(fasta).chromosomes)
        assert first == hashlib.sha256(lines.encode()).hexdigest()
        fasta.write_text(FASTA.replace("TTTT", "TTTA"))
        (fasta.parent / "codes.u8").unlink()
        assert genome_of(fasta).digest != first

    def test_a_cut_codes_file_is_refused(self, fasta: Path) -> None:
        chromosomes = genome_of(fasta).chromosomes
        codes = fasta.parent / "codes.u8"
        codes.write_bytes(codes.read_bytes()[:-1])
        with pytest.raises(GenomeError, match="has 15 bytes, expected 16"):
            Genome(codes, chromosomes)

    def test_unknown_chromosome(self, fasta: Path) -> None:
        with pytest.raises(GenomeError, match="no chromosome 'chrA'"):
            genome_of(fasta).codes("chrA", 0, 1)


def genome_of_again(fasta: Path) -> Genome:
    out = fasta.parent / "again.u8"
    return Genome(out, write_genome(fasta, out).chromosomes)


@pytest.mark.real_data
class TestRealGenomes:
    def test_yeast(self, data_dir: Path, tmp_path: Path) -> None:
        folder = data_dir / "yeast_sacCer3"
        written = write_genome(
            folder / "sacCer3.nuclear.fa.gz",
            tmp_path / "codes",
            chrom_sizes=folder / "sacCer3.nuclear.chrom.sizes",
        )
        assert sum(info.length_bp for info in written.chromosomes) == 12_071_326
        assert [info.chrom for info in written.chromosomes][:3] == ["chrI", "chrII", "chrIII"]
        assert written.counted == {}

    def test_human_chr22_is_mostly_n_and_keeps_its_coordinates(self, data_dir: Path) -> None:
        with GenomeSource(data_dir / "human_hg19_chr22" / "hg19.chr22.part16-22Mb.fa.gz") as source:
            codes = source.codes("chr22")
        assert codes.size == 22_000_000
        assert 5_600_000 < int((codes < 4).sum()) < 5_800_000
