"""Make a store's catalog again: from the files it was filled from, or from a snapshot that is still whole.

What lies in the store's folders (arrays, receipts, selections, runs) is indexed from there in any case. The old
catalog's files are set aside in ``quarantine/``, never deleted.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import TEMPORARY_SUFFIX, typed_errors
from tfbind_store.errors import CatalogError, TfbindError
from tfbind_store.ingest.calls import changed_files
from tfbind_store.ingest.kin_tables import import_families, import_trunk
from tfbind_store.ingest.listed import import_negatives
from tfbind_store.ingest.loci import import_blacklist, import_loci
from tfbind_store.ingest.metadata import import_biotypes, import_experiments
from tfbind_store.ingest.peak_tracks import import_peak_tracks
from tfbind_store.ingest.peaks import import_peaks
from tfbind_store.ingest.proteins import import_proteins
from tfbind_store.ingest.sources import digest_of
from tfbind_store.ingest.tracks import import_signals, import_tracks
from tfbind_store.spec import MEASURED
from tfbind_store.store import stock
from tfbind_store.store.folder import Store

Origin = Literal["inputs", "snapshot", "genome"]
_VERBS: Mapping[str, Callable[..., object]] = {
    verb.__name__: verb
    for verb in (
        import_peaks,
        import_proteins,
        import_experiments,
        import_biotypes,
        import_blacklist,
        import_loci,
        import_negatives,
        import_families,
        import_trunk,
        import_tracks,
        import_signals,
        import_peak_tracks,
    )
}
_log = logging.getLogger(__name__)


class RebuildReport(NamedTuple):
    """What the catalog was made from."""

    origin: Origin
    n_imports: int
    """Imports that were done again."""
    n_shards: int
    """Receipts that were indexed."""
    aside: str
    """Folder of the old catalog's files."""
    notes: tuple[str, ...]
    seconds: float


def rebuild_catalog(store: Store, *, origin: Origin | None = None) -> RebuildReport:
    """Make the catalog again.

    Parameters
    ----------
    store
        Whose.
    origin
        ``inputs``: the recorded imports, done again. ``snapshot``: the newest snapshot that is whole. ``genome``:
        nothing but genome and folders; everything is to be imported again. Default: inputs where all of them are on
        record and unchanged and give all that a snapshot knows of, else a snapshot.

    Raises
    ------
    CatalogError
        If what is asked for is not there, with the files that changed.
    """
    started = time.monotonic()
    aside = store.path / "quarantine" / f"catalog-{secrets.token_hex(4)}"
    notes: list[str] = []
    with store.locked(), _scratch(store) as scratch:
        calls = _calls(store)
        odd = {} if calls is None else changed_files(calls, digest_of)
        notes += [f"{path} {what}" for path, what in odd.items()]
        can_replay = calls is not None and not odd
        chosen: Origin = origin or ("inputs" if can_replay else "snapshot")
        if chosen == "snapshot":
            database = _whole_snapshot(store, notes)
        elif chosen == "inputs" and not can_replay:
            what = f"{len(odd)} inputs are not what they were: {notes[0]}" if odd else "no import is on record"
            raise CatalogError(what, where=str(store.path), fix="put the files back, or use --from snapshot")
        else:
            database = _replayed(scratch, (calls or []) if chosen == "inputs" else [])
        if chosen == "inputs" and (lost := _not_on_record(store, database)):
            notes += [f"{path} was imported and is not on record" for path in lost]
            if origin is None:
                chosen, database = "snapshot", _whole_snapshot(store, notes)
        store.snapshots.adopt(database, aside)
    with store.writer() as catalog:
        pass
    with store.reader() as catalog:
        found = catalog.one("SELECT count(*) FROM data.shards")
    n_imports = len(calls or []) if chosen == "inputs" else 0
    seconds = time.monotonic() - started
    return RebuildReport(chosen, n_imports, int(found[0]) if found else 0, str(aside), tuple(notes), seconds)


@contextlib.contextmanager
def _scratch(store: Store) -> Iterator[Store]:
    """Give a store inside the store that shares its genome, for a new catalog to grow in."""
    path = store.path / f".rebuild.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    with typed_errors(path):
        path.mkdir()
        (path / "genome").symlink_to("../genome")
        (path / "receipts").mkdir()
        for folder in MEASURED:  # tracks are binned already: their receipts tell the imports so
            if (store.path / folder).is_dir():
                (path / folder).symlink_to(f"../{folder}")
                (path / "receipts" / folder).symlink_to(f"../../receipts/{folder}")
    try:
        yield Store(path, store.meta)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _replayed(scratch: Store, calls: list[dict[str, Any]]) -> Path:
    with scratch.writer() as catalog:
        stock.fill_genome(catalog, scratch.meta, scratch.genome, scratch.tiling)
    for call in calls:
        _log.info("again: %s %s", call["verb"], call["arguments"].get("path", ""))
        _VERBS[call["verb"]](scratch, **call["arguments"])
    return scratch.snapshots.working


def _not_on_record(store: Store, database: Path) -> list[str]:
    """Return the files that the newest readable snapshot was filled from and a replay was not.

    A store of an earlier version, or a script that wrote the catalog itself, has imports that no call tells of.
    """
    with Catalog.open_snapshot(database) as catalog:
        replayed = {(kind, sha256) for kind, sha256 in catalog.rows("SELECT kind, sha256 FROM data.sources")}
    for path in store.snapshots.candidates():
        with contextlib.suppress(TfbindError), Catalog.open_snapshot(path) as catalog:
            known = catalog.rows("SELECT kind, sha256, path FROM data.sources ORDER BY source_id")
            return [str(place) for kind, sha256, place in known if (kind, sha256) not in replayed]
    return []


def _calls(store: Store) -> list[dict[str, Any]] | None:
    """Return the recorded imports: the longest list among the copy outside and the newest readable snapshot."""
    outside = store.snapshots.recorded_imports()
    inside: list[dict[str, Any]] = []
    for path in store.snapshots.candidates():
        with contextlib.suppress(TfbindError), Catalog.open_snapshot(path) as catalog:
            inside = stock.recorded_imports(catalog)
            break
    if outside is None:
        return inside or None
    return max(outside, inside, key=len)


def _whole_snapshot(store: Store, notes: list[str]) -> Path:
    for path in store.snapshots.candidates():
        try:
            _read_all(path, store.meta.genome)
        except TfbindError as error:
            notes.append(f"snapshot {path.parent.name} is not whole: {error.what.splitlines()[0][:200]}")
            continue
        return path
    what = "no snapshot is whole" + (f"; {notes[0]}" if notes else "")
    fix = "put the inputs back, or begin with the genome alone: --from genome, then import again"
    raise CatalogError(what, where=str(store.path / "catalog"), fix=fix)


def _read_all(path: Path, genome: str) -> None:
    """Read every block of a snapshot: DuckDB checks each one's checksum."""
    with Catalog.open_snapshot(path) as catalog:
        found = catalog.one("SELECT value FROM data.meta WHERE key = 'genome'")
        if not found or found[0] != genome:
            raise CatalogError("it is of another genome", where=str(path))
        tables = catalog.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'data'")
        for (table,) in tables:
            catalog.one(f'SELECT bit_xor(hash(t)) FROM data."{table}" AS t')
