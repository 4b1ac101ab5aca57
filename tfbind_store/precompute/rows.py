"""Embed proteins and texts: rows of growing arrays, found again by the sha256 of sequence or text.

A protein's residues lie one after the other; a batch of new proteins begins at a fresh shard, so that nothing published
is written again. Which protein lies where is said in the receipt of the last shard it reaches, under ``rows``: a
protein is there once its last residue is. Texts have a row each and fill shards up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped
from tqdm import tqdm

from tfbind_store.arrays.sharded import ArrayLayout, ShardedArray, WindowState, publish_shard
from tfbind_store.errors import Interrupted, ProteinError, StoreError
from tfbind_store.precompute.embedder import (
    SequenceEmbedder,
    SequenceEmbedding,
    TextEmbedder,
    batches,
    release,
    rows_counter,
)
from tfbind_store.precompute.outcome import EmbedReport, Failure
from tfbind_store.precompute.stopping import stop_requests
from tfbind_store.precompute.upkeep import index, require_space, to_stored
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

PROTEIN_SHARD_BYTES = 8 * 1024 * 1024
LEAST_PROTEIN_ROWS = 1024
RESIDUES_PER_CHUNK = 64
TEXTS_PER_SHARD = 64
_log = logging.getLogger(__name__)
_FACTOR_PROTEINS = """
    SELECT p.sha256, any_value(p.sequence), string_agg(DISTINCT s.gene, ', ' ORDER BY s.gene)
    FROM data.factor_subunits s JOIN data.proteins p USING (protein_id) GROUP BY p.sha256 ORDER BY min(p.protein_id)
"""
_EVERY_PROTEIN = """
    SELECT sha256, any_value(sequence), string_agg(DISTINCT symbol, ', ' ORDER BY symbol)
    FROM data.proteins GROUP BY sha256 ORDER BY min(protein_id)
"""
_TEXTS = "SELECT sha256(text), any_value(text), any_value(text) FROM data.contexts GROUP BY 1 ORDER BY min(context_id)"


class Item(NamedTuple):
    """A protein or text to embed."""

    sha256: str
    content: str
    name: str


def embed_factors(
    store: Store,
    embedder: SequenceEmbedder,
    *,
    name: str | None = None,
    every_protein: bool = False,
    progress: bool = False,
) -> EmbedReport:
    """Embed the proteins of the catalog's factors that have no receipt yet, each distinct sequence once.

    Parameters
    ----------
    store, embedder
        Where and with what.
    name
        Label of the array; default the embedder's name.
    every_protein
        All imported proteins, not only those that some factor is made of.
    progress
        Show a progress bar on stderr.

    Raises
    ------
    StoreError
        If no factor has a protein.
    SpecError, NoSpace, Interrupted
        As for windows.
    """
    started, spec = time.monotonic(), embedder.spec()
    items = _items(store, _EVERY_PROTEIN if every_protein else _FACTOR_PROTEINS)
    if not items:
        raise StoreError(
            "no factor has a protein",
            where=str(store.path),
            fix="tfbind import factors STORE FASTA, and peaks; or --every-protein",
        )
    array_name = store.array_name_for("proteins", name or spec.embedder)
    known = _known(store, array_name, spec)
    todo = sorted((item for item in items if item.sha256 not in known), key=lambda item: -len(item.content))
    _tell(items, known, array_name)
    failures: list[Failure] = []
    if todo:
        n_rows = sum(map(rows_counter(embedder), (len(item.content) for item in todo)))
        shard_rows = _protein_shard_rows(spec, n_rows)
        require_space(store, -(-n_rows // shard_rows) * shard_rows * spec.dim * 2, what=array_name)
        array = store.create_array(array_name, spec, (n_rows, spec.dim), shard_rows)
        first = (max((*array.receipts(), *array.damaged), default=-1) + 1) * array.layout.shard_rows
        writer = ResidueWriter(store.grow_array(array_name, first + n_rows).layout, first)
        with _indexed_when_stopped(store, array_name):
            failures = _embed_proteins(writer, embedder, todo, progress=progress)
    release(embedder)
    index(store, array_name)
    return _report(store, array_name, "protein", items, todo, failures, time.monotonic() - started)


def embed_contexts(
    store: Store, embedder: TextEmbedder, *, name: str | None = None, progress: bool = False
) -> EmbedReport:
    """Embed the context texts of the catalog's biotypes that have no receipt yet, each distinct text once.

    Parameters
    ----------
    store, embedder
        Where and with what.
    name
        Label of the array; default the embedder's name.
    progress
        Show a progress bar on stderr.
    """
    started, spec = time.monotonic(), embedder.spec()
    items = _items(store, _TEXTS)
    if not items:
        raise StoreError("no biotype has a context text", where=str(store.path), fix="tfbind import peaks or biotypes")
    array_name = store.array_name_for("contexts", name or spec.embedder)
    known = _known(store, array_name, spec)
    todo = [item for item in items if item.sha256 not in known]
    _tell(items, known, array_name)
    failures: list[Failure] = []
    if todo:
        require_space(store, (len(todo) + TEXTS_PER_SHARD) * spec.dim * 4, what=array_name)
        first = 1 + max((int(row["row_index"]) for row in known.values()), default=-1)
        store.create_array(array_name, spec, (first + len(todo), spec.dim), TEXTS_PER_SHARD)
        store.grow_array(array_name, first + len(todo))
        with _indexed_when_stopped(store, array_name):
            failures = _embed_texts(store, array_name, embedder, todo, first, progress=progress)
    release(embedder)
    index(store, array_name)
    return _report(store, array_name, "text", items, todo, failures, time.monotonic() - started)


class ResidueWriter:
    """Lays proteins one after the other and publishes each shard as soon as it is full.

    Parameters
    ----------
    layout
        Of the array, large enough.
    first_row
        Where to begin: the first row of a shard that has no receipt.
    """

    def __init__(self, layout: ArrayLayout, first_row: int) -> None:
        assert first_row % layout.shard_rows == 0, "a batch begins at a shard boundary"
        self.layout = layout
        self.shard_id = first_row // layout.shard_rows
        self._buffer = np.zeros((layout.shard_rows, *layout.row_shape), dtype=layout.dtype)
        self._filled = 0
        self._rows: list[dict[str, Any]] = []
        self._started = time.monotonic()

    def add(self, sha256: str, values: Shaped[np.ndarray, "length dim"], *, truncated: bool) -> None:
        """Take one protein in."""
        first_row = self.shard_id * self.layout.shard_rows + self._filled
        left = values
        while len(left):
            if self._filled == self.layout.shard_rows:
                self._publish()
            take = min(len(left), self.layout.shard_rows - self._filled)
            self._buffer[self._filled : self._filled + take] = left[:take]
            self._filled += take
            left = left[take:]
        self._rows.append(
            {"sha256": sha256, "first_row": first_row, "n_rows": len(values), "truncated": bool(truncated)}
        )

    def close(self) -> None:
        """Publish the last shard, zeros after the last residue."""
        if self._filled:
            self._publish()

    def _publish(self) -> None:
        n_rows = self.layout.rows_in(self.shard_id)
        states = [WindowState.ok] * self.layout.windows_in(self.shard_id)
        seconds = round(time.monotonic() - self._started, 3)
        provenance = {"rows": self._rows, "seconds": seconds}
        publish_shard(self.layout, self.shard_id, self._buffer[:n_rows], states, provenance=provenance)
        self.shard_id += 1
        self._buffer = np.zeros_like(self._buffer)
        self._filled, self._rows, self._started = 0, [], time.monotonic()


def _embed_proteins(
    writer: ResidueWriter, embedder: SequenceEmbedder, todo: Sequence[Item], *, progress: bool
) -> list[Failure]:
    failures = []
    with stop_requests() as stop:
        results = tqdm(_each_protein(embedder, todo), total=len(todo), unit="protein", disable=not progress)
        for item, result, reason in results:
            if result is not None:
                stored, reason = to_stored(result.values, writer.layout.dtype)
            if result is None or reason:
                _log.warning("protein %s failed: %s", item.name, reason)
                failures.append(Failure(-1, item.name, str(reason)))
            else:
                _log.info("computed %s: %d rows", item.name, len(stored))
                writer.add(item.sha256, stored, truncated=result.truncated)
            if stop:
                break
        writer.close()
        if stop:
            raise stop.error("what was computed is published", where=writer.layout.name)
    return failures


def _each_protein(
    embedder: SequenceEmbedder, items: Sequence[Item]
) -> Iterator[tuple[Item, SequenceEmbedding | None, str | None]]:
    """Yield each protein with its numbers, or with the reason why it has none; all good ones share batches."""
    place = 0
    while place < len(items):
        try:
            for result in embedder.embed([item.content for item in items[place:]]):
                yield items[place], result, None
                place += 1
        except ProteinError:  # of this protein or of one behind it in the same batch
            try:
                yield items[place], next(iter(embedder.embed([items[place].content]))), None
            except ProteinError as error:
                yield items[place], None, error.what
            place += 1


def _tell(items: Sequence[Item], known: Mapping[str, Mapping[str, Any]], array_name: str) -> None:
    """Log what need not be computed."""
    for item in items:
        if item.sha256 in known:
            _log.info("reused %s of %s", item.name, array_name)


def _embed_texts(
    store: Store, array_name: str, embedder: TextEmbedder, todo: Sequence[Item], row: int, *, progress: bool
) -> list[Failure]:
    failures: list[Failure] = []
    with stop_requests() as stop, tqdm(total=len(todo), unit="text", disable=not progress) as bar:
        for part in batches(todo, TEXTS_PER_SHARD):
            array = store.array(array_name, on_damage="exclude")
            result = embedder.embed([item.content for item in part])
            good: list[PlacedText] = []
            for item, values, truncated in zip(part, result.values, result.truncated.tolist(), strict=True):
                stored, reason = to_stored(values, array.layout.dtype)
                if reason:
                    _log.warning("text %r failed: %s", item.name, reason)
                    failures.append(Failure(-1, item.name, reason))
                else:
                    _log.info("computed %r", item.name)
                    good.append(PlacedText(row + len(good), item.sha256, stored, truncated))
            for shard_id in sorted({text.row // array.layout.shard_rows for text in good}):
                _publish_texts(array, shard_id, good)
            row += len(good)
            bar.update(len(part))
            if stop:
                raise stop.error("what was computed is published", where=array_name)
    return failures


class PlacedText(NamedTuple):
    """A text's numbers and the row they go to."""

    row: int
    sha256: str
    values: Float32[np.ndarray, " dim"]
    truncated: bool


def _publish_texts(array: ShardedArray, shard_id: int, texts: Sequence[PlacedText]) -> None:
    """Publish those of `texts` that lie in a shard beside what it has, whose places the new receipt names again."""
    layout = array.layout
    data = np.full((layout.rows_in(shard_id), *layout.row_shape), np.nan, dtype=layout.dtype)
    states = [WindowState.not_asked] * layout.windows_in(shard_id)
    receipt = array.receipts().get(shard_id)
    rows = list(receipt.provenance.get("rows", ())) if receipt else []
    for text in texts:
        place = text.row - shard_id * layout.shard_rows
        if 0 <= place < len(data):
            data[place] = text.values
            states[place] = WindowState.ok
            rows.append({"sha256": text.sha256, "row_index": text.row, "truncated": bool(text.truncated)})
    publish_shard(layout, shard_id, data, states, provenance={"rows": rows})


@contextlib.contextmanager
def _indexed_when_stopped(store: Store, array_name: str) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        index(store, array_name)
        raise


def _items(store: Store, sql: str) -> list[Item]:
    with store.reader() as catalog:
        return [Item(*map(str, row)) for row in catalog.rows(sql)]


def _known(store: Store, array_name: str, spec: EmbeddingSpec) -> dict[str, Mapping[str, Any]]:
    """Return by sha256 where receipts say that rows lie which can be read; refuse another embedder's array."""
    if array_name not in store.array_names():
        return {}
    array = store.array(array_name, on_damage="exclude")
    array.spec.require_same(spec, where=array_name, fix="keep it and embed under another name: --name other")
    return _rows_of(array)


def _rows_of(array: ShardedArray) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for _, receipt in sorted(array.receipts().items()):
        for row in receipt.provenance.get("rows", ()):
            first = int(row.get("first_row", row.get("row_index")))
            if array.is_ok(np.arange(first, first + int(row.get("n_rows", 1)))).all():
                found[row["sha256"]] = row
    return found


def _protein_shard_rows(spec: EmbeddingSpec, n_rows: int) -> int:
    fitting = PROTEIN_SHARD_BYTES // (spec.dim * np.dtype(spec.dtype).itemsize)
    rows = min(max(fitting, LEAST_PROTEIN_ROWS), max(n_rows, LEAST_PROTEIN_ROWS))
    return -(-rows // RESIDUES_PER_CHUNK) * RESIDUES_PER_CHUNK


def _report(
    store: Store,
    array_name: str,
    unit: str,
    items: Sequence[Item],
    todo: Sequence[Item],
    failures: Sequence[Failure],
    seconds: float,
) -> EmbedReport:
    there = _rows_of(store.array(array_name, on_damage="exclude"))
    found = [there[item.sha256] for item in items if item.sha256 in there]
    return EmbedReport(
        array=array_name,
        unit=unit,
        n_asked=len(items),
        n_done_before=len(items) - len(todo),
        n_computed=len(todo),
        n_missing=len(items) - len(found) - len(failures),
        n_truncated=sum(bool(row["truncated"]) for row in found),
        failures=tuple(failures),
        seconds=seconds,
    )
