"""Remember by which calls a catalog was filled, so that the same calls can fill it again.

A call is its verb, its arguments as JSON, and the sha256 of every file it named. It is written into the catalog in the
transaction of the import itself, so a call is on record exactly if it happened; the store keeps a copy outside.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tfbind_store.catalog import Catalog
from tfbind_store.stock import IMPORTS_KEY, recorded_imports

_FILE_ARGUMENTS = ("path", "annotation", "experiments_tsv", "aliases", "synonyms")
_RECEIPTED = ("import_tracks", "import_signals")
"""Verbs whose folder is not hashed: it may hold terabytes, more files come later, and receipts know each by itself."""
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Call:
    verb: str
    arguments: dict[str, Any]
    is_noted: bool = False


_running: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("running import", default=None)


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Have an import verb leave its call in the catalog."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        del arguments["store"]
        token = _running.set(_Call(function.__name__, {name: _plain(name, v) for name, v in arguments.items()}))
        try:
            return function(*args, **kwargs)
        finally:
            _running.reset(token)

    return call


def note_call(catalog: Catalog, digest: Callable[[Path], str]) -> None:
    """Write the running import's call into the catalog, once; the caller is in its transaction."""
    call = _running.get()
    if call is None or call.is_noted:
        return
    files = {path: digest(Path(path)) for path in _files(call)}
    calls = [*recorded_imports(catalog), {"verb": call.verb, "arguments": call.arguments, "files": files}]
    catalog.insert("data.meta", {"key": [IMPORTS_KEY], "value": [json.dumps(calls)]}, replace=True)
    call.is_noted = True


def _plain(name: str, value: Any) -> Any:
    """Return an argument as JSON, paths made absolute."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str | Path):
        return str(Path(value).absolute()) if name in _FILE_ARGUMENTS else str(value)
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else [_plain(name, item) for item in value]


def _files(call: _Call) -> list[str]:
    found: list[str] = []
    for name in _FILE_ARGUMENTS[call.verb in _RECEIPTED :]:
        value = call.arguments.get(name)
        found += [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []
    return found


def changed_files(calls: list[dict[str, Any]], digest: Callable[[Path], str]) -> dict[str, str]:
    """Return the files of some calls that are gone or hold something else now, and which of the two."""
    odd: dict[str, str] = {}
    for call in calls:
        for path, sha256 in call["files"].items():
            found = ""
            with contextlib.suppress(ValueError, OSError):
                found = digest(Path(path))
            if found != sha256:
                odd[path] = "has changed" if found else "is gone"
    return odd
