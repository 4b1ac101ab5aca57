"""Remember by which calls a catalog was filled, so that the same calls can fill it again.

A call is its verb, its arguments as JSON, and the sha256 of every file it named. It is written into the catalog in the
transaction of the import itself, so a call is on record exactly if it happened; the store keeps a copy outside.

Who fills a store by a plan learns here what an import stood on (`watching`), and can have a later one take the place of
an earlier one in a single transaction (`replacing`).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from tfbind_store.catalog.database import Catalog
from tfbind_store.store.stock import IMPORTS_KEY, recorded_imports

_FILE_ARGUMENTS = ("path", "scoped", "annotation", "experiments_tsv", "aliases", "synonyms")
_RECEIPTED = ("import_tracks", "import_signals")
"""Verbs whose folder is not hashed: it may hold terabytes, more files come later, and receipts know each by itself."""
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Call:
    verb: str
    arguments: dict[str, Any]
    is_noted: bool = False


class SourceKey(NamedTuple):
    """What tells one imported file from another, in whichever catalog."""

    kind: str
    sha256: str
    options: str


@dataclass
class Imported:
    """What some imports left in a catalog, or found there because the same had been imported before."""

    sources: list[SourceKey] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    """``verb`` and ``arguments``."""


_running: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("running import", default=None)
_watched: contextvars.ContextVar[Imported | None] = contextvars.ContextVar("watched imports", default=None)
_replaced: contextvars.ContextVar[Imported | None] = contextvars.ContextVar("replaced imports", default=None)


@contextlib.contextmanager
def watching() -> Iterator[Imported]:
    """Give what the imports in the block stand on; it is filled as they go."""
    seen = Imported()
    token = _watched.set(seen)
    try:
        yield seen
    finally:
        _watched.reset(token)


@contextlib.contextmanager
def replacing(old: Imported) -> Iterator[None]:
    """Have the import in the block take back `old` in its own transaction: it counts as never imported."""
    token = _replaced.set(old)
    try:
        yield
    finally:
        _replaced.reset(token)


def replaced() -> Imported:
    """Return what the running import replaces."""
    return _replaced.get() or Imported()


def saw_source(source: SourceKey) -> None:
    """Tell who watches that an import stands on this source."""
    if (seen := _watched.get()) is not None:
        seen.sources.append(source)


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Have an import verb leave its call in the catalog."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        del arguments["store"]
        running = _Call(function.__name__, {name: _plain(name, v) for name, v in arguments.items()})
        token = _running.set(running)
        try:
            result = function(*args, **kwargs)
        finally:
            _running.reset(token)
        if (seen := _watched.get()) is not None:
            seen.calls.append({"verb": running.verb, "arguments": running.arguments})
        return result

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
