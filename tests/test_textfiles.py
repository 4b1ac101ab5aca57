"""Tests of text from outside: compression, line endings, tables."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfbind_store.errors import InputFileError, PeakFileError
from tfbind_store.textfiles import TableRow, find_column, read_ahead, read_chunks, read_lines, read_table


def write(folder: Path, data: bytes, name: str = "t.tsv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


class TestLines:
    @pytest.mark.parametrize("chunk_bytes", [1, 3, 1000])
    @pytest.mark.parametrize("packed", [False, True])
    def test_numbers_and_endings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, packed: bool
    ) -> None:
        monkeypatch.setattr("tfbind_store.textfiles.CHUNK_BYTES", chunk_bytes)
        data = b"\xef\xbb\xbfa\r\n\nb\nc\r"
        path = write(tmp_path, gzip.compress(data) if packed else data)
        assert list(read_lines(path)) == [(1, "a"), (2, ""), (3, "b"), (4, "c")]

    def test_empty(self, tmp_path: Path) -> None:
        assert list(read_lines(write(tmp_path, b""))) == []

    @pytest.mark.parametrize(
        ("data", "what"), [(gzip.compress(b"abc" * 99, mtime=0)[:-5], "truncated"), (b"a\n\xff\n", "not UTF-8")]
    )
    def test_damage_is_of_the_callers_kind(self, tmp_path: Path, data: bytes, what: str) -> None:
        path = write(tmp_path, data)
        with pytest.raises(PeakFileError, match=what) as caught:
            list(read_lines(path, error_class=PeakFileError))
        assert caught.value.where in (str(path), f"{path}:2")

    def test_absent_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match="no such file"):
            list(read_chunks(tmp_path / "none"))
        with pytest.raises(InputFileError, match="not a file"):
            list(read_chunks(tmp_path))


class TestTables:
    @pytest.mark.parametrize(
        "data",
        [
            b"#a\tb\n1\tx, y\n\n2\tNA\n",
            b'a,b\r\n1,"x, y"\r\n2,\r\n',
            b"a\tb\t\n1\tx, y\t\n2\t.\n".replace(b"b\t\n", b"b\n"),
        ],
    )
    def test_rows(self, tmp_path: Path, data: bytes) -> None:
        table = read_table(write(tmp_path, data))
        assert table.columns == ("a", "b")
        assert [row.cells for row in table.rows] == [{"a": "1", "b": "x, y"}, {"a": "2"}]

    def test_lines_count_blank_ones(self, tmp_path: Path) -> None:
        assert read_table(write(tmp_path, b"a\tb\n\n1\t2\n")).rows == [TableRow(3, {"a": "1", "b": "2"})]

    def test_columns_are_found_by_plain_words_or_by_name(self, tmp_path: Path) -> None:
        table = read_table(write(tmp_path, b"Cell Type\tTF-name\n"))
        assert find_column(table, "biotype", None, "cell_type") == "Cell Type"
        assert find_column(table, "factor", {"factor": "TF-name"}) == "TF-name"
        assert find_column(table, "factor", None, "tf") is None
        with pytest.raises(InputFileError, match="no column 'tf' for factor"):
            find_column(table, "factor", {"factor": "tf"})


class TestReadAhead:
    def test_same_items_in_the_same_order(self) -> None:
        assert list(read_ahead(iter(range(50)))) == list(range(50))

    def test_an_error_comes_after_what_was_made_before_it(self) -> None:
        def make() -> Iterator[int]:
            yield 1
            raise PeakFileError("broken")

        items = read_ahead(make())
        assert next(items) == 1
        with pytest.raises(PeakFileError, match="broken"):
            next(items)

    def test_who_stops_early_stops_the_thread(self) -> None:
        made = []

        def make() -> Iterator[int]:
            for number in range(1_000_000):
                made.append(number)
                yield number

        before = threading.active_count()
        items = read_ahead(make())
        assert next(items) == 0
        items.close()
        assert threading.active_count() == before
        assert len(made) < 10
