"""What the store costs: opening, viewing, gathering, writing durably, verifying; beside zarr's own selection.

    python benchmarks/store.py                       # about 110 MB in a temporary folder, under a minute
    python benchmarks/store.py --folder /data/tmp --bins 896 --dim 3072 --shards 4 --rounds 5

Everything is measured in one run on one array, warm. Rounds interleave ours and zarr's; a ratio is the median of the
rounds' ratios. zarr is asked in each of the ways its documentation offers, and its fastest one counts. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from tfbind_store.arrays.layouts import ArrayLayout, read_layout
from tfbind_store.arrays.sharded import ShardedArray, WindowState, create_array, publish_shard
from tfbind_store.keeping.verify import verify_shard
from tfbind_store.precompute.shard_writer import Computed, ShardWriter
from tfbind_store.spec import EmbeddingSpec

MANY_SHARDS = 844
WINDOWS_PER_SHARD = 32
N_GATHERED = 256


def main() -> None:
    """Measure, print a table and one line of JSON."""
    args = _arguments()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        layout = _array(Path(folder) / "w", args.shards * WINDOWS_PER_SHARD, args.bins, args.dim)
        results = {**_writing(layout), **_verifying(layout), **_reading(layout, args.rounds)}
        results |= _overlapping(Path(folder) / "o", args)
        results |= _opening(Path(folder) / "many", args.rounds)
    for name, value in results.items():
        print(f"{name:34s} {value:,.4g}")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "zarr": zarr.__version__}
    print(json.dumps({"benchmark": "store", **vars(args), **machine, **results}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--bins", type=int, default=224)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def _array(folder: Path, n_rows: int, n_bins: int, dim: int) -> ArrayLayout:
    row = (n_bins, dim)
    spec = EmbeddingSpec(kind="windows", embedder="toy", dim=dim)
    create_array(folder / "w.zarr", spec, shape=(n_rows, *row), shard=(WINDOWS_PER_SHARD, *row), chunk=(1, *row))
    return read_layout(folder / "w.zarr", folder / "receipts", name="embeddings/w")


def _writing(layout: ArrayLayout) -> dict[str, float]:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(WINDOWS_PER_SHARD, *layout.row_shape)).astype(np.float16)
    seconds = [
        _seconds(lambda k=k: publish_shard(layout, k, data, [WindowState.ok] * WINDOWS_PER_SHARD))
        for k in range(layout.n_shards)
    ]
    return {"durable_write_gb_s": data.nbytes / 1e9 / statistics.median(seconds)}


def _verifying(layout: ArrayLayout) -> dict[str, float]:
    receipts = ShardedArray.open(layout.path, layout.receipts_dir, name=layout.name).receipts()
    started = time.process_time()
    problems = [problem for receipt in receipts.values() for problem in verify_shard(layout, receipt, deep=True)]
    assert not problems, problems
    gigabytes = sum(receipt.size_bytes for receipt in receipts.values()) / 1e9
    return {"deep_verify_gb_s_per_core": gigabytes / (time.process_time() - started)}


def _reading(layout: ArrayLayout, rounds: int) -> dict[str, float]:
    ours = ShardedArray.open(layout.path, layout.receipts_dir, name=layout.name)
    theirs = zarr.open_array(layout.path, mode="r")
    assert isinstance(theirs, zarr.Array)
    rng = np.random.default_rng(1)
    n_windows, n_bins, dim = layout.shape
    windows, bins = rng.integers(n_windows, size=N_GATHERED), rng.integers(n_bins, size=N_GATHERED)
    columns = np.arange(dim)
    before, viewed = _anonymous_bytes(), 0
    for window in range(min(n_windows, 1000)):
        view = ours.row(window)
        viewed += view.nbytes
        _ = float(view.reshape(-1)[::2048].max())  # touches every page
    grown = _anonymous_bytes() - before
    ways: dict[str, Callable[[], np.ndarray]] = {
        "one by one": lambda: np.stack([theirs[w, b] for w, b in zip(windows, bins, strict=True)]),
        "vindex": lambda: theirs.vindex[windows[:, None], bins[:, None], columns[None]],
        "oindex": lambda: np.stack([theirs.oindex[[w], [b]][0, 0] for w, b in zip(windows, bins, strict=True)]),
    }
    mine, fastest, ratios = [], [], []
    for _ in range(rounds):
        mine.append(_seconds(lambda: ours.gather(windows, bins)))
        fastest.append(min(_seconds(way) for way in ways.values()))
        ratios.append(fastest[-1] / mine[-1])
    got = ours.gather(windows, bins)[:, 0]
    assert all(np.array_equal(way(), got) for way in ways.values()), "zarr reads something else"
    repeated = range(2000)
    return {
        "view_window_us": 1e6 * _seconds(lambda: [ours.row(k % n_windows) for k in repeated]) / len(repeated),
        "copy_bin_us": 1e6 * _seconds(lambda: [np.array(ours.row(k % n_windows)[3]) for k in repeated]) / len(repeated),
        "gather_256_bins_ms": 1e3 * statistics.median(mine),
        "zarr_256_bins_ms": 1e3 * statistics.median(fastest),
        "zarr_over_ours": statistics.median(ratios),
        "anonymous_growth_over_viewed": max(grown, 0) / viewed,
    }


def _overlapping(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Compute shards on a device that takes as long as the disk (so: sleep), with the writer beside it and without."""
    seconds: dict[int, float] = {}
    data = np.ones((WINDOWS_PER_SHARD, args.bins, args.dim), dtype=np.float16)
    states = [WindowState.ok] * WINDOWS_PER_SHARD
    for n_waiting in (-1, 1):
        layout = _array(folder / str(n_waiting), 10 * WINDOWS_PER_SHARD, args.bins, args.dim)
        pause = _seconds(lambda layout=layout: publish_shard(layout, 0, data, states))
        started = time.perf_counter()
        with ShardWriter(layout, n_waiting=n_waiting) as writer:
            for shard_id in range(1, 10):
                time.sleep(pause)
                list(writer.put(Computed(shard_id, data, states, {}, {}), lambda: None))
            list(writer.drain())
        seconds[n_waiting] = (time.perf_counter() - started) / (9 * pause)
    return {"in_turn_over_computing": seconds[-1], "overlapped_over_computing": seconds[1]}


def _opening(folder: Path, rounds: int) -> dict[str, float]:
    layout = _array(folder, MANY_SHARDS * WINDOWS_PER_SHARD, 2, 8)
    data = np.ones((WINDOWS_PER_SHARD, 2, 8), dtype=np.float16)
    for shard_id in range(MANY_SHARDS):
        publish_shard(layout, shard_id, data, [WindowState.ok] * WINDOWS_PER_SHARD)
    seconds = [
        _seconds(lambda: ShardedArray.open(layout.path, layout.receipts_dir, name=layout.name)) for _ in range(rounds)
    ]
    return {"open_844_shards_ms": 1e3 * statistics.median(seconds)}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _anonymous_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
