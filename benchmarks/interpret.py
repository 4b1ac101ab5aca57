"""In-silico mutagenesis of one locus: changes computed where they reach, against the whole trunk for each.

    python benchmarks/interpret.py                                 # yeast's grid: 16,384 bp, dim 192, depth 2
    python benchmarks/interpret.py --window-tokens 1536 --keep-tokens 896 --dim 384 --depth 4 --changes 8
    python benchmarks/interpret.py --trunk convnet                 # of the usual sizes; --frame-codons 80 for frames

The peers are ``enformer_pytorch.Enformer`` as a careful user calls it (eval mode, inference mode, one window at a time,
``return_only_embeddings=True``), and our own fast forward over the whole window; of a convnet its plain forward. A
random trunk: times do not depend on its weights. Rounds interleave all three; a ratio is the median of the rounds'
ratios, of the process' CPU seconds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tfbind_store.interpretation.live_bins import live_bins
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.convnet import Convnet, ConvnetSizes, save_convnet
from tfbind_store.precompute.embedder import WindowEmbedder, make_window_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder, crop_bins, one_hot, random_trunk

Plain = Callable[[torch.Tensor], torch.Tensor]
BIN_BP = 128
LOCUS_BINS = 2


def main() -> None:
    """Parse the sizes, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trunk", choices=("enformer", "convnet"), default="enformer")
    parser.add_argument("--frame-codons", type=int, default=0)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--window-tokens", type=int, default=128)
    parser.add_argument("--keep-tokens", type=int, default=96)
    parser.add_argument("--changes", type=int, default=24, help="changed bases per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    variants, change = _variants(args)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    bins: dict[str, np.ndarray] = {}
    for number in range(args.rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            found = run(*change)
            if number:  # the first round warms up
                seconds[name].append((time.process_time() - started) / args.changes)
            bins[name] = found
    report = _report(seconds, bins)
    for name, row in report.items():
        print(f"{name:16}{1000 * row['seconds_per_change']:>10.2f} ms per change{row['ratio']:>8.1f}x", end="")
        print(f"   off by {row['relative_error']:.1e}")
    conditions = {**vars(args), "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "interpret", "conditions": conditions, "report": report}))


def _variants(args: argparse.Namespace) -> tuple[dict[str, Callable[..., np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    grid = Grid(window_bp=args.window_tokens * BIN_BP, n_bins=args.keep_tokens, bin_bp=BIN_BP)
    tiling = Tiling.over(grid, {"c": grid.stride_bp})
    plain, embedder = _enformer(args) if args.trunk == "enformer" else _convnet(args)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, grid.window_bp).astype(np.uint8)
    middle = args.keep_tokens // 2
    asked = range(middle, middle + LOCUS_BINS)
    first = grid.margin_bp + middle * BIN_BP
    positions = first + rng.permutation(LOCUS_BINS * BIN_BP)[: args.changes]
    bases = ((codes[positions] + 1) % 4).astype(np.uint8)
    start = tiling.read(0).start

    def changed(position: int, base: int) -> np.ndarray:
        other = codes.copy()
        other[position] = base
        return other

    def local(positions: np.ndarray, bases: np.ndarray) -> np.ndarray:
        live = live_bins(embedder, tiling, 0, partial(_cut, codes, start), asked)
        return np.concatenate(list(live.changed(positions + start, bases)))

    def whole(positions: np.ndarray, bases: np.ndarray) -> np.ndarray:
        found = []
        for position, base in zip(positions, bases, strict=True):
            other = changed(position, base)
            (result,) = embedder.embed([0], partial(_cut, other, start), tiling)
            found.append(result.values[asked.start : asked.stop])
        return np.stack(found)

    @torch.inference_mode()
    def peer(positions: np.ndarray, bases: np.ndarray) -> np.ndarray:
        found = []
        for position, base in zip(positions, bases, strict=True):
            out = plain(one_hot(changed(position, base)[None]))
            found.append(crop_bins(out, grid.n_bins)[0, asked.start : asked.stop].numpy())
        return np.stack(found)

    return {"plain": peer, "ours, whole": whole, "ours, local": local}, (positions, bases)


def _enformer(args: argparse.Namespace) -> tuple[Plain, WindowEmbedder]:
    architecture = {"dim": args.dim, "depth": args.depth, "heads": 4, "attn_dim_key": 32, "dim_divisible_by": 16}
    trunk = random_trunk(architecture, seed=0)
    return partial(trunk.model, return_only_embeddings=True), EnformerEmbedder(trunk, device="cpu")


def _convnet(args: argparse.Namespace) -> tuple[Plain, WindowEmbedder]:
    torch.manual_seed(0)
    model = Convnet(ConvnetSizes(bin_bp=BIN_BP, frame_codons=args.frame_codons)).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_convnet(model, folder, None)
        return model, make_window_embedder("convnet", {"checkpoint": folder, "device": "cpu"})


def _cut(codes: np.ndarray, start: int, at: Locus) -> np.ndarray:
    """Return the codes of a locus of a window that begins at `start`; 5 outside it."""
    low, high = max(at.start, start), max(min(at.end, start + len(codes)), max(at.start, start))
    return np.pad(codes[low - start : high - start], (low - at.start, at.end - high), constant_values=5)


def _report(seconds: dict[str, list[float]], bins: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    peer, plain = seconds["plain"], bins["plain"]
    return {
        name: {
            "seconds_per_change": statistics.median(taken),
            "ratio": statistics.median(slow / fast for slow, fast in zip(peer, taken, strict=True)),
            "relative_error": float(np.sqrt(np.mean((bins[name] - plain) ** 2) / np.mean(plain**2))),
        }
        for name, taken in seconds.items()
    }


if __name__ == "__main__":
    main()
