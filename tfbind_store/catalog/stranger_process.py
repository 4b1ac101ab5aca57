"""The process in which SQL from strangers runs: started by ``strangers``, one per query, gone with its answer.

DuckDB's own locks come first: a database attached read-only, no external access, no extensions, locked settings, one
SELECT. They leave three gaps, met in tests: memory of a function's result is not counted (``repeat`` took 4 GiB under
a limit of 500 MB), a function at work cannot be interrupted (``lpad`` ran 16 s under a limit of 3 s), and a fault in
them would be open to all that the user may do. So the kernel holds the same limits once more: before the query is even
parsed this process gives up opening and writing files, memory past its share, and its life after its time.

This file runs as a program, isolated from the user's Python; it imports nothing of the package. A request is one JSON
object on standard input; the answer is lines of JSON, in ``columns`` mode with blocks of raw numbers between them.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

BATCH_ROWS = 1000
GRACE_SECONDS = 0.6
"""From the polite interrupt to the end of the process."""
HEADROOM_BYTES = 1 << 30
"""What Python, DuckDB's own code and the text of an answer may take beside DuckDB's memory limit."""
MAX_SQL_CHARS = 1_000_000


CLOCK_NAMES = frozenset(
    f"{start}{name}" for start in ("current_", "local", "current_local") for name in ("date", "time", "timestamp")
)
"""What says the time without parentheses."""
CLOCK_FUNCTIONS = frozenset({"now", "today", "age", "transaction_timestamp", "txid_current"}) | frozenset(
    {"get_current_date", "get_current_time", "get_current_timestamp"} | CLOCK_NAMES
)
"""Functions that say it; DuckDB calls them consistent within a query."""


class Refused(Exception):
    """A query that may not run."""

    kind = "refused"


class Unsteady(Refused):
    """A condition that would keep other rows at another time."""

    kind = "unsteady"


def main() -> None:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.buffer.read())
    sys.path.extend(request["sys_path"])
    import duckdb

    if request["mode"] == "columns":
        import numpy.ma  # noqa: F401  # loaded when a column has NULLs; later no file can be opened
    with contextlib.suppress(Exception):  # for moments in time; a system without zones has them not
        import zoneinfo

        zoneinfo.ZoneInfo("UTC")

    try:
        connection = _connect(duckdb, request)
    except duckdb.Error as error:
        _send({"kind": "catalog", "error": str(error)})
        return
    timer = threading.Timer(request["seconds"], connection.interrupt)
    timer.daemon = True
    timer.start()
    _lock_in(request["seconds"], request["memory_bytes"])
    try:
        {"rows": _rows, "explain": _rows, "columns": _columns}[request["mode"]](duckdb, connection, request)
    except Refused as error:
        _send({"kind": error.kind, "error": str(error)})
    except duckdb.InterruptException:
        _send({"kind": "timeout", "error": ""})
    except MemoryError:
        _send({"kind": "sql", "error": "Out of Memory: the query takes more memory than it is given"})
    except (duckdb.Error, RuntimeError, UnicodeError, ImportError, OSError) as error:
        _send({"kind": "sql", "error": str(error) or type(error).__name__})
    sys.stdout.buffer.flush()
    os._exit(0)  # a thread may still be inside a function that nobody can interrupt


def _connect(duckdb: Any, request: dict[str, Any]) -> Any:
    connection = duckdb.connect(":memory:")
    literal = "'" + request["path"].replace("'", "''") + "'"
    connection.execute(f"ATTACH {literal} AS catalog (READ_ONLY)")
    connection.execute("USE catalog")
    with contextlib.suppress(duckdb.Error):
        connection.execute("SET TimeZone = 'UTC'")
    for setting, value in (
        ("memory_limit", f"{request['memory_bytes']}B"),
        ("threads", 2),
        ("enable_progress_bar", False),
        ("temp_directory", ""),
        ("python_enable_replacements", False),
        ("autoinstall_known_extensions", False),
        ("autoload_known_extensions", False),
        ("enable_external_access", False),
        ("lock_configuration", True),
    ):
        connection.execute(f"SET {setting} = ?", [value])
    return connection


def _lock_in(seconds: float, memory_bytes: int) -> None:
    """Give up what a query never needs, for good."""
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = used + memory_bytes + HEADROOM_BYTES
    limits[resource.RLIMIT_NOFILE] = 0  # no file is opened from here on
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):  # a system that knows no such limit has the others
            resource.setrlimit(limit, (value, value))
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)  # its default action ends the process


def _require_one_select(duckdb: Any, connection: Any, sql: str) -> None:
    if len(sql) > MAX_SQL_CHARS:
        raise Refused(f"the query has {len(sql):,} characters, at most {MAX_SQL_CHARS:,} are read")
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise Refused(f"{len(statements)} statements, expected exactly one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise Refused(f"a statement of kind {statements[0].type.name}, expected a SELECT")


def _rows(duckdb: Any, connection: Any, request: dict[str, Any]) -> None:
    """Send names and types, then rows in batches, then whether there were more."""
    _require_one_select(duckdb, connection, request["sql"])
    sql = f"EXPLAIN {request['sql']}" if request["mode"] == "explain" else request["sql"]
    connection.execute(sql, request["params"])
    description = connection.description or ()
    names = _distinct([str(column[0]) for column in description])
    _send({"names": names, "types": [str(column[1]) for column in description]})
    left = request["max_rows"]
    while left is None or left > 0:
        batch = connection.fetchmany(BATCH_ROWS if left is None else min(BATCH_ROWS, left))
        if not batch:
            break
        _send([[_plain(value) for value in row] for row in batch])
        left = None if left is None else left - len(batch)
    _send({"is_cut": left == 0 and bool(connection.fetchmany(1))})


def _distinct(names: list[str]) -> list[str]:
    """Return names with a number behind those that were there before, so that no column hides another."""
    found: list[str] = []
    for name in names:
        new, number = name, 0
        while new in found or (number and new in names):
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


def _columns(duckdb: Any, connection: Any, request: dict[str, Any]) -> None:
    """Send whole columns of the rows that a condition keeps, if it is nothing but a condition."""
    template, sql = request["template"], request["template"] % request["sql"]
    _require_one_select(duckdb, connection, sql)
    if _without_where(connection, sql) != _without_where(connection, template % "TRUE"):
        raise Refused("not a condition on its own")
    _require_repeatable(connection, sql)
    found = connection.execute(f"{sql} {request['tail']}", request["params"]).fetchnumpy()
    _send({"names": list(found)})
    for column in list(found):
        values = found.pop(column)
        mask: Any = getattr(values, "mask", None)
        data = values.data if mask is not None else values
        has_mask = mask is not None and bool(mask.any())
        if data.dtype.hasobject:
            _send({"rows": len(data), "dtype": "json", "has_mask": False})
            _send([None if has_mask and mask[place] else _plain(value) for place, value in enumerate(data.tolist())])
            continue
        _send({"rows": len(data), "dtype": data.dtype.str, "has_mask": has_mask})
        sys.stdout.buffer.write(memoryview(data).cast("B") if len(data) else b"")
        if has_mask:
            sys.stdout.buffer.write(mask.tobytes())
    _send({"is_cut": False})


def _without_where(connection: Any, sql: str) -> Any:
    """Return the parsed query without its condition."""
    return {key: value for key, value in _parsed(connection, sql).items() if key != "where_clause"}


def _parsed(connection: Any, sql: str) -> dict[str, Any]:
    parsed = json.loads(connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()[0])
    if parsed["error"] or len(parsed["statements"]) != 1:
        raise Refused(str(parsed.get("error_message", "cannot be parsed")))
    return dict(parsed["statements"][0]["node"])


def _require_repeatable(connection: Any, sql: str) -> None:
    """Refuse a condition that keeps other rows at another time: chance, the clock, samples."""
    found = connection.execute("SELECT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'").fetchall()
    unsteady = CLOCK_FUNCTIONS | {str(name).lower() for (name,) in found}
    for node in _nodes(_parsed(connection, sql)):
        if node.get("sample"):
            raise Unsteady("a sample keeps other rows each time, so the condition cannot be repeated")
        called = {str(node.get("function_name", "")).lower()} & unsteady
        named = {str(name).lower() for name in node.get("column_names") or ()} & CLOCK_NAMES
        for name in sorted(called | named):
            raise Unsteady(f"{name} is another value each time, so the condition cannot be repeated")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a parsed query."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: decimals as floats, bytes in hexadecimal, dates and the like as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if type(value).__name__ == "Decimal":
        return float(value)
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _send(value: Any) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode("ascii") + b"\n")


if __name__ == "__main__":
    main()
