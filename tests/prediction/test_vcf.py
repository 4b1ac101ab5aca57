"""Rows of VCFs as people and programs write them: every allele comes out, with a reason where it cannot be scored."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tfbind_store.errors import VariantFileError
from tfbind_store.prediction.vcf import Variant, VcfRow, read_vcf

HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
NASTY = [
    # POS, REF, ALT, reason of each allele
    ("10", "A", "C", [""]),
    ("10", "a", "c", [""]),
    ("10", "A", "C,G,T", ["", "", ""]),
    ("10", "A", "C,A", ["", "same_as_ref"]),
    ("10", "A", "a", ["same_as_ref"]),
    ("10", "A", "AN", [""]),
    ("10", "N", "A", [""]),
    ("10", "AC", "A", [""]),
    ("10", "A", "ACGT", [""]),
    ("10", "A", "*", ["symbolic_allele"]),
    ("10", "A", "C,*", ["", "symbolic_allele"]),
    ("10", "A", "<*>", ["symbolic_allele"]),
    ("10", "A", "<DEL>", ["symbolic_allele"]),
    ("10", "A", "<DUP:TANDEM>,G", ["symbolic_allele", ""]),
    ("10", "G", "G]17:198982]", ["symbolic_allele"]),
    ("10", "T", "]13:123456]T", ["symbolic_allele"]),
    ("10", "C", "C[2:321682[", ["symbolic_allele"]),
    ("10", "C", "[<ctg1>:7[C", ["symbolic_allele"]),
    ("10", "C", "C.", ["symbolic_allele"]),
    ("10", "C", ".C", ["symbolic_allele"]),
    ("10", "C", ".", ["symbolic_allele"]),
    ("10", "C", "", ["bad_alt"]),
    ("10", "C", "A,", ["", "bad_alt"]),
    ("10", "C", "R", ["bad_alt"]),
    ("10", "C", "A C", ["bad_alt"]),
    ("10", "R", "A", ["bad_ref"]),
    ("10", "", "A", ["bad_ref"]),
    ("10", ".", "A", ["bad_ref"]),
    ("0", "N", "A", ["off_chromosome"]),
    ("99999999999999", "A", "C", [""]),  # the genome decides
]


def variants(path: Path) -> list[Variant]:
    return [variant for item in read_vcf(path) if isinstance(item, VcfRow) for variant in item.variants]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_allele_comes_out_with_its_reason(tmp_path: Path, line_end: str, packed: bool) -> None:
    rows = [f"chr1\t{position}\tr{n}\t{ref}\t{alt}\t.\t.\t." for n, (position, ref, alt, _) in enumerate(NASTY)]
    content = (HEADER + "\n".join([*rows, "", ""])).replace("\n", line_end).encode()
    path = tmp_path / ("v.vcf.gz" if packed else "v.vcf")
    # two members, as bgzip and a joined file have them
    path.write_bytes(gzip.compress(content[:200]) + gzip.compress(content[200:]) if packed else content)
    found: dict[str, list[Variant]] = {}
    for variant in variants(path):
        found.setdefault(variant.name, []).append(variant)
    assert len(found) == len(NASTY)
    for n, (position, ref, alt, reasons) in enumerate(NASTY):
        own = found[f"r{n}"]
        assert [variant.reason for variant in own] == reasons, (position, ref, alt)
        assert [variant.allele for variant in own] == list(range(1, len(reasons) + 1))
        assert {variant.start for variant in own} == {int(position) - 1}
        assert {variant.line for variant in own} == {n + 3}
        assert {variant.ref for variant in own} == {ref.upper()}


def test_text_of_a_row_is_kept_as_it_is(tmp_path: Path) -> None:
    row = "chr1\t10\t.\ta\tc,<DEL>\t.\tq10;s50\tDP=4;END=9\tGT:AD\t0|1:3,4"
    (tmp_path / "v.vcf").write_text(HEADER + row + "\n")
    header, columns, found = list(read_vcf(tmp_path / "v.vcf"))
    assert (header, columns) == tuple(HEADER.splitlines())
    assert isinstance(found, VcfRow)
    assert found.text == row


@pytest.mark.parametrize(
    ("content", "said", "line"),
    [
        (HEADER + "chr1\t10\t.\tA\n", "a row needs", 3),
        (HEADER + "chr1\t1e3\t.\tA\tC\n", "POS is '1e3', no number", 3),
        (HEADER + "chr1\t-5\t.\tA\tC\n", "POS is", 3),
        (HEADER + "chr1\t10\t.\tA\tC\n" + "chr1 11 . A C\n", "a row needs", 4),
        ("chr1\t10\t.\tA\tC\n", "no header line", 1),
        ("", "no header line", None),
    ],
)
def test_what_is_no_row_is_refused_with_its_line(tmp_path: Path, content: str, said: str, line: int | None) -> None:
    path = tmp_path / "v.vcf"
    path.write_text(content)
    with pytest.raises(VariantFileError, match=said) as caught:
        variants(path)
    assert str(caught.value.where).endswith(f":{line}" if line else "v.vcf")


def test_a_cut_gzip_is_told_and_not_taken_for_the_end(tmp_path: Path) -> None:
    rows = "".join(f"chr1\t{n}\t.\tA\tC\t.\t.\tX={n * 7919 % 1009}\n" for n in range(1, 5000))
    packed = gzip.compress((HEADER + rows).encode())
    path = tmp_path / "v.vcf.gz"
    path.write_bytes(packed)
    assert len(variants(path)) == 4999
    for cut in (len(packed) // 2, len(packed) - 6):  # within the data; within the checksum
        path.write_bytes(packed[:cut])
        with pytest.raises(VariantFileError):
            variants(path)
    path.write_bytes(packed[:2000] + b"\xff" * 40 + packed[2040:])
    with pytest.raises(VariantFileError):
        variants(path)
