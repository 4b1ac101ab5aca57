"""Ask a snapshot of the catalog what a stranger wants to know, in a process that can do nothing else.

Each query gets a process of its own (about 0.15 s), locked in before the query is parsed: see ``stranger_process``.
What comes back is plain data: JSON values row by row, or columns of numbers. Nothing of it is ever unpickled or run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfbind_store.catalog.columns import Column, Columns, Parameters, plain_parameters, to_columns
from tfbind_store.errors import CatalogError, SqlError, SqlTimeout

PROGRAM = Path(__file__).with_name("stranger_process.py")
MAX_ANSWER_BYTES = 512 << 20
"""Of one answer that is held in memory, as text."""
MAX_COLUMNS_BYTES = 4 << 30
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_SHOWN_CHARS = 200


class Limits(NamedTuple):
    """What one query may take."""

    seconds: float = 30
    memory: str = "2GB"


class Table(NamedTuple):
    """The answer to a stranger's query."""

    columns: list[str]
    types: list[str]
    """DuckDB's names of the columns' types."""
    rows: list[tuple[Any, ...]]
    """Values as JSON has them: numbers, text, None, lists, dicts; dates and the like as text."""
    is_cut: bool
    """Whether there were more rows than asked for."""


class Stream:
    """An answer while it comes in: names and types at once, rows in batches, `is_cut` after the last of them."""

    def __init__(self, process: subprocess.Popen[bytes], sql: str, limits: Limits) -> None:
        self._process, self._sql, self._limits = process, sql, limits
        header = self._line()
        self.columns: list[str] = header["names"]
        self.types: list[str] = header.get("types", [])
        self.is_cut = False

    def batches(self) -> Iterator[list[list[Any]]]:
        """Yield the rows, some at a time."""
        while isinstance(batch := self._line(), list):
            yield batch
        self.is_cut = bool(batch["is_cut"])

    def arrays(self) -> Columns:
        """Return the answer of ``columns`` mode."""
        found = {name: self._array() for name in self.columns}
        self._line()
        return to_columns(found)

    def _array(self) -> Column:
        facts = self._line()
        if facts["dtype"] == "json":
            values = np.empty(facts["rows"], dtype=object)
            values[:] = self._line()
            return values
        dtype = np.dtype(facts["dtype"])
        if dtype.hasobject or facts["rows"] * dtype.itemsize > MAX_COLUMNS_BYTES:
            raise SqlError("the answer is too large to hold", where=self._sql[:_SHOWN_CHARS], fix="ask for less")
        data = np.frombuffer(self._bytes(facts["rows"] * dtype.itemsize), dtype=dtype)
        if not facts["has_mask"]:
            return data
        return np.ma.MaskedArray(data, np.frombuffer(self._bytes(facts["rows"]), dtype=bool))

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        value = json.loads(line)
        if isinstance(value, dict) and "error" in value:
            raise self._error(value["kind"], value["error"])
        return value

    def _bytes(self, size: int) -> bytearray:
        assert self._process.stdout is not None
        buffer, filled = bytearray(size), 0
        while filled < size:
            count = self._process.stdout.readinto1(memoryview(buffer)[filled:])  # type: ignore[attr-defined]
            if not count:
                raise self._ended()
            filled += count
        return buffer

    def _ended(self) -> SqlError:
        """Return why the process ended before its answer did."""
        status = self._process.wait()
        if status == -signal.SIGALRM:
            return self._timeout()
        what = "the query took more memory than it is given, or broke its process"
        return SqlError(f"{what} (status {status})", where=self._sql[:_SHOWN_CHARS], fix="ask for less")

    def _timeout(self) -> SqlTimeout:
        return SqlTimeout(
            f"the query ran longer than {self._limits.seconds:g} s and was stopped", where=self._sql[:_SHOWN_CHARS]
        )

    def _error(self, kind: str, text: str) -> Exception:
        what, where = text.strip().partition("\n")[0], self._sql[:_SHOWN_CHARS]
        if kind == "timeout":
            return self._timeout()
        if kind == "catalog":
            return CatalogError(what)
        if kind == "refused":
            return SqlError(what, where=where)
        if kind == "unsteady":
            return SqlError(what, where=where, fix="leave it out; --sample 0.5 draws by the seed, the same each time")
        fix = "tfbind sql STORE --schema lists the views and columns"
        if "arameter" in what:  # one that is not given, or one too many
            fix = "give each $NAME of the query its value, and nothing else: -p NAME=VALUE"
        if "Out of Memory" in what:
            what, fix = what[:_SHOWN_CHARS], f"ask for less: a query has {self._limits.memory} of memory"
        return SqlError(what, where=where, fix=fix)


def ask(path: Path, sql: str, params: Parameters, limits: Limits, *, max_rows: int | None) -> Table:
    """Return the whole answer to one SELECT.

    Raises
    ------
    SqlError
        If it is anything but one SELECT, fails, or its answer takes more than 512 MB as text.
    SqlTimeout
        If it runs longer than it may.
    """
    with stream(path, sql, params, limits, max_rows=max_rows) as answer:
        rows: list[tuple[Any, ...]] = []
        size = 0
        for batch in answer.batches():
            rows += map(tuple, batch)
            size += sum(len(value) for row in batch for value in row if isinstance(value, str | list))
            if size > MAX_ANSWER_BYTES:
                what = f"the answer takes more than {MAX_ANSWER_BYTES >> 20} MB"
                raise SqlError(what, where=sql[:_SHOWN_CHARS], fix="ask for less, or write it to a file: --out")
    return Table(answer.columns, answer.types, rows, answer.is_cut)


def explain(path: Path, sql: str, params: Parameters, limits: Limits) -> str:
    """Return how DuckDB would answer one SELECT."""
    with stream(path, sql, params, limits, max_rows=None, mode="explain") as answer:
        return "\n".join(str(row[-1]) for batch in answer.batches() for row in batch)


@contextlib.contextmanager
def stream(
    path: Path, sql: str, params: Parameters, limits: Limits, *, max_rows: int | None, mode: str = "rows"
) -> Iterator[Stream]:
    """Answer one SELECT row by row, holding little of it."""
    with _started(path, sql, params, limits, {"mode": mode, "max_rows": max_rows}) as answer:
        yield answer


def where(path: Path, template: str, fragment: str, params: Parameters, limits: Limits, *, tail: str) -> Columns:
    """Return the columns of a query of ours whose condition is a stranger's.

    Parameters
    ----------
    template
        The query, ``%s`` where the condition goes.
    fragment
        The condition. The query must be the same as without it but for the condition, so that it can neither end the
        query nor add to it.
    tail
        What follows the condition: an order, groups.
    """
    with _started(path, fragment, params, limits, {"mode": "columns", "template": template, "tail": tail}) as answer:
        return answer.arrays()


@contextlib.contextmanager
def _started(path: Path, sql: str, params: Parameters, limits: Limits, more: dict[str, Any]) -> Iterator[Stream]:
    request = {
        "path": str(path),
        "sql": sql,
        "params": _json_parameters(params, sql),
        "seconds": limits.seconds,
        "memory_bytes": size_in_bytes(limits.memory),
        "sys_path": _library_folders(),
        **more,
    }
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode("ascii"))
                process.stdin.close()
            yield Stream(process, sql, limits)
        finally:
            process.kill()


def _library_folders() -> list[str]:
    """Return where DuckDB and numpy are installed: the process knows no other place."""
    found = [importlib.util.find_spec(name) for name in ("duckdb", "numpy")]
    return sorted({str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin})


def _json_parameters(params: Parameters, sql: str) -> Any:
    """Return parameters as JSON; refuse what a command line holds that is no UTF-8, and what JSON cannot say."""
    plain = plain_parameters(params)
    values = list(plain.values()) if isinstance(plain, dict) else list(plain or ())
    try:
        for value in (sql, *values):
            if isinstance(value, str):
                value.encode()
        json.dumps(plain)
    except (UnicodeError, TypeError, ValueError) as error:
        shown = sql[:_SHOWN_CHARS].encode(errors="replace").decode()
        raise SqlError(str(error), where=shown, fix="bind numbers, text, lists of them, or None") from error
    return plain


def size_in_bytes(text: str) -> int:
    """Return a size as DuckDB writes it in bytes.

    Examples
    --------
    >>> size_in_bytes("2GB"), size_in_bytes("512 MiB")
    (2000000000, 536870912)
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise SqlError(f"{text!r} is no size of memory", where="memory", fix="write 500MB, 2GB or 1GiB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
