"""Tables of tracks: three kinds, told apart by their first line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfbind_store.errors import InputFileError
from tfbind_store.tracks.tables import file_of, read_annotation


def write(folder: Path, text: str) -> Path:
    path = folder / "table.tsv"
    path.write_text(text)
    return path


ATLAS = (
    "SRX1\thg38\tTFs and others\tCTCF\tBlood\tK-562\tdesc\t1,2\tTitle\ta=b\n"
    "SRX2\thg38\tATAC-Seq\tATAC-Seq\tNeural\tNeural progenitor cells\n"
    "SRX3\thg38\tTFs and others\tSOX2\tPluripotent stem cell\tH1\t" + "\t".join(f"k{i}=v" for i in range(40)) + "\n"
)


def test_a_chip_atlas_list_may_have_any_number_of_columns(tmp_path: Path) -> None:
    rows = read_annotation(write(tmp_path, ATLAS))
    assert [(row.track, row.factor, row.biotype, row.assay, row.assembly) for row in rows] == [
        ("SRX1", "CTCF", "K-562", "TFs and others", "hg38"),
        ("SRX2", None, "Neural progenitor cells", "ATAC-Seq", "hg38"),
        ("SRX3", "SOX2", "H1", "TFs and others", "hg38"),
    ]
    assert rows[2].metadata["column_46"] == "k39=v"


def test_the_cell_type_is_column_six_and_not_its_class(tmp_path: Path) -> None:
    assert read_annotation(write(tmp_path, ATLAS))[0].metadata["cell_type_class"] == "Blood"


def test_an_encode_table(tmp_path: Path) -> None:
    header = "File accession\tFile format\tFile assembly\tExperiment accession\tAssay\tBiosample term name"
    header += "\tBiosample treatments\tExperiment target\n"
    text = header + "ENCFF1\tbigWig\tGRCh38\tENCSR1\tTF ChIP-seq\tA549\tdexamethasone\tNKX2-1-human\n"
    text += "ENCFF2\tbed narrowPeak\tGRCh38\tENCSR1\tTF ChIP-seq\tA549\t\tCTCF-human\n"
    text += "ENCFF3\tbigWig\tGRCh38\tENCSR2\tDNase-seq\tHepG2\t\t\n"
    rows = read_annotation(write(tmp_path, text))
    assert [(row.track, row.factor, row.biotype, row.assay) for row in rows] == [
        ("ENCFF1", "NKX2-1", "A549_dexamethasone", "TF ChIP-seq"),
        ("ENCFF3", None, "HepG2", "DNase-seq"),
    ]


def test_our_own_table(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.bw").touch()
    (tmp_path / "b.bigWig").touch()
    row = "a\tdeep/x.bw\tREB1\tBY4741\tours\n"
    table = write(tmp_path, f"track\tpath\tfactor\tbiotype\tlab\n{row}b\t\t\t\t\nc\t\t\t\t\n")
    a, b, c = read_annotation(table)
    assert (a.factor, a.biotype, a.metadata) == ("REB1", "BY4741", {"lab": "ours"})
    assert file_of(a, tmp_path, table) == tmp_path / "deep" / "x.bw"
    assert file_of(b, tmp_path, table) == tmp_path / "b.bigWig"
    assert file_of(c, tmp_path, table) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tb\tc\n", "no table of tracks"),
        ("track\tfactor\n", "no row"),
        ("track\tfactor\n\tREB1\n", "no track"),
        (ATLAS + "SRX4\thg38\n", "2 columns, expected six or more"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputFileError, match=said):
        read_annotation(write(tmp_path, text))


def test_a_track_cannot_name_a_file_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.bw").touch()
    (tmp_path / "folder").mkdir()
    table = write(tmp_path, "track\n../secret\n")
    assert file_of(read_annotation(table)[0], tmp_path / "folder", table) is None
