"""The DuckDB catalog: open, migrate, typed reads, and bulk inserts; SQL from strangers goes to ``strangers``.

A writer opens the working file. Readers open an immutable snapshot of it, attached read-only to a database in memory,
so that several readers in one process never meet each other's settings. Results are numpy columns; NULL is NaN among
numbers and None among anything else. Only this module and ``stranger_process`` import duckdb. Which files there are,
and who may write, is the ``store``'s business.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from tfbind_store.catalog import strangers
from tfbind_store.catalog.columns import Columns, Parameters, as_column, plain_parameters, to_columns
from tfbind_store.catalog.strangers import Limits, Stream, Table
from tfbind_store.durable import discard, publish_temporary, temporary_beside
from tfbind_store.errors import CatalogError, InputFileError, NoSpace, StoreReadOnly
from tfbind_store.migrations import newest_schema, schema_steps

STORAGE_VERSION = "v1.0.0"
"""Written so that DuckDB 1.x opens it too."""
WRITER_MEMORY = "2500MB"
"""What DuckDB may hold of an import; past that it sorts on the disk, beside the working file."""
_NAME = re.compile(r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$")
_PLAIN_TYPE = re.compile(
    r"(BOOLEAN|U?(TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|FLOAT|DOUBLE|VARCHAR|DECIMAL\(\d+,\d+\)|DATE|TIME|TIMESTAMP"
    r"( WITH TIME ZONE)?)(\[\])*"
)
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_LINE_SEPARATOR = "\x01"
_log = logging.getLogger(__name__)


class Catalog:
    """A connection to the catalog; a context manager. Use `open_snapshot` or `open_writer`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, *, is_snapshot: bool) -> None:
        self._connection = connection
        self.path = path
        self.is_snapshot = is_snapshot

    @classmethod
    def open_snapshot(cls, path: Path) -> Catalog:
        """Open a database file that nobody writes any more, for reading only.

        Raises
        ------
        CatalogError
            If the file is absent, damaged, or of a schema that this version does not read.
        """
        with _catalog_errors(path):
            catalog = cls(_attached(path), path, is_snapshot=True)
            catalog._connection.execute("SET temp_directory = ?", [tempfile.gettempdir()])
        version = catalog.schema_version()
        if version != newest_schema():
            catalog.close()
            what = f"the catalog has schema {version}, this version reads {newest_schema()}"
            raise CatalogError(what, where=str(path), fix="run any tfbind command that writes, or update tfbind-store")
        return catalog

    @classmethod
    def open_writer(cls, path: Path) -> Catalog:
        """Open the working file for writing, making or migrating its schema. The caller holds the store's lock."""
        with _catalog_errors(path):
            connection = _connected(
                str(path), storage_compatibility_version=STORAGE_VERSION, memory_limit=WRITER_MEMORY
            )
            catalog = cls(connection, path, is_snapshot=False)
            try:
                catalog._migrate()
            except BaseException:
                catalog.close()
                raise
        return catalog

    def close(self) -> None:
        """Close the connection; a writer's changes are in the file, without a log beside it."""
        self._connection.close()

    def __enter__(self) -> Catalog:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # reading -----------------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: Parameters = None) -> None:
        """Run one of our own statements."""
        self.rows(sql, params)

    def columns(self, sql: str, params: Parameters = None) -> Columns:
        """Return the answer as numpy columns."""
        with _catalog_errors(self.path):
            return to_columns(self._run(sql, params).fetchnumpy())

    def rows(self, sql: str, params: Parameters = None) -> list[tuple[Any, ...]]:
        """Return the answer as tuples."""
        with _catalog_errors(self.path):
            return self._run(sql, params).fetchall()

    def one(self, sql: str, params: Parameters = None) -> tuple[Any, ...] | None:
        """Return the first row of the answer, None where there is none."""
        found = self.rows(sql, params)  # all of it: DuckDB 2 refuses other work while a result is unfinished
        return found[0] if found else None

    def _run(self, sql: str, params: Parameters) -> duckdb.DuckDBPyConnection:
        with _catalog_errors(self.path):
            return self._connection.execute(sql, plain_parameters(params))

    # writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block happens, or nothing."""
        self.execute("BEGIN TRANSACTION")
        try:
            yield
        except BaseException:
            with contextlib.suppress(CatalogError):
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def insert(self, table: str, columns: Mapping[str, Any], *, replace: bool = False) -> int:
        """Append rows given as columns, matched by name; return how many.

        Parameters
        ----------
        table
            For example ``data.peaks``.
        columns
            Arrays or lists of one length. None (or a mask) is NULL, so is NaN among floats.
        replace
            Rows with the same primary key are replaced.
        """
        arrays = {name: as_column(values) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in arrays.items()}
        assert len(set(lengths.values())) == 1, f"columns of different lengths: {lengths}"
        n_rows = next(iter(lengths.values()))
        if n_rows:
            with _catalog_errors(self.path), self.registered("incoming_rows", arrays):
                verb = "INSERT OR REPLACE" if replace else "INSERT"
                self.execute(f"{verb} INTO {_name(table)} BY NAME SELECT * FROM incoming_rows")
        return n_rows

    @contextlib.contextmanager
    def registered(self, name: str, columns: Mapping[str, Any]) -> Iterator[None]:
        """Let queries in the block read `columns` as a table called `name`."""
        with _catalog_errors(self.path):
            arrays = {column: as_column(values) for column, values in columns.items()}
            self._connection.register(_name(name), arrays)
        try:
            yield
        finally:
            self._connection.unregister(name)

    def read_delimited(
        self,
        path: Path,
        columns: Mapping[str, str],
        into_table: str,
        *,
        delimiter: str = "\t",
        skip_prefixes: Sequence[str] = ("#", "track", "browser"),
        skip_lines: int = 0,
    ) -> int:
        """Read a delimited text file, plain or gzip, into a new temporary table; return its rows.

        Nothing is guessed and no quote is honoured. Besides `columns` the table has ``line`` (number in the file, from
        1) and ``n_fields``; a field that is absent or not of its type is NULL, for the caller to count or refuse by
        line. Blank lines and those that begin with one of `skip_prefixes` are left out.

        Raises
        ------
        InputFileError
            If the file cannot be read: truncated gzip, not UTF-8.
        """
        fields = ", ".join(
            f"try_cast(nullif(fields[{place}], '') AS {sql_type}) AS {_name(column)}"
            for place, (column, sql_type) in enumerate(columns.items(), start=1)
        )
        # one column, the whole line: DuckDB's own splitting loses rows that have more fields than the first
        compression = "gzip" if _is_gzip(path) else "none"
        source = (
            "read_csv(?, auto_detect=false, header=false, quote='', escape='', strict_mode=false, "
            f"max_line_size=16777216, delim='{_LINE_SEPARATOR}', columns={{'text': 'VARCHAR'}}, "
            f"compression='{compression}')"
        )
        skipped = "".join(" AND NOT starts_with(text, ?)" for _ in skip_prefixes)
        sql = f"""
            CREATE OR REPLACE TEMP TABLE {_name(into_table)} AS
            SELECT line, len(fields) AS n_fields, {fields}
            FROM (SELECT line, string_split(rtrim(text, chr(13)), ?) AS fields
                  FROM (SELECT row_number() OVER () AS line, text FROM {source})
                  WHERE line > ? AND text IS NOT NULL AND trim(text) <> ''{skipped})"""
        try:
            self._connection.execute(sql, [delimiter, str(path), skip_lines, *skip_prefixes]).fetchall()
        except (duckdb.Error, UnicodeDecodeError) as error:
            raise _input_error(error, path) from error
        found = self.one(f"SELECT count(*) FROM {_name(into_table)}")
        return int(found[0]) if found else 0

    # Parquet -----------------------------------------------------------------------------------------------------

    def to_parquet(self, sql: str, path: Path, params: Parameters = None) -> None:
        """Write a query's answer to a Parquet file, whole or not at all."""
        with _parquet_target(path) as temporary:
            self.execute(f"COPY ({sql}) TO {_literal(temporary)} (FORMAT parquet, COMPRESSION zstd)", params)

    @staticmethod
    def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Columns:
        """Read a Parquet file, or some of its columns, in the order of its rows."""
        if not path.is_file():
            raise CatalogError("there is no such Parquet file", where=str(path))
        chosen = "*" if columns is None else ", ".join(f'"{name}"' for name in map(_name, columns))
        fix = f"run the command again that wrote {path.name}"
        with _catalog_errors(path, fix=fix), _connected() as connection:
            return to_columns(connection.execute(f"SELECT {chosen} FROM read_parquet(?)", [str(path)]).fetchnumpy())

    @staticmethod
    def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
        """Write columns to a Parquet file, whole or not at all."""
        with _connected() as connection:
            writer = Catalog(connection, path, is_snapshot=False)
            with writer.registered("outgoing_rows", columns):
                writer.to_parquet("SELECT * FROM outgoing_rows", path)

    @staticmethod
    def write_parquet_rows(
        path: Path, names: Sequence[str], types: Sequence[str], batches: Iterable[Sequence[Sequence[Any]]]
    ) -> None:
        """Write plain rows as they come to a Parquet file, with the types that a stranger's answer has."""
        kinds = [kind if _PLAIN_TYPE.fullmatch(kind) else "VARCHAR" for kind in types]
        columns = ", ".join(f'"c{place}" {kind}' for place, kind in enumerate(kinds))
        renamed = ", ".join(f'"c{place}" AS "{_quoted(name)}"' for place, name in enumerate(names))
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, _connected(f"{folder}/rows.duckdb") as held:
            writer = Catalog(held, path, is_snapshot=False)
            writer.execute(f"CREATE TABLE outgoing_rows ({columns})")
            for batch in batches:
                values = zip(*batch, strict=True)
                writer.insert(
                    "outgoing_rows",
                    {
                        f"c{place}": _as_kind(column, own, kind)
                        for place, (column, own, kind) in enumerate(zip(values, types, kinds, strict=True))
                    },
                )
            writer.to_parquet(f"SELECT {renamed} FROM outgoing_rows", path)

    # strangers -----------------------------------------------------------------------------------------------------

    def untrusted(
        self,
        sql: str,
        params: Parameters = None,
        *,
        seconds: float = 30,
        memory: str = "2GB",
        max_rows: int | None = 100_000,
    ) -> Table:
        """Answer a stranger's query: one SELECT on the snapshot, no files, no settings, limited time and memory.

        Raises
        ------
        SqlError
            If it is anything but one SELECT, or fails.
        SqlTimeout
            If it runs longer than `seconds`.
        """
        return strangers.ask(self._snapshot(), sql, params, Limits(seconds, memory), max_rows=max_rows)

    @contextlib.contextmanager
    def untrusted_stream(
        self, sql: str, params: Parameters = None, *, limits: Limits | None = None, max_rows: int | None = None
    ) -> Iterator[Stream]:
        """Answer a stranger's query row by row, holding little of it."""
        with strangers.stream(self._snapshot(), sql, params, limits or Limits(), max_rows=max_rows) as answer:
            yield answer

    def untrusted_plan(self, sql: str, params: Parameters = None, *, limits: Limits | None = None) -> str:
        """Return how a stranger's query would be answered."""
        return strangers.explain(self._snapshot(), sql, params, limits or Limits())

    def described(self) -> list[tuple[str, str, str, str, str]]:
        """Return (view, what it holds, column, type, what it means) for every column of every view, in order."""
        return self.rows(
            """SELECT view_name, coalesce(v.comment, ''), column_name, data_type, coalesce(c.comment, '')
            FROM duckdb_columns() AS c JOIN duckdb_views() AS v
              ON c.table_oid = v.view_oid AND c.database_name = v.database_name
            WHERE c.schema_name = 'main' AND c.database_name = current_database() AND NOT v.internal
            ORDER BY view_oid, column_index"""
        )

    def untrusted_where(
        self,
        view: str,
        fragment: str,
        params: Parameters = None,
        *,
        columns: Sequence[str] = ("experiment",),
        distinct: bool = True,
        seconds: float = 30,
        memory: str = "2GB",
    ) -> Columns:
        """Return distinct `columns` of the rows of `view` that a stranger's WHERE condition keeps, sorted.

        Without `distinct`, return them for every such row, in the order of the view.

        The condition stands in parentheses on lines of its own; the query must be the same as without it but for the
        condition, so that it can neither end the query nor add to it.
        """
        chosen = ", ".join(map(_name, columns))
        template = f"SELECT {'DISTINCT ' if distinct else ''}{chosen} FROM {_name(view)} WHERE (\n%s\n)"
        limits = Limits(seconds, memory)
        return strangers.where(
            self._snapshot(), template, fragment, params, limits, tail="ORDER BY ALL" if distinct else ""
        )

    def _snapshot(self) -> Path:
        assert self.is_snapshot, "strangers read snapshots only"
        return self.path

    # schema --------------------------------------------------------------------------------------------------------

    def schema_version(self) -> int:
        """Return the version of the schema in the file, 0 where there is none."""
        found = self.one("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'data'")
        if not found or not found[0]:
            return 0
        version = self.one("SELECT value FROM data.meta WHERE key = 'schema_version'")
        return int(version[0]) if version else 1

    def _migrate(self) -> None:
        version = self.schema_version()
        if version > newest_schema():
            what = f"the catalog has schema {version}, this version writes {newest_schema()}"
            raise CatalogError(what, where=str(self.path), fix="update tfbind-store")
        for number, text in sorted(schema_steps().items()):
            if number > version:
                with self.transaction():
                    self._connection.execute(text)
                    self.execute("INSERT OR REPLACE INTO data.meta VALUES ('schema_version', ?)", [str(number)])
                _log.info("catalog %s: schema %d", self.path, number)


def _connected(database: str = ":memory:", **config: Any) -> duckdb.DuckDBPyConnection:
    """Open a database that prints nothing: in notebooks and under ``python -c`` DuckDB would draw its progress."""
    connection = duckdb.connect(database, config=config)
    connection.execute("SET enable_progress_bar = false")
    return connection


def _attached(path: Path) -> duckdb.DuckDBPyConnection:
    if not path.is_file():
        raise CatalogError("there is no catalog", where=str(path), fix="check the path of the store")
    connection = _connected()
    try:
        connection.execute(f"ATTACH {_literal(path)} AS catalog (READ_ONLY)")
        connection.execute("USE catalog")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _catalog_errors(path: Path, *, fix: str = "") -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        text = str(error).strip()
        if "No space left" in text:
            raise NoSpace("the disk is full", where=str(path), fix="free some space, then run it again") from error
        if "Read-only file system" in text or "Permission denied" in text:
            raise StoreReadOnly(f"cannot write: {text.rpartition(': ')[2]}", where=str(path)) from error
        raise CatalogError(text.partition("\n")[0], where=str(path), fix=fix) from error


def _input_error(error: Exception, path: Path) -> InputFileError:
    text = str(error).strip()
    line = _CSV_LINE.search(text)
    where = f"{path}:{line[1]}" if line else str(path)
    reason = next((row for row in text.splitlines()[1:] if row and not row.startswith("Original")), text.split("\n")[0])
    return InputFileError(f"cannot be read: {reason}", where=where, fix="check that the file is whole and UTF-8 text")


@contextlib.contextmanager
def _parquet_target(path: Path) -> Iterator[Path]:
    temporary = temporary_beside(path)
    try:
        yield temporary
        publish_temporary(temporary, path, fsync_first=True)
    finally:
        discard(temporary)


def _name(name: str) -> str:
    assert _NAME.match(name), f"not a name of ours: {name!r}"
    return name


def _quoted(name: str) -> str:
    return name.replace('"', '""')


def _as_kind(values: Sequence[Any], own: str, kind: str) -> list[Any]:
    """Return values as they are, or as JSON where their own type is none that a Parquet column is given here."""
    if own == kind:
        return list(values)
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _is_gzip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InputFileError(f"cannot be opened: {error.strerror}", where=str(path)) from error
