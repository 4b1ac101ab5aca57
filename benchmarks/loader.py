"""What a loader adds to the reading of its rows, and how it stands beside zarr and the disk.

    python benchmarks/loader.py                           # 64 full windows, 0.35 GB in a temporary folder
    python benchmarks/loader.py --folder /data/tmp --windows 400 --rounds 9

One store with embeddings that nobody computed, peaks, proteins and contexts, made by the package's own commands.
Warm: each round reads the same batches as the loader gives them (embeddings, labels, proteins, contexts), and by one
``np.take`` on the same mapped pages; the ratio is the median of the rounds' ratios of CPU time. *take* gives a new
array for each batch, as the loader does; *take_into* writes over two arrays in turn, which no loader may. The same
batches by zarr, some of them. Cold: pages are given back to the system first; an epoch of the loader over as many rows
of 16 bins as make up the files, in blocks of 16 windows, beside reading the files from end to end; and scattered rows,
announced and not. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zarr

from tfbind_store import ingest
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import (
    Codes,
    TrunkGeometry,
    WindowEmbedding,
    make_sequence_embedder,
    make_text_embedder,
)
from tfbind_store.precompute.run import embed_contexts, embed_factors, embed_windows
from tfbind_store.query.loader import Arrays, Loader
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

ARRAYS = Arrays("embeddings/windows", "proteins/composition", "contexts/hashed")
N_FACTORS = 12
LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


class Invented:
    """Numbers that only the window decides."""

    def __init__(self, dim: int) -> None:
        self.geometry = TrunkGeometry(bin_bp=128, dim=dim)

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return what the array says of itself."""
        where = {"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp}
        identity = {"class": "invented", "trained_on": {"factors": [], "biotypes": [], "chromosomes": []}}
        return EmbeddingSpec(
            kind="windows",
            embedder="invented",
            dim=self.geometry.dim,
            identity=identity,
            grid=where,
            genome=genome_digest,
        )

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield one block of random numbers per window."""
        for window in windows:
            rng = np.random.default_rng(window)
            yield WindowEmbedding(window, rng.random((tiling.grid.n_bins, self.geometry.dim), dtype=np.float32))


def main() -> None:
    """Make the store, compare, print a table and one line of JSON."""
    args = _arguments()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        store = _store(Path(name), args)
        found: dict[str, float] = {}
        for n_bins in args.row_bins:
            make_selection(store, f"rows{n_bins}", SelectionConfig(n_bins=n_bins, negatives=("random:2", "scoped:1")))
            loader = Loader(store, f"rows{n_bins}", "train", arrays=ARRAYS, batch_size=args.batch)
            found |= {f"{key}_{n_bins}_bins": value for key, value in _warm(store, loader, args).items()}
            del loader
        gc.collect()  # pages that are mapped cannot be given back
        found |= _cold(store, args)
    for key, value in found.items():
        print(f"{key:44s}{value:12,.4g}")
    print(json.dumps({"benchmark": "loader", **vars(args), "cores": os.cpu_count(), **found}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--peaks", type=int, default=60, help="peaks of a factor in a window")
    parser.add_argument("--dim", type=int, default=3072)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--row-bins", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def _store(folder: Path, args: argparse.Namespace) -> Store:
    rng = np.random.default_rng(0)
    grid = Grid(window_bp=896 * 128, n_bins=896, bin_bp=128)
    length = args.windows * grid.stride_bp
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[rng.integers(0, 4, length)]
    (folder / "genome.fa").write_bytes(b">chr1\n" + bases.tobytes() + b"\n")
    proteins = ["".join(LETTERS[rng.integers(0, 20, 300)]) for _ in range(N_FACTORS)]
    fasta = "".join(f">sp|P{n:05d}|F{n} GN=F{n}\n{sequence}\n" for n, sequence in enumerate(proteins))
    (folder / "proteins.fa").write_text(fasta)
    rows = []
    for number in range(N_FACTORS):
        for start in np.sort(rng.choice(length - 300, args.windows * args.peaks, replace=False)).tolist():
            rows.append(f"chr1\t{start}\t{start + 200}\tE{number}.F{number}.cell{number % 3}\t5\n")
    (folder / "peaks.bed").write_text("".join(rows))
    store = Store.create(folder / "store", fasta=folder / "genome.fa", grid=grid)
    ingest.import_proteins(store, folder / "proteins.fa")
    ingest.import_peaks(store, folder / "peaks.bed")
    embed_windows(store, Invented(args.dim))
    embed_factors(store, make_sequence_embedder("composition", {}))
    embed_contexts(store, make_text_embedder("hashed", {}))
    return store


def _warm(store: Store, loader: Loader, args: argparse.Namespace) -> dict[str, float]:
    for _ in loader.epoch(0):  # maps what is read
        pass
    flat = loader.dna._maps._spaces[0].flat  # the very pages that the loader reads: other files lie better or worse
    firsts = [loader.table["first_bin"][places] for _, places in loader.batches(0)]
    spent: dict[str, list[float]] = {"loader": [], "take": [], "into": []}
    into = [np.empty((args.batch, loader.n_bins, args.dim), dtype=np.float16) for _ in range(2)]
    check = 0.0
    for round_ in range(args.rounds + 1):
        begin = time.process_time()
        for _, batch in loader.epoch(0):
            check += float(batch.dna[0, 0, 0])
        middle = time.process_time()
        for first in firsts:
            taken = np.take(flat, first[:, None] + np.arange(loader.n_bins), axis=0)  # kept, as a batch is
            check -= float(taken[0, 0, 0])
        end = time.process_time()
        for number, first in enumerate(firsts):
            out = into[number % 2][: len(first)]
            np.take(flat, first[:, None] + np.arange(loader.n_bins), axis=0, out=out, mode="clip")
        last = time.process_time()
        if round_:
            spent["into"].append((last - end) / len(firsts))
            spent["loader"].append((middle - begin) / len(firsts))
            spent["take"].append((end - middle) / len(firsts))
    assert abs(check) < 1e-6, "the loader and np.take read other numbers"
    stored = zarr.open_array(str(store.array_path(ARRAYS.windows)), mode="r")
    some = firsts[0][:24]
    begin = time.process_time()
    for first in some.tolist():
        window, place = divmod(first, 896)
        np.asarray(stored[window, place : place + loader.n_bins])
    by_zarr = (time.process_time() - begin) / len(some)
    mine, bare = (statistics.median(spent[key]) for key in ("loader", "take"))
    ratios = {
        key: statistics.median(one / other for one, other in zip(spent["loader"], spent[key], strict=True))
        for key in ("take", "into")
    }
    return {
        "loader_ms_per_batch": 1e3 * mine,
        "np_take_ms_per_batch": 1e3 * bare,
        "loader_over_np_take": ratios["take"],
        "loader_over_np_take_into": ratios["into"],
        "zarr_over_loader": by_zarr * args.batch / mine,
    }


def _cold(store: Store, args: argparse.Namespace) -> dict[str, float]:
    files = sorted(path for path in store.array_path(ARRAYS.windows).rglob("*") if path.stat().st_size > 1 << 20)
    size = sum(path.stat().st_size for path in files)
    # as many rows of 16 bins as make up the files: nearly every page is read, and once
    sample = args.windows * 896 / 16 / Loader(store, "rows16", "train", arrays=ARRAYS).n_rows
    config = SelectionConfig(n_bins=16, negatives=("random:2", "scoped:1"), sample=sample)
    make_selection(store, "cold", config)
    rng = np.random.default_rng(1)
    scattered = [np.sort(rng.choice(args.windows * 896, args.batch, replace=False)) for _ in range(8)]
    rates: dict[str, list[float]] = {"sequential": [], "shuffled": [], "announced": [], "plain": []}
    for _ in range(3):
        _forget(files)
        begin = time.perf_counter()
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(8 << 20):
                    pass
        rates["sequential"].append(size / (time.perf_counter() - begin))
        _forget(files)
        loader = Loader(Store.open(store.path), "cold", "train", arrays=ARRAYS, batch_size=64, block_windows=16)
        begin = time.perf_counter()
        n_read = sum(len(batch.dna) for _, batch in loader.epoch(0))
        rates["shuffled"].append(n_read * 16 * 2 * args.dim / (time.perf_counter() - begin))
        array = loader.dna
        del loader
        for key in ("announced", "plain"):
            array.let_go()
            del array
            _forget(files)
            array = Store.open(store.path).array(ARRAYS.windows)
            begin = time.perf_counter()
            for bins in scattered:
                if key == "announced":
                    array.will_need_bins(bins)
                array.gather_bins(bins)
            rates[key].append(len(scattered) / (time.perf_counter() - begin))
        array.let_go()
        del array
    best = {key: max(values) for key, values in rates.items()}
    return {
        "cold_sequential_gb_s": best["sequential"] / 1e9,
        "cold_block_shuffled_gb_s": best["shuffled"] / 1e9,
        "cold_block_shuffled_over_sequential": best["shuffled"] / best["sequential"],
        "cold_scattered_batch_ms": 1e3 / best["plain"],
        "cold_scattered_batch_announced_ms": 1e3 / best["announced"],
    }


def _forget(files: Sequence[Path]) -> None:
    """Give the pages of files back to the system."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    main()
