"""The folder that holds it all: the only place that knows file names.

A store is made once from a genome and a grid, which ``store.json`` records and nothing changes afterwards. Readers get
the newest snapshot of the catalog; one writer at a time holds the lock, and what it did becomes the next snapshot, or
never happened. Arrays are opened by name and checked against the store's genome and grid. See ``docs/format.md``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tfbind_store import config as configs
from tfbind_store.arrays.decoded import open_array
from tfbind_store.arrays.layouts import read_layout
from tfbind_store.arrays.on_reading import stored_bins
from tfbind_store.arrays.receipts import Completeness
from tfbind_store.arrays.sharded import OnDamage, ShardedArray, Verify, create_array
from tfbind_store.catalog.columns import Parameters
from tfbind_store.catalog.database import Catalog
from tfbind_store.catalog.snapshots import Snapshots
from tfbind_store.durable import make_directory, publish, typed_errors
from tfbind_store.errors import CatalogError, SpecError, StoreBusy, StoreError, StoreExists, TfbindError
from tfbind_store.genome import Genome, write_genome
from tfbind_store.loci import Grid, Tiling
from tfbind_store.names import path_safe_name
from tfbind_store.spec import MEASURED, SHORT_ID_LENGTH, ArrayKind, EmbeddingSpec
from tfbind_store.store import stock
from tfbind_store.store.answers import Answer
from tfbind_store.store.identity import FILE_NAME, StoreMeta, meta_bytes, new_meta, read_meta
from tfbind_store.store.residues import FactorBatch, FactorProteins
from tfbind_store.store.sequences import FactorSequences

__all__ = ["Answer", "ArrayInfo", "FactorBatch", "FactorProteins", "Store", "StoreMeta"]
_log = logging.getLogger(__name__)
FOLDERS: Final[dict[ArrayKind, str]] = {
    "windows": "embeddings",
    "proteins": "proteins",
    "contexts": "contexts",
    "tracks": "tracks",
    "signals": "signals",
}
_CONTEXT_ROWS = """
    SELECT b.biotype_id, b.biotype, r.row_index
    FROM data.biotypes b
    LEFT JOIN data.contexts c USING (biotype_id)
    LEFT JOIN data.context_rows r ON r.sha256 = sha256(c.text) AND r.array_name = ?
"""
CHUNK_ROWS: Final[dict[ArrayKind, int]] = {"windows": 1, "proteins": 64, "contexts": 1, "tracks": 1, "signals": 1}
"""Rows per inner chunk: a window, a text, a track, a short run of residues."""


class ArrayInfo(NamedTuple):
    """One array of a store, as `Store.arrays` lists it."""

    name: str
    spec: EmbeddingSpec
    shape: tuple[int, ...]
    completeness: Completeness
    size_bytes: int
    n_damaged: int
    """Shards that have a receipt and cannot be served."""


class Store:
    """A store that exists. Use `create` or `open`."""

    def __init__(self, path: Path, meta: StoreMeta, *, verify: Verify = "index") -> None:
        self.path = path
        self.meta = meta
        self.verify: Verify = verify
        """How arrays are checked as they are read, unless `array` is told otherwise."""
        self.grid = meta.grid
        self.genome = Genome(path / "genome" / "codes.u8", meta.chromosomes)
        self.tiling = Tiling.over(meta.grid, self.genome.lengths_bp)
        self.snapshots = Snapshots(path / "catalog")
        """The catalog's files."""

    # making and opening ----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        fasta: Path | str,
        grid: Grid | None = None,
        aliases: Mapping[str, str] | None = None,
        chrom_sizes: Path | str | None = None,
        only: Sequence[str] | None = None,
    ) -> Store:
        """Make a store from a genome: whole, or not at all.

        Parameters
        ----------
        path
            Must not exist, or be an empty folder.
        fasta
            Plain, gzip or bgzip; not needed any more afterwards.
        grid
            Of windows and bins; default Enformer's.
        aliases
            Other names of chromosomes, beside those that follow from the names.
        chrom_sizes
            Table to check the FASTA against.
        only
            Chromosomes to keep.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreExists("there is something at this path already", where=str(path), fix="choose another path")
        building = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        with typed_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            building.mkdir()
        try:
            with typed_errors(path):
                (building / "genome").mkdir()
            found = write_genome(fasta, building / "genome" / "codes.u8", only=only, chrom_sizes=chrom_sizes)
            meta = new_meta(found, grid or Grid(), aliases or {})
            publish(building / FILE_NAME, [meta_bytes(meta)])
            store = cls(building, meta)
            with store.writer() as catalog:
                stock.fill_genome(catalog, meta, store.genome, store.tiling)
            with typed_errors(path):
                os.rename(building, path)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return cls(path, meta)

    @classmethod
    def open(cls, path: Path | str, *, verify: Verify = "index") -> Store:
        """Open a store.

        Parameters
        ----------
        path
            Its folder.
        verify
            ``index`` checks receipts and the shards' indexes when an array is opened; ``first-touch`` also the hash of
            each window when it is first read.

        Raises
        ------
        StoreMissing
            If there is none.
        FormatVersionError
            If another version of the format wrote it.
        StoreError
            If ``store.json`` or the genome is damaged.
        """
        path = Path(path)
        return cls(path, read_meta(path), verify=verify)

    # catalog -----------------------------------------------------------------------------------------------------

    def reader(self) -> Catalog:
        """Return the newest snapshot of the catalog, for a ``with`` block; writers do not disturb it."""
        catalog = Catalog.open_snapshot(self.snapshots.newest())
        found = catalog.one("SELECT value FROM data.meta WHERE key = 'genome'")
        if not found or found[0] != self.meta.genome:
            catalog.close()
            genome = found[0][:12] if found else "unknown"
            what = f"the catalog is of genome {genome}, the store of {self.meta.genome[:12]}"
            raise CatalogError(what, where=str(catalog.path), fix="run tfbind rebuild-catalog")
        return catalog

    def sql(
        self,
        query: str,
        params: Parameters = None,
        *,
        seconds: float = 30,
        memory: str = "2GB",
        max_rows: int | None = 100_000,
    ) -> Answer:
        """Ask the newest snapshot one SELECT: rows, numpy, pandas, Arrow, a ``BedTool``, or a file.

        Parameters
        ----------
        query
            On the views that ``tfbind sql STORE --schema`` explains.
        params
            Values bound to ``$name`` or ``?``.
        seconds, memory
            What the query may take.
        max_rows
            `Answer.is_cut` says whether there were more.

        Raises
        ------
        SqlError
            If it is anything but one SELECT, or fails; SqlTimeout if its time is up.
        """
        with self.reader() as catalog:
            return Answer(catalog.untrusted(query, params, seconds=seconds, memory=memory, max_rows=max_rows))

    def select(self, name: str, *, overwrite: bool = False, **choices: Any) -> Any:
        """Make a selection and open it: ``store.select("s", where="factor = 'REB1'", n_bins=4)``.

        Parameters
        ----------
        choices
            Fields of ``query.selection.SelectionConfig``; ``split`` as a mapping of ``SplitConfig``'s, or as one.

        Returns
        -------
        The ``query.selection.Selection``.
        """
        # the one look upwards: who holds a store expects selecting beside `sql`, and nothing below depends on it
        selecting = importlib.import_module("tfbind_store.query.selection")
        plain = {key: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for key, v in choices.items()}
        config = configs.from_mapping(selecting.SelectionConfig, plain, where="select")
        selecting.make_selection(self, name, config, overwrite=overwrite)
        return selecting.Selection.open(self, name)

    @property
    def snapshot(self) -> int:
        """Number of the newest snapshot."""
        return self.snapshots.number()

    @contextlib.contextmanager
    def writer(self, *, snapshot: bool = True, wait_seconds: float = 0) -> Iterator[Catalog]:
        """Hold the store's lock and write the catalog; a block that raises leaves no trace.

        At the end, arrays, receipts, selections and runs are indexed and, if `snapshot`, readers see it all.

        Parameters
        ----------
        snapshot
            False keeps the changes from readers until the next writer publishes one.
        wait_seconds
            How long to wait for another writer.

        Raises
        ------
        StoreBusy
            If another process is still writing.
        StoreReadOnly
            If the store cannot be written.
        """
        with self.locked(wait_seconds=wait_seconds):
            self.snapshots.begin()
            try:
                with Catalog.open_writer(self.snapshots.working) as catalog:
                    yield catalog
                    self._take_stock(catalog)
                    calls = stock.recorded_imports(catalog)
                    catalog.execute("CHECKPOINT")
            except BaseException:
                with contextlib.suppress(TfbindError):  # else the next writer does it, and says so
                    self.snapshots.roll_back()
                raise
            if snapshot:
                self.snapshots.publish()
            self.snapshots.end()
            self.snapshots.record_imports(calls)

    def _take_stock(self, catalog: Catalog) -> None:
        readable, unreadable = self._open_arrays()
        for name, error in unreadable.items():
            _log.warning("%s cannot be read and keeps its old rows in the catalog: %s", name, error.what)
        stock.index_arrays(catalog, readable, unreadable=list(unreadable))
        self.index_runs_and_selections(catalog)

    @contextlib.contextmanager
    def locked(self, *, wait_seconds: float = 0) -> Iterator[None]:
        """Keep every writer of the catalog out."""
        path = self.path / "locks" / "catalog.lock"
        make_directory(path.parent)
        with typed_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            deadline = time.monotonic() + wait_seconds
            while not _try_flock(descriptor):
                if time.monotonic() >= deadline:
                    raise _busy(descriptor, path)
                time.sleep(0.05)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"PID {os.getpid()} on {platform.node()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    # arrays ------------------------------------------------------------------------------------------------------

    @staticmethod
    def array_name_for(kind: ArrayKind, label: str) -> str:
        """Return an array's name: its folder by kind, then `label`."""
        return f"{FOLDERS[kind]}/{path_safe_name(label, what='array name')}"

    def array_path(self, name: str) -> Path:
        """Return the ``.zarr`` folder of the array called `name`, for example ``embeddings/windows``."""
        folder, _, label = name.partition("/")
        if folder not in FOLDERS.values():
            what = f"{name!r} is no array name"
            raise StoreError(
                what, where=str(self.path), fix=f"write one of {sorted(FOLDERS.values())}, a slash, a name"
            )
        return self.path / folder / f"{path_safe_name(label, what='array name')}.zarr"

    def receipts_dir(self, name: str, fingerprint: str) -> Path:
        """Return the folder of an array's receipts."""
        self.array_path(name)
        return self.path / "receipts" / name / fingerprint[:SHORT_ID_LENGTH]

    def create_array(
        self, name: str, spec: EmbeddingSpec, shape: tuple[int, ...], shard: int | tuple[int, ...]
    ) -> ShardedArray:
        """Make the array called `name`, or open it if it is there with the same spec.

        Parameters
        ----------
        name
            As `array_name_for` gives it.
        spec
            What the numbers will be made with.
        shape
            Rows first. Rows of proteins and contexts are rounded up to whole shards.
        shard
            Rows per shard, or a shard's shape. For proteins a multiple of 64; a window (inner chunk) is 64 residues.

        Raises
        ------
        SpecError
            If the array is there and was made with something else, naming the field; nothing is written.
        """
        path = self.array_path(name)
        self._require_own(spec, name)
        if (path / "zarr.json").exists():
            array = self.array(name, on_damage="exclude")
            fix = f"keep it and embed under another name: --name other (now {path.stem})"
            array.spec.require_same(spec, where=name, fix=fix)
            return array
        rows = shard if isinstance(shard, int) else shard[0]
        if rows % CHUNK_ROWS[spec.kind]:
            raise SpecError(f"{rows} rows per shard, must be a multiple of {CHUNK_ROWS[spec.kind]}", where=name)
        if spec.kind != "windows":
            shape = (-(-shape[0] // rows) * rows, *shape[1:])
        chunk = (CHUNK_ROWS[spec.kind], *shape[1:])
        create_array(path, spec, shape=shape, shard=(rows, *shape[1:]), chunk=chunk)
        return self.array(name)

    def grow_array(self, name: str, n_rows: int) -> ShardedArray:
        """Give an array of proteins or contexts room for at least `n_rows` rows, in whole shards; its shards stay."""
        layout = self.array(name, on_damage="exclude").layout
        assert layout.spec.kind != "windows", "the genome does not grow"
        n_rows = max(layout.shape[0], -(-n_rows // layout.shard_rows) * layout.shard_rows)
        if n_rows > layout.shape[0]:
            row = layout.row_shape
            shard, chunk = (layout.shard_rows, *row), (layout.window_rows, *row)
            create_array(layout.path, layout.spec, shape=(n_rows, *row), shard=shard, chunk=chunk, replace=True)
        return self.array(name, on_damage="exclude")

    def array(self, name: str, *, verify: Verify | None = None, on_damage: OnDamage = "raise") -> ShardedArray:
        """Open the array called `name`; what `verify` and `on_damage` mean is said at `ShardedArray.open`.

        Without `verify` the store's own is taken.

        Raises
        ------
        StoreMissing
            If there is no such array.
        SpecError
            If it is of another genome or grid.
        """
        path = self.array_path(name)
        layout = read_layout(path, self.path / "receipts", name=name)
        self._require_own(layout.spec, name)
        if layout.spec.kind == "windows":
            wanted = (self.tiling.n_windows, stored_bins(layout.spec.identity, self.grid.n_bins))
            if layout.shape[:2] != wanted:
                what = f"shape {layout.shape}, the store has {wanted[0]} windows of {wanted[1]} rows"
                raise SpecError(what, where=name)
        if layout.spec.kind in MEASURED and layout.shape[1:] != (self.tiling.n_windows, self.grid.n_bins):
            raise SpecError(f"rows of shape {layout.shape[1:]} are not the store's windows and bins", where=name)
        receipts_dir = self.receipts_dir(name, layout.fingerprint)
        how: dict[str, Any] = {"name": name, "verify": verify or self.verify, "on_damage": on_damage}
        return open_array(path, receipts_dir, layout.spec.identity, store_path=self.path, **how)

    def _require_own(self, spec: EmbeddingSpec, name: str) -> None:
        if FOLDERS[spec.kind] != name.partition("/")[0]:
            raise SpecError(f"an array of {spec.kind} under the name {name!r}", where=str(self.path))
        if spec.kind != "windows" and spec.kind not in MEASURED:
            return
        fix = "make another store for it: tfbind init"
        if spec.genome != self.meta.genome:
            what = f"made with genome {str(spec.genome)[:12]}, the store holds {self.meta.genome[:12]}"
            raise SpecError(what, where=name, fix=fix)
        if dict(spec.grid or {}) != asdict(self.grid):
            raise SpecError(
                f"made with grid {dict(spec.grid or {})}, the store has {asdict(self.grid)}", where=name, fix=fix
            )

    def array_names(self) -> list[str]:
        """Return the names of all arrays, sorted within their kind."""
        return [
            f"{folder}/{path.parent.stem}"
            for folder in FOLDERS.values()
            for path in sorted((self.path / folder).glob("*.zarr/zarr.json"))
        ]

    def unreadable_arrays(self) -> dict[str, TfbindError]:
        """Return the arrays whose metadata are damaged or gone, and why; they stop nobody else."""
        return self._open_arrays()[1]

    def _open_arrays(self) -> tuple[list[ShardedArray], dict[str, TfbindError]]:
        readable: list[ShardedArray] = []
        unreadable: dict[str, TfbindError] = {}
        names = self.array_names()
        for name in names:
            try:
                readable.append(self.array(name, on_damage="exclude"))
            except TfbindError as error:
                unreadable[name] = error
        for folder in FOLDERS.values():
            for receipts in sorted((self.path / "receipts" / folder).glob("*")):
                name = f"{folder}/{receipts.name}"
                if name not in names and any(receipts.glob("*/*.json")):
                    where = str(self.path / f"{name}.zarr" / "zarr.json")
                    fix = f"tfbind repair {self.path}"
                    unreadable[name] = StoreError("the array has receipts but no zarr.json", where=where, fix=fix)
        return readable, unreadable

    def arrays(self) -> list[ArrayInfo]:
        """Return what there is, by receipts, without what `unreadable_arrays` names."""
        found = []
        for array in self._open_arrays()[0]:
            name = array.layout.name
            size = sum(receipt.size_bytes for receipt in array.receipts().values())
            n_damaged = len(array.damaged)
            found.append(ArrayInfo(name, array.spec, array.shape, array.completeness(), size, n_damaged))
        return found

    @property
    def proteins(self) -> FactorSequences:
        """The sequences by factor name, as of now: a string, or a tuple of a complex's subunits."""
        return FactorSequences(self)

    @property
    def prepared_path(self) -> Path:
        """Where `tfbind prepare` remembers which stages of a plan were done."""
        return self.path / "prepared.json"

    # selections and runs -------------------------------------------------------------------------------------------

    def selection_dir(self, name: str) -> Path:
        """Return the folder of a selection, whether it exists or not."""
        return self.path / "selections" / path_safe_name(name, what="selection name")

    def cache_dir(self) -> Path:
        """Return the folder of what was computed from the catalog and can be computed again; it may be deleted."""
        return self.path / "cache"

    def run_dir(self, name: str) -> Path:
        """Return the folder of a run, whether it exists or not."""
        return self.path / "runs" / path_safe_name(name, what="run name")

    def selections(self) -> list[str]:
        """Return the names of finished selections."""
        return [path.parent.name for path in sorted((self.path / "selections").glob("*/selection.json"))]

    def runs(self) -> list[str]:
        """Return the names of runs."""
        return [path.name for path in sorted((self.path / "runs").glob("[!.]*")) if path.is_dir()]

    def index_runs_and_selections(self, catalog: Catalog) -> None:
        """Write what selections and runs say of themselves into the catalog; every writer does so at its end."""
        selections = {name: self.selection_dir(name) / "selection.json" for name in self.selections()}
        runs = {name: self.run_dir(name) / "head.safetensors" for name in self.runs()}
        stock.index_descriptions(catalog, selections, runs)

    # proteins and contexts -----------------------------------------------------------------------------------------

    def contexts(self, array_name: str, biotype_ids: Int64[np.ndarray, " c"]) -> Float32[np.ndarray, "c t"]:
        """Return the embedding of each biotype's context text."""
        ids = [int(biotype_id) for biotype_id in biotype_ids]
        with self.reader() as catalog:
            found = catalog.rows(_CONTEXT_ROWS, [array_name])
        rows = {biotype_id: row for biotype_id, _, row in found if row is not None}
        names = {biotype_id: biotype for biotype_id, biotype, _ in found}
        array = self.array(array_name)
        values = np.empty((len(ids), array.shape[-1]), dtype=np.float32)
        for place, biotype_id in enumerate(ids):
            if biotype_id not in rows:
                what = f"the context of biotype {names.get(biotype_id, biotype_id)!r} has not been embedded"
                raise StoreError(what, where=array_name, fix="run tfbind embed STORE contexts")
            values[place] = array.row(rows[biotype_id])
        return values


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a disk without locks: DuckDB still keeps a second writer out
        _log.warning("the store's disk knows no locks: %s", error)
    return True


def _busy(descriptor: int, path: Path) -> StoreBusy:
    holder = os.pread(descriptor, 200, 0).decode("utf-8", errors="replace") or "another process"
    fix = "wait for it to end and run the command again; reading goes on meanwhile"
    return StoreBusy(f"{holder} is writing to this store", where=str(path), fix=fix)
