"""Remove what no receipt and no reader needs: unfinished writes, snapshots that nothing names, old generations.

Nothing is judged by its age: clocks jump, and a slow writer's file is old too. A file goes only while this process
holds the lock under which such files are written, so that nobody can be writing it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfbind_store.durable import file_lock, leftovers, sole_owner, typed_errors
from tfbind_store.errors import TfbindError
from tfbind_store.store.folder import Store

_SHARD = re.compile(r"^c\.(\d+)(\.0)*$")


class GarbageReport(NamedTuple):
    """What was removed, or would be."""

    files: tuple[str, ...]
    """Relative to the store."""
    size_bytes: int
    kept: tuple[str, ...]
    """Places that could not be looked at, and why."""


def collect_garbage(
    store: Store, *, dry_run: bool = False, orphans: bool = False, quarantine: bool = False
) -> GarbageReport:
    """Remove what is not needed.

    Parameters
    ----------
    store
        Whose.
    dry_run
        Only say what would go.
    orphans
        Also shards that have no receipt: what a kill before the receipt leaves. They would be replaced anyway.
    quarantine
        Also what `repair` and `rebuild-catalog` have set aside.
    """
    found: list[Path] = []
    kept: list[str] = []
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(store.locked())
            found += store.snapshots.leftovers()
            own = [store.path, store.path / "catalog", store.path / "transforms"]
            found += [path for folder in [*own, *store.snapshots.folders()] for path in leftovers(folder)]
        except TfbindError as error:
            kept.append(f"catalog: {error.what}")
        for name in store.array_names():
            try:
                layout = store.array(name, on_damage="exclude").layout
            except TfbindError as error:
                kept.append(f"{name}: {error.what}")
                continue
            held = layout.receipts_dir.is_dir() and locks.enter_context(file_lock(layout.writing_lock, blocking=False))
            if not held:
                kept.append(f"{name}: somebody is writing, or the disk knows no locks")
                continue
            found += [*leftovers(layout.path), *leftovers(layout.receipts_dir)]
            found += list(_orphans(layout.path, layout.receipts_dir)) if orphans else []
        for name in store.runs():
            try:
                is_alone = locks.enter_context(sole_owner(store.run_dir(name), doing="writing this run"))
            except (TfbindError, OSError) as error:
                kept.append(f"run {name}: {getattr(error, 'what', error)}")
                continue
            if is_alone:
                found += leftovers(store.run_dir(name))
            else:
                kept.append(f"run {name}: the disk knows no locks")
        found += [path for path in (store.path / "quarantine").glob("*")] if quarantine else []
        sizes = [_size(path) for path in found]
        if not dry_run:
            for path in found:
                _remove(path)
    return GarbageReport(tuple(str(path.relative_to(store.path)) for path in found), sum(sizes), tuple(kept))


def _orphans(folder: Path, receipts_dir: Path) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):
        match = _SHARD.match(name)
        if match and not (receipts_dir / f"{int(match[1]):06d}.json").exists():
            yield folder / name


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
    return path.lstat().st_size


def _remove(path: Path) -> None:
    with typed_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
