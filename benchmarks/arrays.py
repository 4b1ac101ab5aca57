"""What each kind of array costs to read: float16 as embedded, the last layer on reading, one byte, projected.

    python benchmarks/arrays.py                                  # 40 full windows, 0.5 GB in a temporary folder
    python benchmarks/arrays.py --folder /data/tmp --windows 200 --rounds 15

One store holds the same windows in every kind, made by the package's own commands from invented transformer outputs:
as many channels as Enformer has, of a hundred hidden causes, with heavy tails. Each round reads the same rows from
every kind, one after the other; a ratio is the median of the rounds' ratios of CPU time to that of the float16 array.
Warm: the first round is not counted. Also what making the kinds costs, and how far their numbers are from the float16
array's. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from tfbind_store.arrays.on_reading import FIELD, Reading
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.arrays.transforms import Pointwise, pack
from tfbind_store.feeding.bins import BinReader
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import Codes, TrunkGeometry, WindowEmbedding
from tfbind_store.precompute.project import ProjectConfig, project_array
from tfbind_store.precompute.run import embed_windows
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

CAUSES = 100
FULL = "embeddings/full"
Reader = Callable[[ShardedArray], np.ndarray | torch.Tensor]


class Invented:
    """Transformer outputs that nobody computed, or what a last layer of random weights makes of them."""

    def __init__(self, grid: Grid, dim: int, *, final: bool) -> None:
        rng = np.random.default_rng(0)
        self.grid, self.dim, self.final = grid, dim, final
        self.geometry = TrunkGeometry(bin_bp=grid.bin_bp, dim=2 * dim if final else dim)
        self.mixing = rng.normal(size=(CAUSES, dim)).astype(np.float32) / np.sqrt(CAUSES)
        layer = {
            "norm_scale": rng.uniform(0.5, 1.5, dim),
            "norm_offset": rng.normal(size=dim) * 0.3,
            "weight": rng.normal(size=(2 * dim, dim)) / np.sqrt(dim),
            "bias": rng.normal(size=2 * dim) * 0.1,
        }
        self.content, self.sha256 = pack("pointwise", layer)
        self.layer = Pointwise(**{name: np.asarray(values, dtype=np.float32) for name, values in layer.items()})

    @property
    def transforms(self) -> tuple[bytes, ...]:
        """The last layer, where it is left to whoever reads."""
        return () if self.final else (self.content,)

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return a spec that says whether the last layer is still to come."""
        reading = Reading() if self.final else Reading(pointwise_dim=2 * self.dim, pointwise_sha256=self.sha256)
        identity = {"class": "invented", **({} if reading.is_plain else {FIELD: reading.to_json()})}
        where = {"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp}
        return EmbeddingSpec(
            kind="windows",
            embedder="invented",
            dim=self.geometry.dim,
            identity=identity,
            grid=where,
            genome=genome_digest,
        )

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield numbers that only the window decides."""
        for window in windows:
            rng = np.random.default_rng([1, window])
            causes = rng.standard_t(4, size=(self.grid.n_bins, CAUSES)).astype(np.float32)
            values = causes @ self.mixing
            values += 0.3 * rng.standard_normal(values.shape, dtype=np.float32)
            yield WindowEmbedding(int(window), self.layer(values).astype(np.float32) if self.final else values)


def main() -> None:
    """Make the kinds, read them, print a table and one line of JSON."""
    args = _arguments()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = _store(Path(folder), args)
        making = _make(store, args)
        names = [name for name in store.array_names() if name != FULL]
        arrays = {name.partition("/")[2]: store.array(name) for name in [FULL, *names]}
        found = {kind: {**making[kind], **_size_and_error(array, arrays["full"])} for kind, array in arrays.items()}
        readers = {array.layout.name: BinReader(array, torch.device("cpu")) for array in arrays.values()}
        for what, read in _reads(arrays["full"], readers).items():
            for kind, numbers in _compare(arrays, read, args.rounds).items():
                found[kind] |= {f"{what}_{name}": value for name, value in numbers.items()}
    columns = list(found["full"])
    print(f"{'':24s}" + "".join(f"{kind:>16s}" for kind in found))
    for column in columns:
        print(f"{column:24s}" + "".join(f"{found[kind].get(column, float('nan')):16,.4g}" for kind in found))
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    machine |= {"numpy": np.__version__, "torch": torch.__version__}
    print(json.dumps({"benchmark": "arrays", **vars(args), **machine, "kinds": found}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--bins", type=int, default=896)
    parser.add_argument("--dim", type=int, default=1536, help="of the transformer; the trunk gives twice as many")
    parser.add_argument("--axes", type=int, default=256)
    parser.add_argument("--sample-bins", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def _store(folder: Path, args: argparse.Namespace) -> Store:
    grid = Grid(window_bp=args.bins * 128, n_bins=args.bins, bin_bp=128)
    bases = np.random.default_rng(2).integers(0, 4, args.windows * grid.stride_bp)
    (folder / "genome.fa").write_bytes(b">a\n" + np.frombuffer(b"ACGT", dtype=np.uint8)[bases].tobytes() + b"\n")
    return Store.create(folder / "store", fasta=folder / "genome.fa", grid=grid)


def _make(store: Store, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return CPU seconds per window of making each kind; of projections without their fit."""
    for name, final in (("full", True), ("tap", False)):
        embed_windows(store, Invented(store.grid, args.dim, final=final), name=name)
    made: dict[str, dict[str, float]] = {"full": {}, "tap": {}}
    asked = {
        "int8": ProjectConfig(int8=True),
        f"pca{args.axes}": ProjectConfig(dim=args.axes, sample_bins=args.sample_bins),
        f"pca{args.axes}-int8": ProjectConfig(dim=args.axes, int8=True, sample_bins=args.sample_bins),
    }
    for name, config in asked.items():
        started = time.process_time()
        report = project_array(store, FULL, config, name=name)
        total = time.process_time() - started
        seconds = sum(r.provenance["seconds"] for r in store.array(report.run.array).receipts().values())
        made[name] = {
            "make_s_per_window": seconds / args.windows,
            "fit_cpu_s": total - seconds,
            "reported_rms": report.reconstruction_rms,
        }
    return made


def _size_and_error(array: ShardedArray, full: ShardedArray) -> dict[str, float]:
    said = {"mb_per_window": array.layout.window_bytes / 1e6}
    if array.shape == full.shape:
        pairs = [(full.row(w).astype(np.float64), array.row(w).astype(np.float64)) for w in range(0, array.shape[0], 7)]
        lost = sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)
        said["relative_rms"] = float(np.sqrt(lost))
    return said


def _reads(full: ShardedArray, readers: dict[str, BinReader]) -> dict[str, Reader]:
    """Return what is read: a batch of loci, a block of single bins as training draws them, a whole window."""
    rng = np.random.default_rng(3)
    n_windows, n_bins = full.shape[:2]
    loci = np.sort(rng.integers(0, n_windows * n_bins - 16, 32))
    block = rng.choice(n_windows, min(n_windows, 16), replace=False)
    single = rng.choice(block, 512) * n_bins + rng.integers(0, n_bins, 512)
    return {
        "32x16_bins": lambda array: array.gather_bins(loci, 16),
        "512_bins": lambda array: array.gather_bins(single),
        "512_bins_as_tensor": lambda array: readers[array.layout.name](single),
        "window": lambda array: np.array(array.row(n_windows // 2)),
    }


def _compare(arrays: dict[str, ShardedArray], read: Reader, rounds: int) -> dict[str, dict[str, float]]:
    spent: dict[str, list[float]] = {kind: [] for kind in arrays}
    for round_ in range(rounds + 1):
        for kind, array in arrays.items():
            repeats = 3
            started = time.process_time()
            for _ in range(repeats):
                read(array)
            if round_:
                spent[kind].append((time.process_time() - started) / repeats)
    full = spent["full"]
    return {
        kind: {
            "ms": 1e3 * statistics.median(seconds),
            "over_full": statistics.median(mine / its for mine, its in zip(seconds, full, strict=True)),
        }
        for kind, seconds in spent.items()
    }


if __name__ == "__main__":
    main()
