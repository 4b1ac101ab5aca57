"""The DuckDB catalog: open, migrate, typed reads, bulk inserts, and SQL from strangers.

A writer opens the working file. Readers open an immutable snapshot of it, attached read-only to a database in memory,
so that several readers in one process never meet each other's settings. Results are numpy columns; NULL is NaN among
numbers and None among anything else. This is the only module that imports duckdb. Which files there are, and who may
write, is the ``store``'s business.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import duckdb

from tfbind_store.columns import Columns, Parameters, as_column, plain_parameters, to_columns
from tfbind_store.durable import discard, publish_temporary, temporary_beside
from tfbind_store.errors import CatalogError, InputFileError, NoSpace, SqlError, SqlTimeout, StoreReadOnly
from tfbind_store.migrations import newest_schema, schema_steps

STORAGE_VERSION = "v1.0.0"
"""Written so that DuckDB 1.x opens it too."""
MAX_SQL_CHARS = 1_000_000
_NAME = re.compile(r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$")
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_LINE_SEPARATOR = "\x01"
_log = logging.getLogger(__name__)


class Table(NamedTuple):
    """The answer to a stranger's query."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    is_cut: bool
    """Whether there were more rows than asked for."""


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
            connection = duckdb.connect(str(path), config={"storage_compatibility_version": STORAGE_VERSION})
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
        with _catalog_errors(path, fix=fix), duckdb.connect() as connection:
            return to_columns(connection.execute(f"SELECT {chosen} FROM read_parquet(?)", [str(path)]).fetchnumpy())

    @staticmethod
    def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
        """Write columns to a Parquet file, whole or not at all."""
        with duckdb.connect() as connection:
            writer = Catalog(connection, path, is_snapshot=False)
            with writer.registered("outgoing_rows", columns):
                writer.to_parquet("SELECT * FROM outgoing_rows", path)

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
        with self._sandbox(memory) as connection, _time_limit(connection, seconds), _sql_errors(sql):
            _require_text(sql, params)
            _require_one_select(connection, sql)
            connection.execute(sql, plain_parameters(params))
            types = [str(column[1]) for column in connection.description or ()]
            names = [str(column[0]) for column in connection.description or ()]
            rows = connection.fetchall() if max_rows is None else connection.fetchmany(max_rows + 1)
        is_cut = max_rows is not None and len(rows) > max_rows
        return Table(names, types, rows[:max_rows], is_cut)

    def untrusted_where(
        self,
        view: str,
        fragment: str,
        params: Parameters = None,
        *,
        columns: Sequence[str] = ("experiment",),
        seconds: float = 30,
        memory: str = "2GB",
    ) -> Columns:
        """Return distinct `columns` of the rows of `view` that a stranger's WHERE condition keeps, sorted.

        The condition stands in parentheses on lines of its own; the query must be the same as without it but for the
        condition, so that it can neither end the query nor add to it.
        """
        chosen = ", ".join(map(_name, columns))
        template = f"SELECT DISTINCT {chosen} FROM {_name(view)} WHERE (\n%s\n)"
        with self._sandbox(memory) as connection, _time_limit(connection, seconds), _sql_errors(fragment):
            sql = template % fragment
            _require_text(sql, params)
            _require_one_select(connection, sql)
            if _without_where(connection, sql) != _without_where(connection, template % "TRUE"):
                raise SqlError("not a condition on its own", where=fragment[:200], fix="write what follows WHERE")
            return to_columns(connection.execute(f"{sql} ORDER BY ALL", plain_parameters(params)).fetchnumpy())

    @contextlib.contextmanager
    def _sandbox(self, memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
        assert self.is_snapshot, "strangers read snapshots only"
        with _catalog_errors(self.path):
            connection = _attached(self.path)
            for setting, value in (
                ("memory_limit", memory),
                ("threads", 2),
                ("temp_directory", ""),
                ("python_enable_replacements", False),
                ("autoinstall_known_extensions", False),
                ("autoload_known_extensions", False),
                ("enable_external_access", False),
                ("lock_configuration", True),
            ):
                connection.execute(f"SET {setting} = ?", [value])
        try:
            yield connection
        finally:
            connection.close()

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


def _attached(path: Path) -> duckdb.DuckDBPyConnection:
    if not path.is_file():
        raise CatalogError("there is no catalog", where=str(path), fix="check the path of the store")
    connection = duckdb.connect(":memory:")
    try:
        connection.execute(f"ATTACH {_literal(path)} AS catalog (READ_ONLY)")
        connection.execute("USE catalog")
    except BaseException:
        connection.close()
        raise
    return connection


def _require_text(sql: str, params: Parameters) -> None:
    """Raise UnicodeError for what a command line holds that is no UTF-8: DuckDB's own error says nothing of it."""
    values = params.values() if isinstance(params, Mapping) else params or ()
    for value in (sql, *values):
        if isinstance(value, str):
            value.encode()


def _require_one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    if len(sql) > MAX_SQL_CHARS:
        raise SqlError(f"the query has {len(sql):,} characters, at most {MAX_SQL_CHARS:,} are read", where=sql[:100])
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise SqlError(f"{len(statements)} statements, expected exactly one SELECT", where=sql[:200])
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name
        raise SqlError(f"a statement of kind {kind}, expected a SELECT", where=sql[:200])


def _without_where(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Return the parsed query without its condition."""
    found = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    parsed: dict[str, Any] = json.loads(found[0]) if found else {"error": True}
    if parsed["error"] or len(parsed["statements"]) != 1:
        raise SqlError(str(parsed.get("error_message", "cannot be parsed")), where=sql[:200])
    node = parsed["statements"][0]["node"]
    return {key: value for key, value in node.items() if key != "where_clause"}


@contextlib.contextmanager
def _time_limit(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt what runs on `connection` after `seconds`: DuckDB has no time limit of its own."""
    timer = threading.Timer(seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException as error:
        fix = "ask for less, or give it more time with --seconds"
        raise SqlTimeout(f"the query ran longer than {seconds:g} s and was stopped", fix=fix) from error
    finally:
        timer.cancel()


@contextlib.contextmanager
def _sql_errors(sql: str) -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException:
        raise
    except (duckdb.Error, RuntimeError, UnicodeError) as error:
        if isinstance(error, SqlError):
            raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "tfbind sql STORE --schema lists the views and columns"
        if "arameter" in what:  # one that is not given, or one too many
            fix = "give each $NAME of the query its value, and nothing else: -p NAME=VALUE"
        raise SqlError(what, where=sql[:200], fix=fix) from error


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


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _is_gzip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InputFileError(f"cannot be opened: {error.strerror}", where=str(path)) from error
