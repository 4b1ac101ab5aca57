"""Stores of any size with invented numbers, for `benchmarks/heads.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfbind_store.arrays.sharded import WindowState, publish_shard
from tfbind_store.durable import FileSystem
from tfbind_store.genome import ChromosomeInfo, GenomeImport
from tfbind_store.ingest import import_peaks, import_proteins
from tfbind_store.loci import Grid
from tfbind_store.precompute.embedder import SequenceEmbedding, TextEmbedding
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store
from tfbind_store.store.identity import meta_bytes, new_meta
from tfbind_store.store.stock import fill_genome

BIN_BP, SHARD_WINDOWS = 128, 8
SELECTION = "all"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class Holes(FileSystem):
    """Writes zeros as holes and waits for no disk: a store of 20 GB takes no room."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write, or skip what is all zero."""
        if np.frombuffer(data, dtype=np.uint8).any():
            return super().write(descriptor, data)
        end = os.lseek(descriptor, len(data), os.SEEK_CUR)
        os.ftruncate(descriptor, end)
        return len(data)

    def fsync(self, descriptor: int) -> None:
        """Wait for nothing."""


class _Invented:
    """Numbers of a width, for proteins and texts."""

    def __init__(self, kind: str, dim: int) -> None:
        self.kind, self.dim = kind, dim

    def spec(self) -> EmbeddingSpec:
        dtype = "float16" if self.kind == "proteins" else "float32"
        return EmbeddingSpec(kind=self.kind, embedder="invented", dim=self.dim, dtype=dtype)  # type: ignore[arg-type]

    def embed(self, items: Sequence[str]):  # type: ignore[no-untyped-def]
        rng = np.random.default_rng(len(items))
        if self.kind == "contexts":
            values = rng.normal(size=(len(items), self.dim)).astype(np.float32)
            return TextEmbedding(values, np.zeros(len(items), dtype=bool))
        return (SequenceEmbedding(rng.normal(size=(len(s), self.dim)).astype(np.float32), False) for s in items)


def invented_store(
    path: Path,
    *,
    n_windows: int,
    n_bins: int,
    dna_dim: int,
    protein_dim: int,
    residues: int,
    context_dim: int,
    n_factors: int,
    is_sparse: bool = False,
) -> Store:
    """Make a store of two chromosomes: the windows of the first train, 2 of the second validate."""
    (path / "genome").mkdir(parents=True)
    grid = Grid(window_bp=n_bins * BIN_BP, n_bins=n_bins, bin_bp=BIN_BP)
    window_bp = n_bins * BIN_BP
    infos, offset = [], 0
    for name, windows in (("chr1", n_windows), ("chr2", 2)):
        infos.append(ChromosomeInfo(name, windows * window_bp, "0" * 32, 0, offset))
        offset += windows * window_bp
    with (path / "genome" / "codes.u8").open("wb") as file:
        file.truncate(offset)
    meta = new_meta(GenomeImport(tuple(infos), {}, ()), grid, {})
    (path / "store.json").write_bytes(meta_bytes(meta))
    store = Store(path, meta)
    with store.writer() as catalog:
        fill_genome(catalog, meta, store.genome, store.tiling)
    rng = np.random.default_rng(0)
    names = [f"TF{number}" for number in range(n_factors)]
    proteins = path.parent / "p.fa"
    proteins.write_text("".join(f">{n} gene={n}\n{''.join(rng.choice(list(LETTERS), residues))}\n" for n in names))
    peaks = path.parent / "p.bed"
    with peaks.open("w") as bed:
        for place, name in enumerate(names):
            for chrom, windows in (("chr1", n_windows), ("chr2", 2)):
                for start in sorted(rng.choice(windows * n_bins, 20, replace=False) * BIN_BP):
                    bed.write(f"{chrom}\t{start}\t{start + 20}\tE{place}.{name}.cell{place % 2}\t5\t.\n")
    import_proteins(store, proteins)
    import_peaks(store, peaks)
    embed_factors(store, _Invented("proteins", protein_dim))
    embed_contexts(store, _Invented("contexts", context_dim))
    _fill_windows(store, dna_dim, is_sparse=is_sparse)
    split = SplitConfig(train_chroms=("chr1",), valid_chroms=("chr2",))
    make_selection(store, SELECTION, SelectionConfig(split=split, negatives=("random:1",)))
    return store


def _fill_windows(store: Store, dim: int, *, is_sparse: bool) -> None:
    grid = store.grid
    said = {"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp}
    spec = EmbeddingSpec(kind="windows", embedder="invented", dim=dim, grid=said, genome=store.meta.genome)
    shape = (store.tiling.n_windows, grid.n_bins, dim)
    array = store.create_array("embeddings/windows", spec, shape, SHARD_WINDOWS)
    rng = np.random.default_rng(0)
    for shard in range(array.n_shards):
        rows = array.layout.rows_in(shard)
        block = np.zeros((rows, grid.n_bins, dim), dtype=np.float16)
        if not is_sparse:
            block[:] = rng.normal(size=block.shape)
        publish_shard(array, shard, block, [WindowState.ok] * rows, fs=Holes())
