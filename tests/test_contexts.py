"""Tests of biotype metadata and of the text made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfbind_store.contexts import (
    DEFAULT_TEMPLATE,
    BiotypeRow,
    check_template,
    context_text,
    metadata_for,
    read_biotypes,
)
from tfbind_store.errors import ConfigError, InputFileError


def write(folder: Path, text: str, name: str = "b.tsv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class TestReading:
    @pytest.mark.parametrize("key", ["biotype", "cell", "Cell Type", "#cell_line", "whatever"])
    def test_the_key_column(self, tmp_path: Path, key: str) -> None:
        table = read_biotypes(write(tmp_path, f"{key}\torgan\tsex\nA549\tlung\tNA\n"))
        assert table.rows == (BiotypeRow("A549", {"organ": "lung"}),)
        assert table.columns == ("organ", "sex")

    def test_key_by_name(self, tmp_path: Path) -> None:
        assert read_biotypes(write(tmp_path, "x\tname\n1\tA549\n"), key="name").rows[0].biotype == "A549"
        with pytest.raises(InputFileError, match="no column 'nome'"):
            read_biotypes(write(tmp_path, "x\tname\n1\tA549\n"), key="nome")

    def test_csv_with_commas_in_cells_and_crlf(self, tmp_path: Path) -> None:
        path = tmp_path / "b.csv"
        path.write_bytes(b'biotype,about\r\nA549,"lung, male"\r\n\r\n')
        assert read_biotypes(path).rows == (BiotypeRow("A549", {"about": "lung, male"}),)

    def test_repeated_rows(self, tmp_path: Path) -> None:
        table = read_biotypes(write(tmp_path, "biotype\torgan\nA\tx\nA\tx\n"))
        assert (len(table.rows), table.n_read, table.n_repeated) == (1, 2, 1)
        path = write(tmp_path, "biotype\torgan\nA\tx\nA\ty\n")
        with pytest.raises(InputFileError, match="lines 2 and 3") as caught:
            read_biotypes(path)
        assert caught.value.where == f"{path}:3"

    @pytest.mark.parametrize(
        ("text", "what", "line"),
        [
            ("", "empty", ""),
            ("biotype\torgan\n\tx\n", "no biotype", ":2"),
            ("biotype\tbiotype\nA\tx\n", "different names", ":1"),
            ("biotype\t\nA\tx\n", "different names", ":1"),
            ("biotype\torgan\nA\tx\ty\n", "3 cells under 2 columns", ":2"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, what: str, line: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(InputFileError, match=what) as caught:
            read_biotypes(path)
        assert caught.value.where == f"{path}{line}"

    def test_treated_cells_fall_back_on_their_cell_type(self) -> None:
        known = {"MCF-7": {"organ": "breast"}, "A_x": {"organ": "own"}, "A": {"organ": "base"}}
        assert metadata_for("MCF-7_E2", known) == {"organ": "breast"}
        assert metadata_for("A_x", known) == {"organ": "own"}
        assert metadata_for("K562", known) == {}


class TestText:
    @pytest.mark.parametrize(
        ("template", "biotype", "metadata", "text"),
        [
            (DEFAULT_TEMPLATE, "A549", {}, "cell type: A549"),
            (DEFAULT_TEMPLATE, "MCF-7_E2", {}, "cell type: MCF-7 | treatment: E2"),
            (DEFAULT_TEMPLATE, "A549", {"organ": "lung", "sex": "male"}, "cell type: A549 | organ: lung | sex: male"),
            (DEFAULT_TEMPLATE, "A549", {"organ": None, "n": float("nan"), "age": 58}, "cell type: A549 | age: 58"),
            ("{biotype} | {germ_layer} | {cat}", "A549", {"cat": "cancer"}, "A549 | cancer"),
            ("{organ} of {sex}", "A549", {"organ": "lung"}, "A549"),
            ("{organ} of {sex}", "A549", {"organ": "lung", "sex": "{organ}"}, "lung of {organ}"),
            ("constant", "A549", {}, "constant"),
            ("{biotype}", "A549", {"biotype": "lie"}, "A549"),
        ],
    )
    def test_table(self, template: str, biotype: str, metadata: dict[str, object], text: str) -> None:
        assert context_text(template, biotype, metadata) == text

    def test_unknown_columns_are_refused_with_the_nearest(self) -> None:
        check_template("{biotype} {organ}", ("organ",))
        with pytest.raises(ConfigError) as caught:
            check_template("{biotype} {organs}", ("organ",))
        assert caught.value.fix == "did you mean organ?"

    @pytest.mark.parametrize("template", ["", "  ", "{biotype", "biotype}"])
    def test_no_templates(self, template: str) -> None:
        with pytest.raises(ConfigError, match="not a template"):
            check_template(template, ())


@pytest.mark.real_data
def test_cell_types_of_the_human_set(data_dir: Path) -> None:
    table = read_biotypes(data_dir / "human_hg19_chr22" / "cell_types.tsv")
    rows = {row.biotype: row.metadata for row in table.rows}
    assert context_text(DEFAULT_TEMPLATE, "A549", rows["A549"]).startswith("cell type: A549 | description: epithelial")
