"""Tests of peak files: formats, summits, headers, and the number of the line that is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tfbind_store.errors import PeakFileError
from tfbind_store.peaks import CleanFile, PeakFormat, clean_rows, first_bad_line, sniff

BED = "chr1\t5\t9\tGSE1.SOX2.H1\t10\t.\n"
NARROW = "chr1\t5\t9\tGSE1.SOX2.H1\t10\t.\t3.5\t-1.0\t2\t2\n"
REMAP = "chr1\t5\t9\tGSE1.SOX2.H1\t10\t.\t6\t7\t0,0,255\n"


def cleaned(folder: Path, data: str | bytes, name: str = "p.bed", **options: PeakFormat) -> tuple[CleanFile, str]:
    source = folder / name
    source.write_bytes(data.encode() if isinstance(data, str) else data)
    clean = clean_rows(source, **options)
    return clean, b"".join(block.text for block in clean.blocks()).decode()


class TestSniff:
    @pytest.mark.parametrize(
        ("line", "format"),
        [
            ("chr1\t5\t9\n", PeakFormat.BED),
            (BED, PeakFormat.BED),
            (NARROW, PeakFormat.NARROW_PEAK),
            (NARROW.replace("\t2\n", "\t-1\n"), PeakFormat.NARROW_PEAK),
            (REMAP, PeakFormat.REMAP),
            ("chr1\t5\t9\tx\t10\t.\t3.5\t-1\t2\n", PeakFormat.BROAD_PEAK),
            ("chr1\t5\t9\tx\t10\t.\t3\t9\t2\n", PeakFormat.BROAD_PEAK),
            ("chr1\t5\t9\tx\t10\t.\tq\tr\ts\n", PeakFormat.BED),
            ("chr1\t5\t9\tx\t10\t.\t6\t7\t0,0,0\t1\t4\t0\n", PeakFormat.REMAP),
        ],
    )
    def test_table(self, line: str, format: PeakFormat) -> None:
        assert sniff([line.rstrip("\n").split("\t")]) is format

    def test_one_odd_row_makes_it_plain_bed(self) -> None:
        rows = [NARROW.split("\t"), BED.split("\t")]
        assert sniff(rows) is PeakFormat.BED
        assert sniff([]) is PeakFormat.BED


class TestCleanRows:
    def test_headers_comments_and_blank_lines_go_wherever_they_stand(self, tmp_path: Path) -> None:
        text = f"browser position chr1\ntrack name=x\n#c\n{BED}\n# c\n{BED}track\n{BED}"
        clean, copy = cleaned(tmp_path, text)
        assert copy == BED * 3
        assert (clean.n_rows, clean.n_headers, clean.n_columns) == (3, 6, 6)

    def test_a_chromosome_called_track_is_no_header(self, tmp_path: Path) -> None:
        assert cleaned(tmp_path, "tracks1\t1\t2\n")[0].n_rows == 1

    def test_column_names_without_hash(self, tmp_path: Path) -> None:
        clean, copy = cleaned(tmp_path, f"chrom\tchromStart\tchromEnd\tname\n{BED}")
        assert (clean.n_rows, clean.n_headers, copy) == (1, 1, BED)

    def test_crlf(self, tmp_path: Path) -> None:
        clean, copy = cleaned(tmp_path, (BED * 2).replace("\n", "\r\n"))
        assert (copy, clean.n_rows) == (BED * 2, 2)

    def test_crlf_and_missing_last_newline(self, tmp_path: Path) -> None:
        assert cleaned(tmp_path, (BED * 2).replace("\n", "\r\n")[:-2])[1] == BED * 2

    def test_blanks_for_tabs(self, tmp_path: Path) -> None:
        assert cleaned(tmp_path, "chr1  5 9 x\nchr1 6 9 y\n")[1] == "chr1\t5\t9\tx\nchr1\t6\t9\ty\n"

    def test_gz(self, tmp_path: Path) -> None:
        assert cleaned(tmp_path, gzip.compress(BED.encode()), "p.bed.gz")[1] == BED

    @pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
    def test_empty_files_have_no_rows(self, tmp_path: Path, text: str) -> None:
        clean, copy = cleaned(tmp_path, text)
        assert (clean.n_rows, clean.n_columns, clean.format, copy) == (0, 0, PeakFormat.BED, "")

    def test_lines_across_chunks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tfbind_store.textfiles.CHUNK_BYTES", 7)
        assert cleaned(tmp_path, (f"#x\n{BED}" * 5).replace("\n", "\r\n"))[1] == BED * 5

    @pytest.mark.parametrize(
        ("data", "name", "what"),
        [
            (gzip.compress(BED.encode() * 50, mtime=0)[:-9], "p.bed.gz", "truncated"),
            (b"chr1\t1\t2\tx\0\n", "p.bed", "NUL"),
            ("chr1\t1\t2\té\n".encode("latin-1"), "p.bed", "UTF-8"),
            (b"chr1\t1\nchr1\t2\n", "p.bed", "2 columns, bed has at least 3"),
        ],
    )
    def test_refusals(self, tmp_path: Path, data: bytes, name: str, what: str) -> None:
        with pytest.raises(PeakFileError) as caught:
            cleaned(tmp_path, data, name)
        assert what in caught.value.what
        assert str(tmp_path / name) in caught.value.where

    def test_absent_file(self, tmp_path: Path) -> None:
        with pytest.raises(PeakFileError, match="no such file"):
            clean_rows(tmp_path / "none")

    def test_asking_for_narrowpeak_of_a_bed_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PeakFileError, match="6 columns, narrowpeak has at least 10"):
            cleaned(tmp_path, BED, format=PeakFormat.NARROW_PEAK)


class TestFirstBadLine:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("chr1\t9\t9\tx", "end 9 <= start 9"),
            ("chr1\t10\t9\tx", "end 9 <= start 10"),
            ("chr1\t-1\t9\tx", "start '-1' is not a whole number of bp"),
            ("chr1\t1e3\t9000\tx", "start '1e3' is not a whole number of bp"),
            ("chr1\t1\t2.5\tx", "end '2.5' is not a whole number of bp"),
            ("chr1\t1\t\tx", "end '' is not a whole number of bp"),
            ("chr1\t1", "2 columns, expected at least 4"),
            ("chr1\t1\t2", "3 columns, expected at least 4"),
            ("chr1\t1\t2\t ", "no name in column 4"),
            ("\t1\t2\tx", "no chromosome in column 1"),
        ],
    )
    def test_number_counts_headers_too(self, tmp_path: Path, line: str, reason: str) -> None:
        path = tmp_path / "p.bed"
        path.write_text(f"track x\n{BED}#c\n\n{line}\n{BED}")
        assert first_bad_line(path, PeakFormat.BED, needs_name=True) == (5, reason)

    def test_a_good_file(self, tmp_path: Path) -> None:
        path = tmp_path / "p.bed.gz"
        path.write_bytes(gzip.compress(("chrom start end\n" + BED * 3).encode()))
        assert first_bad_line(path, PeakFormat.BED, needs_name=True) is None


@pytest.mark.real_data
class TestRealPeaks:
    def test_formats_and_rows(self, data_dir: Path, tmp_path: Path) -> None:
        yeast, human = data_dir / "yeast_sacCer3", data_dir / "human_hg19_chr22"
        for path, n_rows, format in [
            (yeast / "peaks.remap.bed.gz", 139_465, PeakFormat.BED),
            (yeast / "peaks_per_experiment" / "Kti12_CX.bed", 0, PeakFormat.BED),
            (human / "peaks.conservative.narrowPeak.gz", 48_466, PeakFormat.NARROW_PEAK),
        ]:
            clean = clean_rows(path)
            assert (sum(block.n_rows for block in clean.blocks()), clean.format) == (n_rows, format)
            assert first_bad_line(path, format, needs_name=n_rows > 0) is None
